"""Environments that must not matter, and limits that must be reported: locale, clock, resources.

Everything here is one small text build, in this process or in a separate one, and its bytes are
compared with those of one golden build.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers import progress
from consumers.build import build
from featurestore.errors import InputError, ProducerError
from featurestore.storage.store import FeatureStore
from featurestore.system import durable
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.store import verify
from producers.slots import SlotLayout
from tests import forked
from tests.conftest import ROOT, tree_digest
from tests.faults.fakes import (
    BATCH,
    CHUNK,
    CHUNKS,
    DIMS,
    VIEWS,
    committed,
    config,
    loaded,
    make,
    make_data,
)
from tests.faults.harness import COUNTS
from tests.producers.test_pool import fds

# Names that an ASCII locale cannot say, and that sort otherwise as bytes that were escaped.
NAMES = ["é", "z", "\U0001f3ac", "ﬁ", os.fsdecode(b"not \xff utf-8")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_data(tmp_path_factory.mktemp("limits") / "data", 13)
    for number, name in enumerate(NAMES):
        (folder / f"{name}.jpg").write_bytes(b"")
        (folder / f"{name}.json").write_text(json.dumps({"plot": f"w{number} w1 w2 w3 é"}))
    return folder


@pytest.fixture(scope="module")
def golden(data: Path) -> Path:
    store = data.parent / "golden"
    make(data, store)
    return store


# The environment -----------------------------------------------------------------------------

DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from manyviews.main import run_command
from tests.faults.fakes import loaded
print(sys.getfilesystemencoding(), flush=True)
with loaded():
    sys.exit(run_command(sys.argv[1:]))
"""

# Several at once: each must not matter, so neither may all of them.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "ascii": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "1"}
    | {"PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"},
    "utf-8": {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "2", "TZ": "UTC+12"},
}


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.nightly)])
def test_the_environment_does_not_matter(
    data: Path, golden: Path, tmp_path: Path, encoding: str
) -> None:
    """The command in another locale, time zone, folder, umask, and with 64 descriptors."""
    mask, store = {"ascii": 0o077, "utf-8": 0o002}[encoding], tmp_path / "store"
    command: list[str | Path]
    command = ["build", "--data-dir", data.name, "--store", store, "--views", str(VIEWS)]
    command += ["--chunk", str(CHUNK), "--features", ",".join(DIMS), "--device", "cpu"]
    command += [f"--batch-size={name}={BATCH}" for name in DIMS]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *command, "--producers=1"],
        cwd=data.parent,
        capture_output=True,
        umask=mask,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **ENVIRONMENTS[encoding]},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"18 samples" in done.stderr
    # The surroundings are those that were meant.
    assert done.stdout.decode().split() == [encoding]
    for path in (store, *store.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask
    COUNTS["environment"] += len(ENVIRONMENTS[encoding]) + 3
    assert tree_digest(store) == tree_digest(golden)


# The clock -----------------------------------------------------------------------------------


class Clock(datetime.datetime):
    """A wall clock that goes back an hour with every call."""

    looks = 0
    start = 0.0

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.datetime.fromtimestamp(cls.tick(), tz)

    @classmethod
    def tick(cls) -> float:
        cls.looks += 1
        return cls.start - 3600.0 * cls.looks


@pytest.mark.parametrize(
    "start", [86_400.0 * 365, 2**31 + 7.0e6, 253_000_000_000.0], ids=["1970", "2038", "9987"]
)
def test_the_wall_clock_does_not_matter(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: float
) -> None:
    """A clock that runs backwards in another century, and inputs from before it."""
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    for number, path in enumerate(sorted(copied.iterdir())):
        os.utime(path, (start + number, -1.0 * number))
    store = tmp_path / "store"
    monkeypatch.setattr(Clock, "looks", 0)
    monkeypatch.setattr(Clock, "start", start)
    monkeypatch.setattr(progress, "datetime", Clock)
    monkeypatch.setattr(time, "time", Clock.tick)
    log = progress.RunLog(store / "records" / "runs")
    try:
        make(copied, store, (log,))
    finally:
        log.close()
    assert Clock.looks > CHUNKS
    COUNTS["clock"] += Clock.looks
    assert tree_digest(store) == tree_digest(golden)


def test_no_timeout_looks_at_the_wall_clock() -> None:
    """All decisions use the monotonic clock."""
    for package in ("featurestore", "producers", "consumers"):
        for path in (ROOT / package).rglob("*.py"):
            assert "time.time()" not in path.read_text(), path


# Processes, descriptors, memory --------------------------------------------------------------


@pytest.mark.usefixtures("golden")  # a build before, which opens what stays open
@pytest.mark.parametrize("number", [1, 2])
def test_a_process_that_cannot_be_started(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """EAGAIN from fork, for the first producer or the second: one clear error, nothing left."""
    started, honest = 0, forked.Forked

    def refuse(*arguments: Any, **options: Any) -> Any:
        nonlocal started
        started += 1
        if started == number:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return honest(*arguments, **options)

    monkeypatch.setattr("producers.process.subprocess.Popen", refuse)
    before = fds()
    with pytest.raises(ProducerError, match=r"could not be started.*\n.*--producers") as caught:
        make(data, tmp_path / "store", producers=3)
    assert "temporarily unavailable" in str(caught.value)
    assert started == number
    COUNTS["no process"] += 1
    assert fds() == before
    monkeypatch.undo()
    make(data, tmp_path / "store", resume=True)
    assert verify(tmp_path / "store").findings == []


REFUSED = """
import os, resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from producers.pool import ProducerPool
from producers.sources.pairs import scan
from producers.sources.readers import pair_source
from producers.worker import Job
from featurestore.errors import ProducerError
job = Job(pair_source(Path(sys.argv[1])), 4, 123, (), (), 200)
samples = scan(Path(sys.argv[1])).samples
import codecs; codecs.lookup("ascii")  # another user may not be able to load it
{limit}
try:
    ProducerPool(job, samples, producers=40, timeout_s=60)
except ProducerError as e:
    print(e)
    print(len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "Too many open files"),
        (
            # A user that has no right to more: root is never refused.
            "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
            "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))",
            "Resource temporarily unavailable",
        ),
    ],
    ids=["descriptors", "processes"],
)
def test_real_limits_that_are_too_low_for_the_producers(
    tmp_path: Path, limit: str, problem: str
) -> None:
    if "setuid" in limit and os.getuid() != 0:
        limit = limit.split("\n")[1]
    elif "setuid" in limit and not is_mapped(54321):
        pytest.skip("root of a user namespace in which there is no other user")
    folder = make_data(tmp_path / "data", 2)
    script = REFUSED.format(root=str(ROOT), limit=limit)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    message, advice, descriptors = done.stdout.splitlines()
    assert problem in message
    assert "--producers" in advice
    assert int(descriptors) <= 5  # standard ones, and the listing's own
    COUNTS["limit"] += 1


def is_mapped(uid: int) -> bool:
    """Whether there is such a user in this namespace."""
    lines = Path("/proc/self/uid_map").read_text("ascii").splitlines()
    spans = [tuple(map(int, line.split())) for line in lines]
    return any(first <= uid < first + count for first, _, count in spans)


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
from producers import process
from producers.slots import Ring, SlotLayout
from featurestore.errors import ConfigError
layout = SlotLayout(7, (), (31,))
resource.setrlimit(resource.RLIMIT_FSIZE, ({allowed}, {allowed}))
try:
    ring = Ring(layout, 5)
except ConfigError as e:
    print(e)
else:
    for slot in ring.slots:
        slot.stage[...] = 1
        slot.ids[0][...] = 1
        slot.lengths[0][...] = 1
    print(sum(int(slot.ids[0].sum()) for slot in ring.slots))
"""


@pytest.mark.parametrize("missing", [0, 4096])
def test_a_ring_gets_exactly_what_is_there_or_says_so(missing: int) -> None:
    """Memory that the kernel refuses: the exact amount suffices, a page less is an error."""
    layout = SlotLayout(7, (), (31,))
    needed = 5 * layout.slot_bytes
    script = FULL.format(root=str(ROOT), allowed=needed - missing)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if missing:
        assert f"need {needed:,} bytes" in done.stdout
        assert "File too large" in done.stdout
        assert "--slots" in done.stdout
        COUNTS["ring"] += 1
    else:
        assert int(done.stdout) == 5 * 7 * 31


# Readers during a build ----------------------------------------------------------------------


def test_a_reader_at_every_disk_operation_sees_committed_chunks_only(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time a reader finds complete chunks of correct numbers, or no store."""
    store, seen = tmp_path / "store", []
    right = FeatureStore(golden)

    def look(operation: str, _path: Path, size: int) -> int:
        if (store / "zarr.json").exists():
            monkeypatch.setattr(durable, "hook", durable._pass)
            seen.append(look_at(operation))
            monkeypatch.setattr(durable, "hook", look)
        return size

    def look_at(operation: str) -> tuple[str, int]:
        found = FeatureStore(store)
        done = [e.chunk for e in found.ledger.entries]
        assert done == list(range(len(done)))
        # The last one was checked when it came: those before it do not change any more.
        for chunk in done[-1:]:
            for name in DIMS:
                np.testing.assert_array_equal(
                    found.read_chunk(name, chunk), right.read_chunk(name, chunk)
                )
        if not found.complete:
            with pytest.raises(InputError, match="not complete"):
                FeatureDataset(store)
        if done:
            growing = FeatureDataset(store, views="all", zscore="none", partial=True)
            last = right.read_chunk("clip_text", done[-1])
            assert len(growing) == sum(len(right.spec.samples_of(chunk)) for chunk in done)
            rows = growing.batch(range(len(growing) - len(last), len(growing)))["clip_text"]
            np.testing.assert_array_equal(rows.numpy(), last)
        report = verify(store)
        assert report.findings == []
        assert sorted(report.committed) == done
        return operation, len(done)

    monkeypatch.setattr(durable, "hook", look)
    make(data, store)
    assert {done for _, done in seen} == set(range(CHUNKS + 1))
    assert {"open", "write", "fsync", "rename"} <= {operation for operation, _ in seen}
    COUNTS["reader during a build"] += len(seen)
    assert tree_digest(store) == tree_digest(golden)
    assert len(FeatureDataset(store)) == right.spec.samples


def test_a_dataset_that_is_open_is_not_disturbed_by_the_next_build(
    data: Path, tmp_path: Path
) -> None:
    """``--overwrite`` replaces the files: a reader that mapped the old files still reads them."""
    store = tmp_path / "store"
    make(data, store)
    dataset = FeatureDataset(store, zscore="none", views="all")
    before = {name: value.clone() for name, value in dataset.batch(range(len(dataset))).items()}
    make(data, store, overwrite=True, seed=7)
    for name, value in dataset.batch(range(len(dataset))).items():
        assert value.equal(before[name])
    again = FeatureDataset(store, zscore="none", views="all").batch(range(len(dataset)))
    assert not again["clip_text"].equal(before["clip_text"])


def test_a_chunk_more_is_seen_by_who_opens_again(data: Path, tmp_path: Path) -> None:
    """A reader keeps what it found when it opened; it never sees half of a later chunk."""
    store, opened = tmp_path / "store", []

    def observe(event: str, _facts: Mapping[str, Any]) -> None:
        if event == "chunk":
            opened.append(FeatureStore(store))

    with loaded():
        build(config(data, store), [observe])
    assert [len(found.ledger) for found in opened] == list(range(1, CHUNKS + 1))
    assert [len(found.records) for found in opened] == [
        min(18, CHUNK * (c + 1)) for c in range(CHUNKS)
    ]
    assert committed(store) == list(range(CHUNKS))
