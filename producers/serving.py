"""The child process's side of its two pipes: reads tasks from one, and reports on the other."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from featurestore.errors import RecipeError

# Function that works on a task and returns its report; both are plain values.
Handler = Callable[[dict[str, Any]], dict[str, Any]]

# Address space for one input, in addition to that of the started process. The largest poster of
# 179 million pixels takes 0.7 GB as RGB (Pillow keeps four bytes a pixel), as much again while it
# is converted, 1.1 GB of coefficients if it is a progressive JPEG, and 0.25 GB as a file: 2.8 GB.
_HEADROOM_BYTES = 4 << 30
# Maximum size of the file that holds the output of libraries; the parent shows its end.
_PRINTED_BYTES = 1 << 20
_TRACEBACK_CHARS = 8000


def serve(arguments: Sequence[str], prepare: Callable[[bytes, Sequence[int]], Handler]) -> None:
    """Serves tasks until the parent closes the pipe.

    Args:
        arguments: numbers of the inherited descriptors: the job, the pipe of tasks, the pipe of
            results, and further descriptors of the job.
        prepare: function that receives the job and its further descriptors, before memory is
            limited, and returns the handler of tasks.
    """
    job_fd, tasks_fd, results_fd, *others = map(int, arguments)
    tasks = Connection(tasks_fd, writable=False)
    results = Connection(results_fd, readable=False)
    try:
        handle = prepare(_read_all(job_fd), others)
        limit_memory()
        results.send_bytes(b'{"ready": true}')
        _answer(handle, tasks, results)
    except RecipeError as e:
        failed = {
            "function": e.function,
            "problem": e.problem,
            "traceback": _shortened(traceback.format_exc()),
        }
        results.send_bytes(json.dumps({"failed": failed}).encode("ascii"))
        raise
    except BaseException:
        # This is a defect, not a bad sample: the parent stops and shows the traceback.
        text = _shortened(traceback.format_exc())
        results.send_bytes(json.dumps({"error": text}).encode("ascii"))
        raise


def limit_memory() -> None:
    """Limits this process's memory, so that an input that needs too much raises MemoryError.

    Without a limit the kernel would kill some process, maybe the parent.
    """
    import resource  # Windows has no such module, and no producers

    limit = _used_bytes() + _HEADROOM_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    lowest = min([limit] + [given for given in (soft, hard) if given != resource.RLIM_INFINITY])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))


def out_of_memory() -> tuple[str, str]:
    """Reason and detail of an input that needs more memory than the limit."""
    return "out-of-memory", f"more than {_HEADROOM_BYTES >> 30} GiB for one sample"


def _used_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)


def _answer(handle: Handler, tasks: Connection, results: Connection) -> None:
    while True:
        try:
            task = json.loads(tasks.recv_bytes())
        except EOFError:
            return  # the parent closed the pipe: there is no more work
        results.send_bytes(json.dumps(handle(task)).encode("ascii"))
        limit_output()  # libtiff prints a line for every damaged row


def limit_output() -> None:
    """Empties the file that holds the output of libraries if it has become large."""
    if os.fstat(2).st_size > _PRINTED_BYTES:
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)


def _shortened(text: str) -> str:
    """The beginning and the end of a traceback that is too long."""
    if len(text) <= _TRACEBACK_CHARS:
        return text
    half = _TRACEBACK_CHARS // 2
    return f"{text[:half]} … {text[-half:]}"
