"""A store under any sequence of builds, kills, damage and repair, against an independent model.

The model is a dictionary of chunks: the bytes that were committed, and whether someone has damaged
them since. What the store says of itself is held against it after every step.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from featurestore.errors import CorruptStoreError, StoreLockedError
from featurestore.storage import writer as stores
from featurestore.storage.ledger import Ledger
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.verify.findings import Verification
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from tests.conftest import NIGHTLY
from tests.faults.harness import COUNTS
from tests.featurestore.stores import DIMS, commit, killed_at, make_records, make_store, tree

CHUNKS, CHUNK, SAMPLES, VIEWS = 5, 4, 18, 4
FOLDERS = [folder for name in DIMS for folder in (name, f"records/moments/{name}")]
# Disk operations of a commit, about; a kill may also come too late.
OPERATIONS = 34
EVENTS: set[str] = set()


def happened(what: str) -> None:
    event(what)
    EVENTS.add(what)


class StoreMachine(RuleBasedStateMachine):
    """The store of one example."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.path = self.folder / "store"
        # The chunks that must be there, of these the damaged ones, and of these those with a file
        # that is missing or of another length, which no build continues.
        self.committed: set[int] = set()
        self.damaged: set[int] = set()
        self.obvious: set[int] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(seed=st.integers(0, 2**16), chunks=st.sets(st.integers(0, CHUNKS - 1)))
    def start(self, seed: int, chunks: set[int]) -> None:
        """The golden store, made in one go, and one of the same samples with some of the chunks."""
        self.rows = make_store(self.folder / "golden", samples=SAMPLES, views=VIEWS, seed=seed)
        make_store(self.path, samples=SAMPLES, views=VIEWS, rows=self.rows, chunks=sorted(chunks))
        self.committed = set(chunks)
        self.golden = tree(self.folder / "golden")

    # --- what a build does

    def _writer(self) -> StoreWriter:
        lock = stores.take_lock(self.path)
        try:
            return StoreWriter(self.path, lock)
        except CorruptStoreError:
            lock.release()
            raise

    def _commit(self, writer: StoreWriter, count: int) -> None:
        missing = writer.ledger.missing[:count]
        commit(writer, missing, self.rows, make_records(writer.spec))
        writer.finish()

    def _build(self, count: int) -> None:
        with self._writer() as writer:
            self._commit(writer, count)

    def _missing(self) -> list[int]:
        return sorted(set(range(CHUNKS)) - self.committed)

    @precondition(lambda self: self.obvious)
    @rule()
    def refused_build(self) -> None:
        """A build does not continue a store that lacks a committed file."""
        before = tree(self.path)
        with pytest.raises(CorruptStoreError, match="verify --repair"):
            self._build(1)
        left = {name: digest for name, digest in before.items() if "partial" not in name}
        assert left.items() <= tree(self.path).items()
        happened("refused for a missing file")

    @precondition(lambda self: not self.obvious)
    @rule(count=st.sampled_from([0, 1, 1, 2, CHUNKS]))
    def build(self, count: int) -> None:
        """``build --resume`` for so many chunks; a flipped bit in another is not seen by it."""
        with self._writer() as writer:
            missing = writer.ledger.missing
            assert missing == self._missing()
            self._commit(writer, count)
        self.committed |= set(missing[:count])
        happened(f"built {min(count, len(missing))}")

    @precondition(lambda self: self._missing() and not self.obvious)
    @rule(count=st.integers(1, 3), data=st.data())
    def killed_build(self, count: int, data: st.DataObject) -> None:
        """A build that dies at a disk operation; what it had committed by then must be there."""
        # In which of the commits, and where in it: late operations are as likely as early ones.
        commits = data.draw(st.integers(0, min(count, len(self._missing())) - 1))
        operation = OPERATIONS * commits + data.draw(st.integers(1, OPERATIONS))
        if not killed_at(operation, lambda: self._build(count)):
            happened("kill too late")
            self.committed |= set(self._missing()[:count])
            return
        COUNTS["machine kill"] += 1
        missing = self._missing()
        now = self._lines()
        done = len(now - self.committed)
        assert now == self.committed | set(missing[:done]), "a chunk was lost, or one came early"
        happened(f"killed after {min(done, 2)} commits")
        self.committed = now

    def _lines(self) -> set[int]:
        """The chunks that the ledger's whole lines name, read without the code that is tested."""
        whole = (self.path / Ledger.FILE).read_bytes().rpartition(b"\n")[0]
        lines = [line for line in whole.split(b"\n") if line]
        return {int(line.split(b",")[0].split(b":")[1]) for line in lines}

    def _repair_store(self) -> list[int] | None:
        lock = stores.take_lock(self.path)
        try:
            found = verify(self.path)
            return repair(self.path, found) if found.findings else None
        finally:
            lock.release()

    @precondition(lambda self: self.damaged)
    @rule(operation=st.integers(1, 6))
    def killed_repair(self, operation: int) -> None:
        """A repair that dies has dropped what is damaged, or nothing yet."""
        killed = killed_at(operation, self._repair_store)
        now = self._lines()
        assert now in (self.committed - self.damaged, *([self.committed] if killed else []))
        COUNTS["machine kill of a repair"] += killed
        happened("killed repair" if killed else "kill too late")
        if now != self.committed:
            self.committed, self.damaged, self.obvious = now, set(), set()

    @precondition(lambda self: not self.obvious)
    @rule()
    def second_writer(self) -> None:
        """While one builds, nobody else may, and readers are not in its way."""
        with self._writer():
            before = tree(self.path)
            with pytest.raises(StoreLockedError):
                stores.take_lock(self.path)
            assert tree(self.path) == before
            assert len(FeatureStore(self.path).ledger) == len(self.committed)
        COUNTS["machine second writer"] += 1
        happened("second writer")

    # --- what goes wrong

    def _sound(self) -> list[int]:
        return sorted(self.committed - self.damaged)

    @precondition(lambda self: self._sound())
    @rule(
        data=st.data(),
        folder=st.sampled_from(FOLDERS),
        kind=st.sampled_from(["flip", "cut", "empty", "longer", "delete"]),
    )
    def damage(self, data: st.DataObject, folder: str, kind: str) -> None:
        """One file of a committed chunk is not what it was."""
        chunk = data.draw(st.sampled_from(self._sound()))
        path = self.path / folder / f"c.{chunk}.0.0"
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "longer":
            content += b"\0"
        else:
            content = content[: at if kind == "cut" else 0]
        if kind == "delete":
            path.unlink()
        else:
            path.write_bytes(content)
        self.damaged.add(chunk)
        if kind != "flip" and path.exists() is (kind != "delete"):
            self.obvious.add(chunk)
        COUNTS[f"machine {kind}"] += 1
        happened(f"damage: {kind}")

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def tear(self, data: st.DataObject) -> None:
        """Power fails while the ledger's last line is on its way: it is not committed then."""
        path = self.path / Ledger.FILE
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            return  # torn already
        lines = content.splitlines(keepends=True)
        last = int(lines[-1].split(b",")[0].split(b":")[1])
        cut = data.draw(st.integers(1, len(lines[-1]) - 1))
        path.write_bytes(content[:-cut])
        self.committed.discard(last)
        self.damaged.discard(last)
        self.obvious.discard(last)
        COUNTS["machine torn line"] += 1
        happened("torn line")

    @rule(data=st.data(), size=st.integers(0, 5000))
    def stray(self, data: st.DataObject, size: int) -> None:
        """A file that some earlier writer left under its temporary name."""
        chunk = data.draw(st.integers(0, CHUNKS - 1))
        folder = data.draw(st.sampled_from([*FOLDERS, "", "records"]))
        (self.path / folder / f"c.{chunk}.0.0.partial").write_bytes(b"\xff" * size)
        COUNTS["machine stray file"] += 1
        happened("stray file")

    # --- detection and repair

    @rule()
    def repair(self) -> None:
        """``verify --repair``: damaged chunks are no longer committed, and only they."""
        dropped = self._repair_store()
        assert (dropped is not None) == bool(self.damaged)
        self.committed -= self.damaged
        if dropped is not None:
            assert dropped == self._missing()
            happened(f"repaired {len(self.damaged)}")
        self.damaged, self.obvious = set(), set()
        assert verify(self.path).findings == []

    @precondition(lambda self: len(self._sound()) < CHUNKS)
    @rule()
    def to_the_end(self) -> None:
        """Repair and build: always the golden bytes."""
        self.repair()
        self.build(CHUNKS)
        assert tree(self.path) == self.golden
        found = verify(self.path)
        assert (found.findings, found.notices) == ([], [])
        happened("golden")

    # --- what must hold after every step

    @invariant()
    def verify_names_exactly_the_damaged_chunks(self) -> None:
        if not hasattr(self, "golden"):
            return
        found: Verification = verify(self.path)
        assert set(found.committed) == self.committed
        assert found.damaged_chunks == sorted(self.damaged)
        assert all(finding.chunk is not None for finding in found.findings)

    @invariant()
    def readers_get_committed_chunks_or_an_error(self) -> None:
        if not hasattr(self, "golden"):
            return
        store = FeatureStore(self.path)
        assert {e.chunk for e in store.ledger.entries} == self.committed
        for name in DIMS:
            for chunk in range(CHUNKS):
                if chunk in self.committed - self.damaged:
                    right = self.rows[name][chunk * CHUNK : (chunk + 1) * CHUNK]
                    np.testing.assert_array_equal(store.read_chunk(name, chunk), right)
                elif chunk not in self.committed:
                    with pytest.raises(CorruptStoreError, match="not committed"):
                        store.read_chunk(name, chunk)

    @invariant()
    def another_library_reads_the_same(self) -> None:
        """zarr-python alone, from the documents on disk."""
        if not hasattr(self, "golden"):
            return
        group = zarr.open_group(self.path, mode="r")
        for name in DIMS:
            array = group[name]
            assert isinstance(array, zarr.Array)
            for chunk in self._sound()[:2]:
                part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                np.testing.assert_array_equal(array[part], self.rows[name][part])


# Processes share the nightly examples; each part draws others.
PARTS = 4 if NIGHTLY else 1
ROUNDS = 8 if NIGHTLY else 30
PROFILE = settings(
    max_examples=300 if NIGHTLY else 4,
    stateful_step_count=20 if NIGHTLY else 12,
    deadline=None,
    derandomize=not NIGHTLY,  # the same examples in every run, but for the nightly ones
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("part", range(PARTS))
def test_no_sequence_of_faults_loses_or_mixes_anything(part: int) -> None:
    EVENTS.clear()
    # Everything that the machine can do must be done, or it has shown nothing.
    expected = {"second writer", "torn line", "stray file", "golden", "killed after 0 commits"}
    expected |= {"refused for a missing file"}
    expected |= {"killed after 1 commits", "repaired 1", "built 0", "built 1", "killed repair"}
    expected |= {f"damage: {kind}" for kind in ("flip", "cut", "empty", "longer", "delete")}
    for number in range(ROUNDS):
        # Examples are drawn by the machine's name; which of them meet what, a detail may change.
        machine = type(f"StoreMachine{part}{number}", (StoreMachine,), {})
        run_state_machine_as_test(machine, settings=PROFILE)
        if expected <= EVENTS:
            return
    raise AssertionError(f"never happened: {expected - EVENTS}")
