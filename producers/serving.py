"""A child process's side of its pipes: it reads tasks from one and reports on the other."""

from __future__ import annotations

import json
import os
import resource
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# What a child does with a task: its report, as plain values.
Handler = Callable[[dict[str, Any]], dict[str, Any]]

# Address space for one input on top of what a warm process has. The largest accepted poster of
# 179 million pixels takes 0.7 GB as RGB (Pillow keeps four bytes a pixel), as much again while it
# is converted, 1.1 GB of coefficients if it is a progressive JPEG, and 0.25 GB as a file: 2.8 GB.
_HEADROOM_BYTES = 4 << 30
# What libraries print on standard error is a file that the parent shows the end of.
_PRINTED_BYTES = 1 << 20
_TRACEBACK_CHARS = 8000


def serve(arguments: Sequence[str], prepare: Callable[[bytes, Sequence[int]], Handler]) -> None:
    """Serves tasks until the parent closes the pipe.

    Args:
        arguments: the numbers of the inherited descriptors: the job, the pipe of tasks, the pipe of
            results, and those that are the job's own.
        prepare: called with the job and its own descriptors, before memory is limited.
    """
    job_fd, tasks_fd, results_fd, *others = map(int, arguments)
    tasks = Connection(tasks_fd, writable=False)
    results = Connection(results_fd, readable=False)
    try:
        handle = prepare(_read_all(job_fd), others)
        limit_memory()
        results.send_bytes(b'{"ready": true}')
        _answer(handle, tasks, results)
    except BaseException:
        # A defect, not a bad sample: the parent stops and shows where it happened.
        text = _shortened(traceback.format_exc())
        results.send_bytes(json.dumps({"error": text}).encode("ascii"))
        raise


def limit_memory() -> None:
    """Makes an input that needs absurdly much memory fail by itself.

    Without a limit the kernel would end some process for it, maybe the parent.
    """
    limit = _used_bytes() + _HEADROOM_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    lowest = min([limit] + [given for given in (soft, hard) if given != resource.RLIM_INFINITY])
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))


def out_of_memory() -> tuple[str, str]:
    """Reason and detail of an input that needs more memory than one may take."""
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
        if os.fstat(2).st_size > _PRINTED_BYTES:  # libtiff has a line for every damaged row
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)


def _shortened(text: str) -> str:
    """Where it happened and how the message ends, however long the message is."""
    if len(text) <= _TRACEBACK_CHARS:
        return text
    half = _TRACEBACK_CHARS // 2
    return f"{text[:half]} … {text[-half:]}"
