"""The store's lock while chunks are written."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from featurestore.errors import StoreLockedError
from featurestore.system.locks import FileLock


def test_a_lock_is_not_released_while_a_chunk_is_written(tmp_path: Path) -> None:
    """An interrupted build releases it in another thread than the one that writes a chunk."""
    path = tmp_path / "lock"
    lock = FileLock(path, tmp_path)
    writing, go = threading.Event(), threading.Event()

    def write() -> None:
        with lock.kept():
            writing.set()
            assert go.wait(60)

    threads = [threading.Thread(target=write), threading.Thread(target=lock.release)]
    threads[0].start()
    assert writing.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    with pytest.raises(StoreLockedError):
        FileLock(path, tmp_path)
    go.set()
    for thread in threads:
        thread.join(60)
    FileLock(path, tmp_path).release()
