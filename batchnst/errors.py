"""All errors that are reported to the user.

The tree of classes:

    BatchNSTError
    ├── RequestError        the request is wrong; nothing was run (exit code 2)
    │   ├── RecipeError     a recipe key or value is not allowed
    │   ├── ManifestError   the manifest or some of its rows cannot be used; all problems are reported together
    │   ├── LedgerError     this version cannot read the ledger
    │   ├── EngineError     Ray cannot be reached, or lacks the requested resources
    │   └── Occupied        another run is using OUT
    ├── StorageError        OUT cannot be written, or a store does not answer: the run stops, no file is left incomplete
    │   └── Superseded      another run has claimed OUT, or the task counts as lost
    └── PairError           one pair cannot be painted: it gets a `failed` row, all other pairs go on
        ├── InputError      a picture is missing, unreadable or too small
        ├── OutOfMemory     the pair does not fit on the device, even alone
        ├── Diverged        no finite loss was reached
        └── WorkerLost      the worker died repeatedly while it painted the pair
"""


class BatchNSTError(Exception):
    """Base class of all errors that are reported to the user, as messages without a traceback."""


class RequestError(BatchNSTError):
    """The request is wrong; nothing was run."""


class RecipeError(RequestError):
    """Recipe keys or values are not allowed; `problems` has one message for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class ManifestError(RequestError):
    """The manifest cannot be used; the message has one line for each of `problems`."""

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


class LedgerError(RequestError):
    """The ledger cannot be read by this version; `kind` is the kind of finding that an audit reports."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class EngineError(RequestError):
    """Ray cannot be reached, or lacks the requested resources."""


class Occupied(RequestError):
    """Another run is using OUT."""


class StorageError(BatchNSTError):
    """OUT cannot be written, or a store does not answer."""


class Superseded(StorageError):
    """Another run has claimed OUT, or the task counts as lost: this process must no longer write."""


class PairError(BatchNSTError):
    """One pair cannot be painted."""


class InputError(PairError):
    """A picture is missing, unreadable or too small."""


class OutOfMemory(PairError):
    """The pair does not fit on the device, even alone."""


class Diverged(PairError):
    """No finite loss was reached."""


class WorkerLost(PairError):
    """The worker died repeatedly while it painted the pair."""
