"""The errors users can cause or must hear of.

BatchNSTError
├── RequestError        the request as a whole is wrong; nothing was run (exit code 2)
│   ├── RecipeError     a recipe key or value
│   ├── ManifestError   the manifest, or rows of it; all of them at once
│   ├── LedgerError     a ledger that this version cannot read
│   ├── EngineError     Ray cannot be reached, or has not what is asked of it
│   └── Occupied        another run is painting into OUT at this moment
├── StorageError        OUT cannot be written, or a store not reached: the run stops, nothing is half-written
│   └── Superseded      another run has claimed OUT since, or the task counts as lost
└── PairError           one pair cannot be painted; becomes a `failed` row, its neighbours go on
    ├── InputError      a picture that is missing, unreadable or too small
    ├── OutOfMemory     the pair does not fit the device, even alone
    ├── Diverged        no finite loss was reached
    └── WorkerLost      the worker died with the pair in hand, again and again
"""


class BatchNSTError(Exception):
    """Anything batchnst can say in one clear line."""


class RequestError(BatchNSTError):
    """The request is wrong: nothing was run."""


class RecipeError(RequestError):
    """Recipe keys or values are not allowed; one message for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class ManifestError(RequestError):
    """The manifest cannot be used; one message for each thing found."""

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


class LedgerError(RequestError):
    """The ledger cannot be read by this version; `kind` is what an audit calls that."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class EngineError(RequestError):
    """Ray cannot be reached, or has not what is asked of it."""


class Occupied(RequestError):
    """Another run is painting into OUT at this moment."""


class StorageError(BatchNSTError):
    """OUT cannot be written, or a store cannot be reached."""


class Superseded(StorageError):
    """Another run has claimed OUT since, or the task counts as lost: it must not write."""


class PairError(BatchNSTError):
    """One pair cannot be painted."""


class InputError(PairError):
    """A picture is missing, unreadable or too small."""


class OutOfMemory(PairError):
    """The pair does not fit the device, even alone."""


class Diverged(PairError):
    """No finite loss was reached."""


class WorkerLost(PairError):
    """The worker died with the pair in hand, again and again."""
