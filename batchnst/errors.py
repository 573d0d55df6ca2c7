"""All errors that are reported to the user.

The tree of classes:

    BatchNSTError
    ├── RequestError        the request is wrong; nothing was run (exit code 2)
    │   ├── RecipeError     a recipe key or value is not allowed
    │   ├── ManifestError   the manifest or some of its rows cannot be used; all problems are reported together
    │   ├── LedgerError     this version cannot read the ledger
    │   ├── EngineError     Ray cannot be reached, or lacks the requested resources
    │   └── Occupied        another run is using OUT
    ├── StorageError        OUT, or a whole store of inputs, does not answer: the run stops, no file is left incomplete
    │   ├── Superseded      another run has claimed OUT, or the task counts as lost
    │   └── UnwritableName  the file system refuses this one name
    ├── DeviceFailed        a GPU failed or cannot be used: its process must end, another one goes on
    └── PairError           one pair cannot be painted: it gets a `failed` row, all other pairs go on
        ├── InputError      a picture is missing, unreadable or too small
        ├── OutputError     the file system refuses the name of its picture
        ├── OutOfMemory     the pair does not fit on the device, even alone
        ├── Diverged        no finite loss was reached
        └── WorkerLost      the worker died repeatedly while it painted the pair
"""

from __future__ import annotations

from batchnst.redaction import redact


class BatchNSTError(Exception):
    """Base class of all errors that are reported to the user, as messages without a traceback and without secrets."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class RequestError(BatchNSTError):
    """The request is wrong; nothing was run."""


class RecipeError(RequestError):
    """Recipe keys or values are not allowed; `problems` has one message for each."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(redact, problems))
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
    """OUT cannot be written, or a store does not answer. A single input that cannot be read is an InputError."""


class Superseded(StorageError):
    """Another run has claimed OUT, or the task counts as lost: this process must no longer write."""


class UnwritableName(StorageError):
    """The file system refuses the name of a file: it is too long, or a folder or a file is in its way."""


class DeviceFailed(BatchNSTError):
    """A GPU has failed, or this process cannot use it. CUDA refuses everything else in the process from then on."""


class PairError(BatchNSTError):
    """One pair cannot be painted; `transient` says that another attempt may succeed."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class InputError(PairError):
    """A picture is missing, unreadable or too small.

    `unread` is its address if it could not be read at all, `missing` says that there is no such file.
    """

    def __init__(
        self, message: str, *, transient: bool = False, unread: str | None = None, missing: bool = False
    ) -> None:
        super().__init__(message, transient=transient)
        self.unread, self.missing = unread, missing

    def with_prefix(self, prefix: str) -> InputError:
        """The same error with `prefix` before its message."""
        return InputError(f"{prefix}{self}", transient=self.transient, unread=self.unread, missing=self.missing)


class OutputError(PairError):
    """The file system refuses the name of the pair's picture."""


class OutOfMemory(PairError):
    """The pair does not fit on the device, even alone."""


class Diverged(PairError):
    """No finite loss was reached."""


class WorkerLost(PairError):
    """The worker died repeatedly while it painted the pair."""
