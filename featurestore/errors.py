"""The error tree: every failure that a user can meet, each with what a handler needs to know.

A message says what happened, what was expected and found, and what to do next, in at most four
lines. The command line prints the message alone; ``--debug`` adds the traceback.

    ManyViewsError
    ├── ConfigError            an option, a model or the machine does not fit
    ├── InputError             the data folder, a split file or a label file does not fit
    ├── BadSampleError         one poster or synopsis cannot be used; the build goes on
    ├── BadInputsError         some cannot be used, and the build was told to stop at that
    ├── ProducerError          a producer process died or could not start
    ├── BackboneError          a backbone failed, or returned something that is not a feature
    ├── StoreLockedError       another process is writing to this store
    ├── StoreMismatchError     --resume with something that would change the numbers
    ├── CorruptStoreError      a file of the store is not what was committed
    ├── StorageError           the system refused an operation on a file
    │   └── StorageFullError   no space left, or a quota reached
    └── InterruptedBuildError  a signal ended the build; --resume goes on
"""

from __future__ import annotations

from pathlib import Path


class ManyViewsError(Exception):
    """Root of all errors that manyviews raises on purpose.

    Attributes:
        exit_code: what the command line exits with: 1 failed, 2 usage or configuration.
    """

    exit_code = 1


class ConfigError(ManyViewsError, ValueError):
    """An option, a model checkpoint or this machine does not fit what was asked for."""

    exit_code = 2


class InputError(ManyViewsError, ValueError):
    """A data folder, split file or label file is missing or not of the expected form."""

    exit_code = 2


class BadSampleError(ManyViewsError):
    """One poster or synopsis cannot be used.

    Attributes:
        reason: a stable word for counting, for example ``truncated`` or ``too-large``.
        detail: one line for a person.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class BadInputsError(ManyViewsError):
    """Inputs cannot be used, and the build was told to stop at that."""


class ProducerError(ManyViewsError):
    """A producer process could not start, or kept dying.

    Attributes:
        pid: the process, or None where it never started.
        signal: the signal or exit status that ended it, as a word, or None.
        stem: the sample it was working on, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        signal: str | None = None,
        stem: str | None = None,
    ) -> None:
        self.pid = pid
        self.signal = signal
        self.stem = stem
        super().__init__(message)


class BackboneError(ManyViewsError):
    """A backbone failed on a batch, or returned something that is not a finite feature."""


class StoreLockedError(ManyViewsError):
    """Another process is writing to a store, or the same file.

    Attributes:
        pid: the holder's process id, or None where unknown.
        host: the holder's host name, or None where unknown.
    """

    def __init__(self, path: Path, pid: int | None, host: str | None, advice: str = "") -> None:
        self.pid = pid
        self.host = host
        holder = f"process {pid} on {host}" if pid is not None else "another process"
        advice = advice or "Wait for it to finish or stop it, then run the same command again."
        super().__init__(f"{path} is being written by {holder}.\n{advice}")


class StoreMismatchError(ManyViewsError):
    """A build would change numbers that the store already holds.

    Attributes:
        field: the fingerprint's field that differs.
        stored: its value in the store.
        new: its value in this run.
    """

    exit_code = 2

    def __init__(self, path: Path, field: str, stored: object, new: object, advice: str) -> None:
        self.field = field
        self.stored = stored
        self.new = new
        super().__init__(
            f"{path} was built with another {field}.\n  stored: {stored}\n  now:    {new}\n{advice}"
        )


class CorruptStoreError(ManyViewsError):
    """A file of the store is missing or is not what was committed.

    Attributes:
        file: the damaged file, relative to the store.
        chunk: the chunk it belongs to, or None.
        problem: what is wrong with it.
    """

    def __init__(
        self, file: str, problem: str, *, chunk: int | None = None, advice: str = ""
    ) -> None:
        self.file = file
        self.chunk = chunk
        self.problem = problem
        advice = advice or (
            "`verify` lists all damage; `verify --repair` and then `build --resume` rebuild chunks."
        )
        where = file if chunk is None else f"{file} (chunk {chunk})"
        super().__init__(f"{where} is damaged: {problem}\n{advice}")


class StorageError(ManyViewsError):
    """The system refused an operation on a file: no permission, no memory, an input/output error.

    It says nothing about the content of the file: that is ``CorruptStoreError``.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        self.path = path
        super().__init__(f"Could not use {path}: {reason}.{advice and chr(10)}{advice}")

    def add_promise(self) -> None:
        """Adds what is true of a build that it ended, and of nothing else."""
        self.args = (f"{self}\nNothing that was committed is lost. Run it again with --resume.",)


class StorageFullError(StorageError):
    """The file system has no space left for a write.

    Attributes:
        path: the file that could not be written.
        bytes: the size of the write.
    """

    def __init__(self, path: Path, bytes: int, reason: str, advice: str = "") -> None:
        self.bytes = bytes
        super().__init__(path, reason)
        advice = advice or "Free some space, then run the same command again."
        self.args = (f"Could not write {bytes:,} bytes to {path}: {reason}.\n{advice}",)


class InterruptedBuildError(ManyViewsError):
    """A signal ended the build between two chunks.

    Attributes:
        signum: the signal's number; the command line exits with 128 + signum.
    """

    def __init__(self, signum: int, message: str) -> None:
        self.signum = signum
        self.exit_code = 128 + signum
        super().__init__(message)


class ManyViewsWarning(UserWarning):
    """Root of all warnings that manyviews gives; the command line prints their message alone."""


class UnsyncedFolderWarning(ManyViewsWarning):
    """The file system cannot sync folders: what was renamed last may be lost in a power cut."""
