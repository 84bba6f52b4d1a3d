"""Every directory that a power cut may leave behind is recovered from, or refused; never believed.

The operations of a whole build are recorded; after each of them the cut may come.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NIGHTLY
from tests.faults.harness import COUNTS, SAMPLES, Bench, different
from tests.faults.powerloss import Disk, Tree, digest, write_out
from tests.faults.test_extension import KINDS

PARTS = 4 if NIGHTLY else 1  # each finds all states anew
EVERY = 1 if NIGHTLY else 72
LEDGER = "store/records/ledger.jsonl"
# Samples of the first 0, 1, 2 and 3 chunks.
SAMPLES_IN = (0, 4, 8, 11)


def prepare_nothing(bench: Bench, store: Path) -> dict[str, Any]:
    return {}


def prepare_half(bench: Bench, store: Path) -> dict[str, Any]:
    run = bench.fault(bench.build(store), 117, "kill")
    assert run.kind == "killed"
    with (store / "records/ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"chunk": 1, "files": {"clip_te')
    return {"resume": True}


def prepare_other(bench: Bench, store: Path) -> dict[str, Any]:
    assert bench.run([bench.build(store, seed=7)]).kind == "done"
    return {"overwrite": True}


Prepare = Callable[[Bench, Path], dict[str, Any]]


def record(bench: Bench, folder: Path, prepare: Prepare) -> tuple[Disk, list[dict[str, Any]]]:
    """The disk before a build, and the operations of it."""
    store = folder / "disk" / "store"
    store.parent.mkdir()
    changes = prepare(bench, store)
    disk = Disk(store.parent)
    log = folder / "operations.json"
    run = bench.run([bench.build(store, **changes)], record=str(log))
    assert run.kind == "done", run
    return disk, json.loads(log.read_bytes())


def cuts(disk: Disk, operations: list[dict[str, Any]]) -> Iterator[tuple[int, str, str, int, Tree]]:
    """Number, last operation, damage, chunks that were acknowledged, and the tree of each state."""
    rng = random.Random(1)
    seen: set[str] = set()
    lines = _lines(disk)
    for number, entry in enumerate(operations, 1):
        disk.apply(entry)
        if entry["op"] in ("fsync", "rename") and entry["path"].endswith(LEDGER):
            lines = _lines(disk)
        for damage, tree in disk.states(rng):
            key = digest(tree)
            if key not in seen:
                seen.add(key)
                yield number, f"{entry['op']} {entry['path']}", damage, lines, tree


def _lines(disk: Disk) -> int:
    inode = disk._safe.get(LEDGER)
    return 0 if inode is None else inode.synced.count(b"\n")


def near_a_commit(where: str) -> bool:
    return LEDGER in where


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    "prepare", [prepare_nothing, prepare_half, prepare_other], ids=["build", "resume", "overwrite"]
)
def test_power_loss(bench: Bench, tmp_path: Path, prepare: Prepare, part: int) -> None:
    disk, operations = record(bench, tmp_path, prepare)
    root = tmp_path / "disk"
    tried = 0
    for count, (number, where, damage, lines, tree) in enumerate(cuts(disk, operations)):
        every = EVERY if not near_a_commit(where) else 1 if NIGHTLY else 17
        if count % PARTS != part or count // PARTS % every:
            continue
        shutil.rmtree(root)
        root.mkdir()
        write_out(tree, root)
        what = f"cut after operation {number}, {where}; {damage}"
        recover(bench, root / "store", what, lines, overwriting=prepare is prepare_other)
        tried += 1
        COUNTS["power loss"] += 1
    assert tried > 1


def seed_of(store: Path) -> int:
    attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]
    return int(attributes["manyviews"]["fingerprint"]["seed"])


def recover(bench: Bench, store: Path, what: str, lines: int, *, overwriting: bool) -> None:
    """What was acknowledged is there; all else is made again, or refused until it is repaired."""
    name = str(store)
    if overwriting and (store / "zarr.json").exists():
        assert bench.value(("verify", name)) == [] or "garbage" in what, what
        if seed_of(store) == 7:
            assert bench.run([bench.build(store, overwrite=True)]).kind == "done", what
        lines = 0
    elif overwriting:
        lines = 0
    steps = [bench.build(store, resume=True), ("verify", name), ("digest", name)]
    run = bench.run(steps)
    if run.kind == "error":
        # Only a tail that looks like a whole line of the ledger may be taken for damage.
        assert run.type == "CorruptStoreError", f"{what}: {run}"
        assert "ledger" in run.message, f"{what}: {run}"
        assert "garbage" in what, f"{what}: {run}"
        assert bench.value(("repair", name)), what
        run = bench.run(steps)
        COUNTS["power loss, refused until repaired"] += 1
    assert run.kind == "done", f"{what}: {run}"
    assert run.values[0]["built"] <= SAMPLES - SAMPLES_IN[lines], f"a commit was lost: {what}"
    _, found, made = run.values
    assert found == [], what
    assert different(made, bench.golden) == {}, what


# Additions ---------------------------------------------------------------------------------------


def cuts_of_an_addition(disk: Disk, operations: list[dict[str, Any]]) -> Iterator[tuple[str, Tree]]:
    """What was done, and the tree, of each state; by default most of when it is put in place."""
    rng = random.Random(2)
    for number, entry in enumerate(operations, 1):
        disk.apply(entry)
        between = "store/zarr.json" not in disk._names
        every = (1 if NIGHTLY else 7) if between else (5 if NIGHTLY else 60)
        if number % every:
            continue
        states = list({digest(tree): (damage, tree) for damage, tree in disk.states(rng)}.values())
        for damage, tree in rng.sample(states, min(4 if NIGHTLY else 2, len(states))):
            yield f"cut after operation {number}, {entry['op']} {entry['path']}; {damage}", tree


@pytest.mark.parametrize("kind", KINDS)
def test_power_loss_while_something_is_added(
    bench: Bench, grown: Path, tmp_path: Path, kind: str
) -> None:
    """The store as it was or the whole, after the next build; what it had is never lost."""
    root = tmp_path / "disk"
    store = root / "store"
    root.mkdir()
    _, expected, step = KINDS[kind](bench, grown, store)
    disk, log = Disk(root), tmp_path / "operations.json"
    assert bench.run([step], record=str(log)).kind == "done"
    steps = [step, ("verify", str(store)), ("digest", str(store))]
    met = {True: 0, False: 0}
    for what, tree in cuts_of_an_addition(disk, json.loads(log.read_bytes())):
        shutil.rmtree(root)
        root.mkdir()
        write_out(tree, root)
        run = bench.run(steps)
        if run.kind == "error":
            # What looks like a whole line of the addition's ledger may be taken for damage.
            assert (run.type, "garbage" in what) == ("CorruptStoreError", True), f"{what}: {run}"
            assert "records/extension/records/ledger.jsonl" in run.message, f"{what}: {run}"
            bench.value(("repair", str(store)))
            COUNTS["power loss, refused until repaired"] += 1
            run = bench.run(steps)
        assert run.kind == "done", f"{what}: {run}"
        assert run.values[1] == [], what
        assert different(run.values[2], expected) == {}, what
        met["store/zarr.json" in tree] += 1
        COUNTS["power loss"] += 1
    assert min(met.values()) > 1, met
