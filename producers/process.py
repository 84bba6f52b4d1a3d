"""One child process: its start, its two pipes, and its end, whatever the cause.

Each child has a pair of pipes, and no two processes share a lock: a process that is killed while it
holds a lock would block all others. When a child ends, its pipes are closed.

Every wait has a limit. A process in uninterruptible sleep, for example in a read from a network
file system whose server is gone, does not end after SIGKILL until that read returns: it is left
alone. It never runs another instruction of its program.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from featurestore.errors import ProducerError, StorageError
from featurestore.system.platforms import require_linux
from producers.parent import STOP_SIGNALS

# Time that a process has to end by itself once its pipe is closed, and again after SIGKILL.
END_S = 5.0
_OUTPUT_BYTES = 2000
_READ_BYTES = 1 << 16
# The length that Connection sends before each message.
_SIZE = struct.Struct("!i")
_SCRIPT = str(Path(__file__).resolve().with_name("parent.py"))

# Ids of processes that did not end after SIGKILL. When they end, they are zombies until waited for.
_left: set[int] = set()


class Traceback(Exception):  # noqa: N818  it is no error, but where one happened
    """The traceback of another process."""

    def __init__(self, text: str) -> None:
        super().__init__(f"\n{text}")


class Child:
    """A process that runs ``main`` of a module, which serves tasks (``serving``).

    Attributes:
        pid: process id.
        results: connection that receives the reports of the process.
    """

    # What the process is called in messages, and the variables that are set in its environment.
    _NAME = "A producer process"
    # CUDA_VISIBLE_DEVICES is empty because producers never use a GPU.
    _ENVIRONMENT: Mapping[str, str] = {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    def __init__(self, module: str, job: IO[bytes], fds: Sequence[int] = ()) -> None:
        """Starts the process.

        Args:
            module: name of the module that it runs.
            job: file with the job description; processes may share it.
            fds: further descriptors that the process inherits.

        Raises:
            ConfigError: this is not Linux.
            ProducerError: the machine does not have enough processes, open files or memory.
            StorageError: a temporary file cannot be written.
        """
        require_linux(self._NAME)
        _collect()
        with ExitStack() as undo, machine_errors(f"{self._NAME} could not be started"):
            self._start(module, job, fds, undo)

    def _start(self, module: str, job: IO[bytes], fds: Sequence[int], undo: ExitStack) -> None:
        """Starts the process; if that fails, ``undo`` closes the descriptors that were opened."""
        self._stderr = undo.enter_context(temporary_file())
        task_read, task_write = _pipe(undo)
        result_read, result_write = _pipe(undo)
        inherited = (job.fileno(), task_read, result_write, *fds)
        arguments = [str(os.getpid()), module, *map(str, inherited)]
        # Ctrl-C sends SIGINT to the whole process group. The inherited mask blocks it until the new
        # process ignores it: only the parent decides when to stop.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *_flags(), "-P", _SCRIPT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=inherited,
                env=os.environ | dict(self._ENVIRONMENT),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        undo.pop_all()
        os.close(task_read)
        os.close(result_write)
        self.pid = self._process.pid
        self._tasks = Connection(task_write, readable=False)
        self.results = Connection(result_read, writable=False)
        self._unread = bytearray()
        self._is_killed = False

    def send(self, task: bytes) -> None:
        """Sends a task to the process.

        Raises:
            OSError: the process has ended.
        """
        self._tasks.send_bytes(task)

    def receive(self) -> list[dict[str, Any]]:
        """Returns the complete reports; to be called when :attr:`results` is ready.

        It never waits for the rest of a report, because the process may be stopped.

        Raises:
            EOFError, OSError: the process has ended.
        """
        data = os.read(self.results.fileno(), _READ_BYTES)
        if not data:
            raise EOFError
        self._unread += data
        reports = []
        while len(self._unread) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(self._unread)[0]
            if len(self._unread) < end:
                break
            reports.append(json.loads(self._unread[_SIZE.size : end]))
            del self._unread[:end]
        return reports

    def signal(self, number: int) -> None:
        """Sends a signal to the process, unless it has ended."""
        self._process.send_signal(number)

    @property
    def printed_bytes(self) -> int:
        """Size of the process's kept output, in bytes."""
        return os.fstat(self._stderr.fileno()).st_size

    def kill(self) -> None:
        """Sends SIGKILL, without waiting for the process to end."""
        self._process.kill()
        self._is_killed = True

    def end(self, limit_s: float | None = None) -> tuple[str, str]:
        """Waits until the process ends, kills it if it does not, and closes its descriptors.

        Args:
            limit_s: limit of each wait in seconds; ``END_S`` by default.

        Returns:
            The cause of the end in words, and the last part of the output. The cause is empty if
            the process does not end: it is left alone, and :attr:`is_left` is true from then on.
        """
        limit_s = END_S if limit_s is None else limit_s
        code = self._wait(limit_s)
        if code is None and not self._is_killed:
            self.kill()
            code = self._wait(limit_s)
        self._tasks.close()
        self.results.close()
        output = _end_of(self._stderr)
        self._stderr.close()
        if code is None:
            _left.add(self.pid)
            self._process.returncode = (
                -signal.SIGKILL
            )  # its future value: the process is not waited for again
            return "", output
        return _words(code), output

    @property
    def is_left(self) -> bool:
        """Whether the process did not end after SIGKILL, and has not ended since."""
        _collect()
        return self.pid in _left

    def _wait(self, limit_s: float) -> int | None:
        try:
            return self._process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None


def _flags() -> list[str]:
    """The interpreter flags for environment variables and the user's site folder, as set here."""
    given = {"-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    return [flag for flag, value in given.items() if value]


def _collect() -> None:
    """Reaps the processes that were left alone and have ended since."""
    for pid in list(_left):
        try:
            is_over = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            is_over = True
        if is_over:
            _left.discard(pid)


def end_all(children: Sequence[Child]) -> list[Child]:
    """Kills processes and waits up to ``END_S`` for them; returns those that did not end."""
    for child in children:
        child.kill()
    deadline = time.monotonic() + END_S
    return [c for c in children if not c.end(max(0.0, deadline - time.monotonic()))[0]]


def temporary_file(content: bytes = b"") -> IO[bytes]:
    """Creates an anonymous temporary file with ``content``.

    Raises:
        StorageError: the folder of temporary files cannot be written.
        ProducerError: no more files can be opened.
    """
    with ExitStack() as undo:
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
            undo.callback(_close_quietly, file)
            file.write(content)
            file.flush()
        except OSError as e:
            with machine_errors("A temporary file could not be opened"):
                os.close(
                    os.open(os.devnull, os.O_RDONLY)
                )  # fails too if the limit on open files is reached
            folder = tempfile.tempdir or os.environ.get("TMPDIR", "TMPDIR")
            raise StorageError(Path(folder), e.strerror or str(e)) from e
        undo.pop_all()
    return file


@contextmanager
def machine_errors(what: str) -> Iterator[None]:
    """Turns a lack of processes, files or memory in the block into ProducerError.

    Raises:
        ProducerError: the block raised an OSError or a MemoryError.
    """
    try:
        yield
    except (OSError, MemoryError) as e:
        reason = "not enough memory" if isinstance(e, MemoryError) else e.strerror or str(e)
        raise ProducerError(
            f"{what}: {reason}.\n"
            "Choose fewer with --producers, or raise the limit on processes, open files or memory."
        ) from e


def _close_quietly(file: IO[bytes]) -> None:
    with suppress(OSError):  # closing flushes again
        file.close()


def _pipe(undo: ExitStack) -> tuple[int, int]:
    """Creates a pipe whose ends ``undo`` closes; returns the read end and the write end."""
    read, write = os.pipe()
    undo.callback(os.close, read)
    undo.callback(os.close, write)
    return read, write


def _end_of(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
    return file.read().decode("utf-8", "replace").strip()


def _words(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return name + (" (probably out of memory)" if -code == signal.SIGKILL else "")
