"""Every byte of every file of records, flipped: ``verify`` says so, or the file decides nothing.

``docs/reliability.md`` declares the files that decide nothing; for each of them it is shown here
that a flip changes no answer that matters.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumers.progress import RunLog
from featurestore.errors import CorruptStoreError, StoreLockedError
from featurestore.storage import writer as stores
from featurestore.storage.store import RUNS, FeatureStore
from featurestore.system.locks import FileLock, Holder, lock_holder
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from manyviews import main
from manyviews.operations.report.runs import throughput
from manyviews.operations.watch.runs import newest_run
from producers.sources.inputs import changed_inputs, read_cache, stat_inputs
from producers.sources.pairs import scan
from tests.conftest import NIGHTLY, ROOT, tree_digest
from tests.faults import fakes
from tests.faults.harness import COUNTS
from tests.featurestore.stores import make_store

LEDGER, SAMPLES = "records/ledger.jsonl", "records/samples.jsonl"
EXTENSION = "records/extension"
GUARDED = [LEDGER, SAMPLES, f"{EXTENSION}/{LEDGER}", f"{EXTENSION}/{SAMPLES}"]
ADVISORY = [f"{RUNS}/inputs.jsonl", f"{RUNS}/*.log", f"{RUNS}/lock"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data folder and its store: two chunks, a log, sizes of inputs, and half an addition."""
    root = tmp_path_factory.mktemp("records")
    data, store = fakes.make_data(root / "data", samples=5), root / "store"
    log = RunLog(store / RUNS)
    fakes.make(data, store, (log,), features=("clip_text",), batch_sizes={"clip_text": 8})
    log.close()
    make_store(
        store / EXTENSION, dims={"blip2_text": 64}, stems=scanned(data), chunks=[0], samples=5
    )
    return data, store


def scanned(data: Path) -> list[str]:
    return [sample.stem for sample in scan(data).samples]


@pytest.fixture
def copy(sound: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound[1], tmp_path / "store"))


def flips(path: Path) -> Iterator[int]:
    """Flips one bit of each byte in turn, and every bit of the last byte; puts all back.

    By default, of every third byte.
    """
    whole = path.read_bytes()
    changes = [(at, 1 << at % 8) for at in range(0, len(whole), 1 if NIGHTLY else 3)]
    changes += [(len(whole) - 1, 1 << bit) for bit in range(8)]
    for at, change in changes:
        data = bytearray(whole)
        data[at] ^= change
        path.write_bytes(data)
        COUNTS["flipped byte of a record"] += 1
        yield at
    path.write_bytes(whole)


def test_no_file_of_records_is_left_out(copy: Path) -> None:
    """Chunks and Zarr documents are those of ``test_damage``."""
    names = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    records = {n for n in names if not re.search(r"/c\.\d|zarr\.json$", n)}
    patterns = {re.sub(r"[^/]+\.log$", "*.log", name) for name in records}
    assert patterns - {f"{EXTENSION}/{RUNS}/lock"} == {*GUARDED, *ADVISORY}


@pytest.mark.parametrize("file", GUARDED)
def test_a_flip_of_any_byte_is_damage(copy: Path, file: str) -> None:
    for at in flips(copy / file):
        assert [f.file for f in verify(copy).findings] == [file], at
    assert verify(copy).findings == []


@pytest.mark.parametrize("file", GUARDED)
def test_verify_exits_with_1_for_the_last_byte(
    copy: Path, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A last line feed that is none was taken for the torn line of a killed build."""
    data = bytearray((copy / file).read_bytes())
    data[-1] ^= 1
    (copy / file).write_bytes(data)
    assert main.run_command(["verify", "--store", str(copy)]) == 1
    assert f"damaged: {file}: " in capfd.readouterr().err


def test_a_ledger_without_its_last_line_feed_is_refused_and_repaired(
    sound: tuple[Path, Path], copy: Path
) -> None:
    shutil.rmtree(copy / EXTENSION)
    whole = (copy / LEDGER).read_bytes()
    (copy / LEDGER).write_bytes(whole[:-1] + b"\x0b")
    before = tree_digest(copy)
    with pytest.raises(CorruptStoreError, match="line 2 is whole, but no line feed ends it"):
        FeatureStore(copy)
    assert tree_digest(copy) == before
    lock = stores.take_lock(copy)
    assert repair(copy, verify(copy)) == []  # no chunk is lost by it
    lock.release()
    assert (copy / LEDGER).read_bytes() == whole
    assert verify(copy).findings == []


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_line_that_a_kill_cut_is_no_damage(copy: Path, cut: int) -> None:
    shutil.rmtree(copy / EXTENSION)
    whole = (copy / LEDGER).read_bytes()
    (copy / LEDGER).write_bytes(whole[:-cut])
    found = verify(copy)
    assert found.findings == []
    assert "the ledger ends in a torn line, which a build removes" in found.notices
    assert FeatureStore(copy).ledger.missing == [1]


# What decides nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADVISORY)
def test_what_decides_nothing_is_declared(name: str) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    section = page.partition("## What is not promised")[2].partition("\n## ")[0]
    assert f"`{name}`" in section


def test_a_flip_in_the_sizes_of_inputs_hides_no_change(
    sound: tuple[Path, Path], copy: Path, tmp_path: Path
) -> None:
    """At most, inputs are read again that did not change."""
    data = Path(shutil.copytree(sound[0], tmp_path / "data"))
    changed = data / "0000003.json"
    old = changed.stat()
    changed.write_bytes(changed.read_bytes().replace(b"w", b"v"))
    os.utime(changed, ns=(old.st_atime_ns, old.st_mtime_ns + 3_141_592_653))
    found, records = scan(data), FeatureStore(copy).records
    cache = copy / RUNS / "inputs.jsonl"
    for at in flips(cache):
        names, _ = changed_inputs(found, records, stat_inputs(found), read_cache(cache))
        assert names == {3: [changed.name]}, at


def test_a_flip_in_a_log_is_no_failure(copy: Path) -> None:
    [log] = (copy / RUNS).glob("*.log")
    now = datetime.now(UTC)
    for at in flips(log):
        run = newest_run(copy / RUNS)
        assert run is not None
        numbers: list[Callable[[], float | None]] = [
            run.samples_per_s,
            lambda run=run: run.samples_per_s(now),  # type: ignore[misc]
            lambda run=run: run.eta_s(5, now),  # type: ignore[misc]
        ]
        for number in numbers:
            value = number()
            assert value is None or (math.isfinite(value) and value >= 0), at
        assert isinstance(run.bottleneck, str)
        assert all(math.isfinite(rate) for rate in throughput(copy).samples_per_s)
    assert verify(copy).findings == []


def test_a_flip_in_the_name_of_a_locks_holder_gives_nothing_free(copy: Path) -> None:
    path = copy / RUNS / "lock"
    lock = stores.take_lock(copy)
    for at in flips(path):
        assert isinstance(lock_holder(path), Holder), at
        if at % 16 == 0:  # each try takes a twentieth of a second
            with pytest.raises(StoreLockedError, match="is being written by"):
                FileLock(path, copy)
    lock.release()
    assert lock_holder(path) is None
