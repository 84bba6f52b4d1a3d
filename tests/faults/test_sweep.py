"""Fail operation n = 1, 2, ... until a run passes: the loop by which SQLite is tested.

Each case runs every ``parts``-th n, so that cases spread over processes. The nightly profile takes
every n. The default one takes a sample, of other operations for each kind of fault;
``tests/featurestore/storage/test_store.py`` kills each single operation of a store's creation,
erasure and commit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.store import FeatureStore
from tests.conftest import NIGHTLY
from tests.faults.harness import Bench, Run, different

FULL = ("ENOSPC", "EDQUOT")


@dataclass(frozen=True, slots=True)
class Mode:
    """A kind of fault, and how many of the operations get it in the default profile."""

    action: str
    sticky: bool
    every: int

    def __str__(self) -> str:
        return self.action + "-sticky" * self.sticky


def cases(modes: list[tuple[str, bool, int]], *, parts: int) -> list[Any]:
    """Each mode split into cases that begin at different n and have ``parts`` times the stride."""
    found = []
    for number, (action, sticky, every) in enumerate(modes):
        mode = Mode(action, sticky, every)
        stride, count = (1, parts) if NIGHTLY else (every, 1)
        first = 1 if NIGHTLY else 1 + 7 * number % every
        for part in range(count):
            values = (mode, range(first + part * stride, 10_000, count * stride))
            found.append(pytest.param(*values, id=f"{mode}-{part + 1}of{count}"))
    return found


def sweep(
    bench: Bench,
    numbers: range,
    mode: Mode,
    step: Callable[[], tuple[str, Any]],
    after: Callable[[Run], None],
) -> None:
    """Runs ``step`` with a fault at each of ``numbers``, until it needs fewer operations."""
    fired = 0
    for n in numbers:
        run = bench.fault(step(), n, mode.action, sticky=mode.sticky)
        if not run.fired:
            assert run.kind == "done", run
            break
        fired += 1
        after(run)
    else:
        raise AssertionError("no run passed")
    assert fired > 0, "no fault was injected"


def expect(run: Run, mode: Mode, root: Path) -> None:
    """Asserts that the run ended as expected for this fault, with a message."""
    if mode.action == "kill":
        assert run.kind == "killed", run
        assert run.code == -9, run
        return
    if mode.action == "short":
        assert run.kind == "done", run
        return
    assert run.kind == "error", run
    assert run.type == ("StorageFullError" if mode.action in FULL else "StorageError"), run
    assert run.exit_code == 1, run
    assert run.path, run
    assert run.path in run.message, run
    assert Path(run.path).is_relative_to(root), run
    assert len(run.message.splitlines()) <= 4, run
    if mode.action in FULL:
        assert isinstance(run.bytes, int), run
        assert f"{run.bytes:,} bytes" in run.message, run
        if run.where.startswith("write"):
            assert run.bytes > 0, run


def partials(folder: Path) -> set[str]:
    return {str(p) for p in folder.rglob("*.partial")} if folder.exists() else set()


def after_build(bench: Bench, store: Path, mode: Mode, before: set[str]) -> Callable[[Run], None]:
    def check(run: Run) -> None:
        expect(run, mode, store.parent)
        if mode.action != "kill":
            assert partials(store) <= before, run
        bench.recover(store, run)

    return check


@pytest.mark.parametrize(
    ("mode", "numbers"),
    cases(
        [
            ("kill", False, 14),
            ("ENOSPC", False, 37),
            ("ENOSPC", True, 71),
            ("EIO", False, 71),
            ("EIO", True, 71),
            ("EDQUOT", False, 97),
            ("EROFS", True, 97),
            ("short", False, 25),
            ("short", True, 31),
        ],
        parts=8,
    ),
)
def test_build(bench: Bench, store: Path, mode: Mode, numbers: range) -> None:
    def step() -> tuple[str, Any]:
        shutil.rmtree(store, ignore_errors=True)
        return bench.build(store)

    sweep(bench, numbers, mode, step, after_build(bench, store, mode, set()))


@pytest.fixture(scope="session")
def half_built(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chunk committed, the next one's files half written, and a torn line in the ledger."""
    store = tmp_path_factory.mktemp("half") / "store"
    run = bench.fault(bench.build(store), 115, "kill")
    assert run.kind == "killed"
    assert partials(store)
    assert len(FeatureStore(store).ledger) == 1, run
    with (store / "records/ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"chunk": 1, "files": {"clip_te')
    return store


@pytest.mark.parametrize(
    ("mode", "numbers"),
    cases(
        [
            ("kill", False, 13),
            ("ENOSPC", False, 41),
            ("ENOSPC", True, 61),
            ("EIO", False, 61),
            ("EIO", True, 61),
            ("short", True, 31),
        ],
        parts=4,
    ),
)
def test_resume(bench: Bench, half_built: Path, store: Path, mode: Mode, numbers: range) -> None:
    """Faults during recovery: of the sweep, of the ledger's cut, and of the rest of the build."""
    before = {str(store / Path(p).relative_to(half_built)) for p in partials(half_built)}

    def step() -> tuple[str, Any]:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(half_built, store)
        return bench.build(store, resume=True)

    sweep(bench, numbers, mode, step, after_build(bench, store, mode, before))


@pytest.fixture(scope="session")
def other_store(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store of other numbers, to detect files that survive an overwrite."""
    store = tmp_path_factory.mktemp("other") / "store"
    run = bench.run([bench.build(store, seed=7)])
    assert run.kind == "done", run
    return store


@pytest.mark.parametrize(
    ("mode", "numbers"),
    cases([("kill", False, 21), ("ENOSPC", False, 71), ("EIO", True, 71)], parts=8),
)
def test_overwrite(
    bench: Bench, other_store: Path, store: Path, mode: Mode, numbers: range
) -> None:
    """An overwrite leaves the old store, no store or the new one, and no mixture."""

    def step() -> tuple[str, Any]:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(other_store, store)
        return bench.build(store, overwrite=True)

    def check(run: Run) -> None:
        expect(run, mode, store.parent)
        if mode.action != "kill":
            assert not partials(store), run
        if (store / "zarr.json").exists() and FeatureStore(store).fingerprint["seed"] == 7:
            done = bench.run([("verify", str(store)), bench.build(store, overwrite=True)])
            assert done.kind == "done", done
            assert done.values[0] == [], run
        bench.recover(store, run)

    sweep(bench, numbers, mode, step, check)


@pytest.mark.parametrize(
    ("mode", "numbers"),
    cases(
        [
            ("kill", False, 5),
            ("ENOSPC", False, 13),
            ("EIO", True, 13),
            ("short", False, 7),
            ("short", True, 7),
        ],
        parts=1,
    ),
)
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_materialize(bench: Bench, tmp_path: Path, mode: Mode, numbers: range, again: bool) -> None:
    """The manifest only exists if all files are of this run; a second run writes the same."""
    out = tmp_path / "out"
    step = ("materialize", [str(bench.golden_store), str(out)])
    assert bench.run([step]).kind == "done"
    expected = bench.value(("digest", str(out)))
    manifest = next(out.glob("*_manifest.json"))

    def fresh() -> tuple[str, Any]:
        if again:  # the files of an earlier run are there, but not these
            for file in out.iterdir():
                file.write_bytes(b"of another store" if file.suffix != ".json" else b"{}")
        else:
            shutil.rmtree(out)
        return step

    def check(run: Run) -> None:
        expect(run, mode, tmp_path)
        found = bench.value(("digest", str(out)))
        if manifest.exists():
            written = manifest.read_bytes() != b"{}"
            assert not written or different(found, expected) == {}, run
            if not written:  # the old run's, with all of the old run's files
                files = [f for f in out.iterdir() if f != manifest and f.suffix != ".partial"]
                assert all(f.read_bytes() == b"of another store" for f in files), run
        if mode.action != "kill":
            assert not partials(out), run
        done = bench.run([step, ("digest", str(out))])
        assert done.kind == "done", done
        left = {n: d for n, d in done.values[1].items() if not n.endswith(".partial")}
        assert different(left, expected) == {}, run

    sweep(bench, numbers, mode, fresh, check)
    # The store is only read, whatever happens: its rows are never the scaled ones.
    assert different(bench.value(("digest", str(bench.golden_store))), bench.golden) == {}


def damage(store: Path) -> None:
    """A wrong byte in a chunk, and a line of the ledger that is not what was written."""
    chunk = store / "clip_text/c.2.0.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    ledger = store / "records/ledger.jsonl"
    lines = ledger.read_bytes().split(b"\n")
    lines[0] = lines[0].replace(b'"chunk": 0', b'"chunk": 9')
    ledger.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("mode", "numbers"),
    cases([("kill", False, 3), ("ENOSPC", False, 5), ("EIO", True, 4)], parts=1),
)
def test_repair(bench: Bench, store: Path, mode: Mode, numbers: range) -> None:
    """A failed repair leaves the damage unchanged or repaired; a second repair completes it."""
    name = str(store)

    def step() -> tuple[str, Any]:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(bench.golden_store, store)
        damage(store)
        return "repair", name

    def check(run: Run) -> None:
        expect(run, mode, store.parent)
        if mode.action != "kill":
            assert not partials(store), run
        found, repaired = bench.run([("verify", name), ("repair", name)]).values
        assert bool(found) == bool(repaired), run
        bench.recover(store, run)

    sweep(bench, numbers, mode, step, check)


def test_damage_is_there(bench: Bench, store: Path) -> None:
    shutil.copytree(bench.golden_store, store)
    damage(store)
    assert len(bench.value(("verify", str(store)))) == 2


def operations() -> Iterator[str]:
    yield from ("mkdir", "open", "write", "fsync", "rename")


def test_the_sweep_meets_every_kind_of_operation(bench: Bench, store: Path) -> None:
    """Enough operations, and of every kind, that no sweep above can have ended early."""
    assert bench.operations > 140
    for operation in operations():
        plan = {"n": 1, "action": "EIO", "only": [operation]}
        run = bench.run([bench.build(store)], fault=plan)
        assert run.fired == 1, operation
        assert run.where.startswith(operation), run
        bench.recover(store, run)
        shutil.rmtree(store)
