"""The error tree: every failure that a user can meet, with the attributes that a handler needs.

A message says what happened, what was expected and found, and what to do next, in at most four
lines. The command line prints the message alone; ``--debug`` adds the traceback.

    ManyViewsError
    ├── ConfigError            an option is invalid, or a model or the machine is unsuitable
    ├── InputError             a data folder, split file or label file is missing or invalid
    ├── BadSampleError         one poster or synopsis is unusable; the build continues
    ├── BadInputsError         some are unusable, and the build was asked to fail in that case
    ├── ProducerError          a producer process died or could not start
    ├── RecipeError            a custom recipe failed, or returned something that is not a view
    ├── BackboneError          a backbone failed, or returned something that is not a feature
    ├── WorkerError            a worker process died repeatedly, or met a defect
    ├── StoreLockedError       another process is writing to this store
    ├── StoreMismatchError     --resume with a setting that would change the features
    ├── CorruptStoreError      the content of a file of the store differs from what was committed
    ├── ChunkConflictError     two processes built one chunk with different results
    ├── StorageError           the system refused an operation on a file
    │   └── StorageFullError   no space left, or a quota reached
    └── InterruptedBuildError  a signal ended the build; --resume continues it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Maximum number of processes that a message names.
_NAMED = 4
_PROMISE = "Nothing that was committed is lost. Run it again with --resume."


class ManyViewsError(Exception):
    """Root of all errors that manyviews raises on purpose.

    Attributes:
        exit_code: exit status of the command line: 1 for failures, 2 for usage or configuration.
    """

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies the message and the attributes: the arguments of ``__init__`` are not kept."""
        return _copied, (type(self), self.args, vars(self))


def _copied(kind: type[ManyViewsError], args: tuple[Any, ...], values: dict[str, Any]) -> Any:
    """An error with this message and these attributes; ``__init__`` is not called."""
    error = kind.__new__(kind, *args)
    vars(error).update(values)
    return error


class ConfigError(ManyViewsError, ValueError):
    """An option, a model checkpoint or this machine does not fit the request."""

    exit_code = 2


class InputError(ManyViewsError, ValueError):
    """A data folder, split file or label file is missing or not of the expected form."""

    exit_code = 2


class BadSampleError(ManyViewsError):
    """One poster or synopsis cannot be used.

    Attributes:
        reason: a stable keyword for counting, for example ``truncated`` or ``too-large``.
        detail: a one-line explanation for a person.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


class BadInputsError(ManyViewsError):
    """Some inputs cannot be used, and the build was asked to fail in that case."""


class ProducerError(ManyViewsError):
    """A producer process could not start, or died repeatedly.

    Attributes:
        pid: the process id, or None if the process never started.
        signal: the name of the signal or exit status that ended the process, or None.
        stem: the stem of the sample that the process was working on, or None.
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


class RecipeError(ManyViewsError):
    """The function of a custom recipe failed, or returned something that is not a view.

    Attributes:
        function: the function, as ``module:function``.
        problem: what it did, which begins with a verb.
        stem: the stem of the sample that it was called for, or None if it was not called.
    """

    def __init__(self, function: str, problem: str, stem: str | None = None) -> None:
        self.function = function
        self.problem = problem
        self.stem = stem
        at = "" if stem is None else f"Sample {stem!r}: "
        super().__init__(
            f"{at}the recipe {function} {problem}.\n"
            "Correct the function, then build again; --debug shows the whole traceback."
        )


class BackboneError(ManyViewsError):
    """A backbone failed on a batch, or returned something that is not a finite feature.

    Attributes:
        chunk: number of the chunk that the batch belongs to, or None if no chunk is involved.
    """

    chunk: int | None = None

    def name_chunk(self, chunk: int) -> None:
        """Names the chunk in the message, unless one is named already."""
        if self.chunk is None:
            self.chunk = chunk
            self.args = (f"Chunk {chunk}: {self}",)


class WorkerError(ManyViewsError):
    """A worker process of a build died repeatedly, or ended with an error that is a defect.

    Attributes:
        device: the device that the worker computed on, or None if unknown.
        worker: which of the workers it was, as ``K/N``, or None if unknown.
    """

    def __init__(
        self, message: str, *, device: str | None = None, worker: str | None = None
    ) -> None:
        self.device = device
        self.worker = worker
        super().__init__(message)


class StoreLockedError(ManyViewsError):
    """Other processes are writing to a store, or another one to the same file.

    Attributes:
        pid: the process id of the lock's first holder, or None if unknown.
        host: the host name of the lock's first holder, or None if unknown.
    """

    def __init__(self, path: Path, holders: Sequence[tuple[int, str]], advice: str = "") -> None:
        self.pid: int | None = holders[0][0] if holders else None
        self.host: str | None = holders[0][1] if holders else None
        named = [f"process {pid} on {host}" for pid, host in holders[:_NAMED]]
        if len(holders) > _NAMED:
            named.append(f"{len(holders) - _NAMED} more")
        advice = advice or "Wait for it to finish or stop it, then run the same command again."
        who = ", ".join(named) or "another process"
        super().__init__(f"{path} is being written by {who}.\n{advice}")


class StoreMismatchError(ManyViewsError):
    """A build would compute other features than those that the store already holds.

    Attributes:
        field: the name of the fingerprint field that differs.
        stored: the field's value in the store.
        new: the field's value in this run.
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
    """A file of the store is missing, or its content differs from what was committed.

    Attributes:
        file: the damaged file's path, relative to the store.
        chunk: the number of the chunk that the file belongs to, or None.
        problem: a description of the damage.
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


class ChunkConflictError(ManyViewsError):
    """Two processes built the same chunk, and their results differ.

    Attributes:
        chunk: the chunk's number.
    """

    def __init__(self, chunk: int, record: str) -> None:
        self.chunk = chunk
        super().__init__(
            f"Chunk {chunk} was made twice with different bytes: {record} holds the first result.\n"
            "A device or a machine computes wrong numbers, or an input changed meanwhile.\n"
            "Find out which by building the chunk on each machine; `verify --repair` drops a chunk "
            "whose files do not match, and `build --resume` builds it again."
        )


class StorageError(ManyViewsError):
    """The system refused an operation on a file: no permission, no memory, an input/output error.

    The content of the file may be intact; damaged content is a ``CorruptStoreError``.

    Attributes:
        path: the path of the file or folder.
    """

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        self.path = path
        super().__init__(f"Could not use {path}: {reason}.{advice and chr(10)}{advice}")

    def add_promise(self) -> None:
        """Adds the promise that holds only for a build that this error ended: nothing is lost."""
        if _PROMISE not in str(self):  # the error of a worker process has it already
            self.args = (f"{self}\n{_PROMISE}",)


class StorageFullError(StorageError):
    """The file system has no space left for a write.

    Attributes:
        path: the path of the file that could not be written.
        bytes: the size of the write in bytes.
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
    """Root of all warnings that manyviews issues; the command line prints their message alone."""


class UnsyncedFolderWarning(ManyViewsWarning):
    """The file system cannot sync folders: a power cut may undo the latest renames."""
