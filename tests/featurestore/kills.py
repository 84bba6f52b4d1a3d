"""Writers that are killed at a chosen disk operation, in forks of a process that is small.

A fork copies the page tables of its parent: 7 ms here, and 100 ms where torch and the models of
other tests are in memory. Actions are therefore functions of this module, or of what it imports.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from featurestore.imdb import labels  # noqa: F401  its functions are called
from featurestore.imdb.materialize import materialize
from featurestore.storage.creation import create, erase
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import SharedWriter, StoreWriter, take_lock
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from tests import warm
from tests.featurestore.stores import (
    KILLED,
    commit,
    die_at,
    make_fingerprint,
    make_records,
    make_rows,
    make_samples,
)

_RUN = "from tests.featurestore import kills; kills.run()"


class _Light(warm.Popen):
    imported = (__name__,)


def killed_at(n: int, action: Callable[..., object], *arguments: object, **named: object) -> bool:
    """Calls ``action`` in a process that dies, without any clean-up, at disk operation ``n``.

    It dies before the operation; of a write, the first half still reaches the file.

    Returns:
        Whether it died there; False where it needs fewer operations.
    """
    call = pickle.dumps((action, arguments, named)).hex()
    command = [sys.executable, "-c", _RUN, str(n), call]
    with _Light(command, cwd=warm.ROOT, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, KILLED), errors.decode()
    return bool(process.returncode == KILLED)


def run() -> None:
    """Makes the call that is given on the command line."""
    n, call = sys.argv[1:]
    action, arguments, named = pickle.loads(bytes.fromhex(call))
    die_at(int(n))
    action(*arguments, **named)
    os._exit(0)


# Actions ----------------------------------------------------------------------------------------


def create_store(path: Path, spec: StoreSpec, stems: list[str]) -> None:
    """Creates a store without chunks."""
    create(path, spec, make_fingerprint(spec, stems), make_samples(stems), take_lock(path))


def erase_store(path: Path) -> None:
    """Erases a store."""
    erase(path)


def commit_chunk(path: Path, chunk: int) -> None:
    """Commits a chunk, with a line of the ledger."""
    with StoreWriter(path, take_lock(path)) as writer:
        commit(writer, [chunk], make_rows(writer.spec), make_records(writer.spec))


def record_chunk(path: Path, chunk: int) -> None:
    """Commits a chunk by a record, as a worker does."""
    lock = take_lock(path, worker=True, shared=True)
    writer = SharedWriter.of(FeatureStore(path), lock)
    commit(writer, [chunk], make_rows(writer.spec), make_records(writer.spec))


def seal(path: Path) -> None:
    """Turns records into lines of the ledger."""
    StoreWriter(path, take_lock(path)).finish()


def repair_store(path: Path) -> list[int]:
    """Drops the damaged chunks; returns their numbers."""
    lock = take_lock(path)
    try:
        return repair(path, verify(path))
    finally:
        lock.release()


def materialize_store(path: Path, folder: Path, zscore: str = "all") -> None:
    """Writes the files of a store."""
    materialize(FeatureStore(path), folder, zscore=zscore)
