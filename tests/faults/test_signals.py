"""Signals at every disk operation, in imports and in handlers; and two that want the same store.

``tests/consumers/test_build.py`` sends them from outside to a build as a user starts it; here each
comes at an exact place.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import StoreLockedError
from featurestore.storage.store import FeatureStore
from featurestore.system.locks import FileLock, lock_holder
from featurestore.verify.store import verify
from tests.conftest import NIGHTLY, ROOT, tree_digest
from tests.faults.fakes import committed, make_data
from tests.faults.harness import COUNTS, Bench, LightPopen, Run, different, end

CHUNKS = 6
EVERY = 1 if NIGHTLY else 60
# What is sent, and the operation at which a sweep begins: each meets other operations.
SIGNALS = {"SIGINT": 4, "SIGTERM": 24, "SIGHUP": 44, "SIGINT+SIGTERM": 14}
HELD_DOWN = 34
SOUP = ("Traceback", "Exception ignored", "most recent call")


def signalled(bench: Bench, store: Path, n: int, names: str, *, sticky: bool = False) -> Run:
    """A build as a user types it, with signals to itself at disk operation ``n``."""
    shutil.rmtree(store, ignore_errors=True)
    return bench.fault(bench.command(store), n, names, sticky=sticky)


@pytest.fixture(scope="module")
def count(short: Bench, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of operations of a build."""
    store = tmp_path_factory.mktemp("counted") / "store"
    run = short.run([short.command(store)], fault={"n": -1, "action": "none"})
    assert run.values[0]["code"] == 3, run  # one of the samples is bad
    return run.operations


def operations(count: int, start: int) -> range:
    return range(1 if NIGHTLY else start, count + 1, EVERY)


def advises(errors: str, done: int) -> bool:
    """Whether a message says how to continue; before the first chunk it may be to start again."""
    return "--resume" in errors or (done == 0 and "run the same command again" in errors)


@pytest.mark.parametrize("names", SIGNALS)
def test_a_signal_at_every_operation(short: Bench, store: Path, names: str, count: int) -> None:
    """The current chunk is committed, and the exit code names the signal."""
    first = getattr(signal, names.partition("+")[0])
    codes = set()
    for n in operations(count, SIGNALS[names]):
        run = signalled(short, store, n, names)
        assert run.fired == 1, run
        done = len(FeatureStore(store).ledger) if (store / "zarr.json").exists() else 0
        if run.kind == "killed":
            # Before the first chunk is started, a signal acts as on any program.
            assert run.code in (-signal.SIGTERM, -signal.SIGHUP), run
            assert names != "SIGINT", run
            assert done == 0, run
        else:
            [ended] = run.values
            codes.add(ended["code"])
            assert not any(soup in ended["stderr"] for soup in SOUP), run
            if ended["code"] == 3:  # it came when all was done
                assert done == CHUNKS, run
                continue
            assert ended["code"] == 128 + first or (ended["code"] == 130 and done == 0), run
            assert advises(ended["stderr"], done), run
            if f"Stopped by {first.name} after {done} of {CHUNKS} chunks" not in ended["stderr"]:
                assert done == 0, run
        assert not list(store.rglob("*.partial")) or done == 0, run
        short.recover(store, run)
    assert 128 + first in codes, codes
    assert 3 in codes or not NIGHTLY, codes


def test_ctrl_c_held_down_stops_at_once(short: Bench, store: Path, count: int) -> None:
    """The signal is sent again at every later operation, in commit, clean-up and handler."""
    met = 0
    for n in operations(count, HELD_DOWN):
        run = signalled(short, store, n, "SIGINT", sticky=True)
        assert run.fired >= 1, run
        [ended] = run.values
        assert not any(soup in ended["stderr"] for soup in SOUP), run
        if ended["code"] == 3:
            assert len(FeatureStore(store).ledger) == CHUNKS, run
            continue
        assert ended["code"] == 130, run
        done = len(FeatureStore(store).ledger) if (store / "zarr.json").exists() else 0
        assert advises(ended["stderr"], done), run
        met += 1
        short.recover(store, run)
    assert met > 2


def test_a_second_sigterm_ends_it_like_any_program(short: Bench, store: Path) -> None:
    for n in (80, 110):
        run = signalled(short, store, n, "SIGTERM", sticky=True)
        assert (run.kind, run.code) == ("killed", -signal.SIGTERM), run
        short.recover(store, run)


# While it starts -----------------------------------------------------------------------------

# Sends a signal the first time that a module is looked for, and says so.
AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MODULE"]:
            sys.meta_path.remove(self)
            with open(os.environ["MARK"], "a") as mark:
                mark.write(name)
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

if os.environ.pop("FRESH", ""):
    sys.meta_path.insert(0, Finder())
"""
# All that is imported once the command line is read, which is all that takes longer than a blink.
MODULES = ["consumers.build", "torch"]
MODULES += ["numpy", "numpy.linalg", "torch.nn", "rich.console"] if NIGHTLY else []


@pytest.mark.parametrize("name", MODULES)
def test_ctrl_c_in_an_import(bench: Bench, tmp_path: Path, name: str) -> None:
    """A signal during any import: no traceback, and never status 0."""
    site, mark = tmp_path / "site", tmp_path / "mark"
    site.mkdir()
    (site / "sitecustomize.py").write_text(AT_IMPORT)
    environment = {**os.environ, "PYTHONPATH": str(site), "MODULE": name, "MARK": str(mark)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *bench.command(tmp_path / "store")[1]],
        env=environment | {"SIGNAL": "SIGINT", "FRESH": "yes"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert mark.read_text() == name, done
    COUNTS["SIGINT in an import"] += 1
    assert done.returncode in (130, -signal.SIGINT), done
    assert not any(soup in done.stderr for soup in SOUP), done.stderr
    assert not (tmp_path / "store").exists()


def test_a_reader_that_goes_away(bench: Bench, tmp_path: Path) -> None:
    """``build 2>&1 | head -1``: the build ends without further output, and can be resumed."""
    folder = tmp_path / "dataset"
    shutil.copytree(bench.data, folder)
    driver = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from tests.faults.fakes import loaded\n"
        "from manyviews import main\n"
        "with loaded():\n"
        "    main.main()\n"
    )
    arguments = bench.command(tmp_path / "store")[1]
    for batch in ("clip_text=16", "blip2_text=16"):
        assert batch in arguments
    process = LightPopen(
        [sys.executable, "-c", driver, str(ROOT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 1
    assert first
    COUNTS["output closed"] += 1
    assert lock_holder(tmp_path / "store/records/runs/lock") is None


# Two at once ---------------------------------------------------------------------------------


def test_a_second_build_is_told_at_once_who_has_the_store(bench: Bench, store: Path) -> None:
    """The first build waits in a stopped process; the second one changes nothing."""
    first = bench.zygote.start(bench.task([bench.build(store)], fault=_stopping(100)))
    _wait_for_stop(first)
    before = tree_digest(store, mtimes=True)
    for changes in ("--resume", "--overwrite"):
        start = time.monotonic()
        arguments = [sys.executable, "-c", SECOND, str(ROOT), str(store), changes]
        with LightPopen(arguments, stdout=subprocess.PIPE, text=True) as second:
            found = second.communicate(timeout=300)[0]
        assert found.split() == [str(first), os.uname().nodename], found
        assert time.monotonic() - start < 30
        COUNTS["second writer"] += 1
    assert tree_digest(store, mtimes=True) == before
    end(first, signal.SIGCONT)
    run = bench.zygote.wait(first)
    assert run.kind == "done", run
    assert different(tree_digest(store), bench.golden) == {}


def test_a_killed_holder_leaves_no_lock(bench: Bench, store: Path) -> None:
    first = bench.zygote.start(bench.task([bench.build(store)], fault=_stopping(100)))
    _wait_for_stop(first)
    with pytest.raises(StoreLockedError) as caught:
        FileLock(store / "records/runs/lock", store)
    assert caught.value.pid == first
    end(first, signal.SIGKILL)
    run = bench.zygote.wait(first)
    assert run.code == -signal.SIGKILL, run
    assert run.leftovers == []
    assert (store / "records/runs/lock").exists()  # an unlocked lock file has no meaning
    COUNTS["lock of a killed holder"] += 1
    bench.recover(store, run)


# A build in which writing the first chunk waits for a file, while the second chunk is refused.
HELD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from featurestore.system import durable
from consumers.build import build
from tests.faults.fakes import config, loaded

data, store, go, mark = map(Path, sys.argv[2:])

def hook(operation, path, size):
    if operation == "write" and "c.0." in path.name and not go.exists():
        mark.touch()
        while not go.exists():
            time.sleep(0.01)
    return size

durable.hook = hook
with loaded():
    build(config(data, store, bad_sample="fail"))
"""


def test_an_error_and_ctrl_c_twice_keep_the_lock_while_a_chunk_is_written(
    bench: Bench, tmp_path: Path
) -> None:
    """When the lock is free, no thread may still write."""
    data, store, go, mark = (tmp_path / name for name in ("data", "store", "go", "mark"))
    make_data(data)
    (data / "0000005.json").write_bytes(b"{")  # the second chunk has a sample that cannot be used
    arguments = [sys.executable, "-c", HELD, *map(str, (ROOT, data, store, go, mark))]
    process = LightPopen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        _wait_until(mark.exists)
        waiting = f"/proc/{process.pid}/task/{process.pid}/wchan"
        _wait_until(lambda: "futex" in Path(waiting).read_text())
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert process.poll() is None
        assert lock_holder(store / "records/runs/lock") == (process.pid, os.uname().nodename)
        go.touch()
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
        process.wait()
    COUNTS["error and SIGINT twice while a chunk is written"] += 1
    assert "KeyboardInterrupt" in errors, errors
    assert "BadInputsError" in errors, errors  # what it came upon
    assert committed(store) == [0]
    assert verify(store).findings == []


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SECOND = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from featurestore.errors import StoreLockedError
from featurestore.storage.writer import take_lock
try:
    take_lock(Path(sys.argv[2]))
except StoreLockedError as e:
    print(e.pid, e.host)
"""


def _stopping(n: int) -> dict[str, Any]:
    return {"n": n, "action": "SIGSTOP"}


def _wait_for_stop(pid: int) -> None:
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.005)
