"""Features, views and samples added later: the store stays intact after a fault anywhere.

The backbones of these builds are exact functions of each text, so that a store that was extended
holds what one that was made at once holds: for features and samples every byte of it.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from consumers.build import build
from featurestore.errors import InputError, StoreMismatchError
from featurestore.storage.store import EXTENSION, FeatureStore
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.store import verify
from tests.conftest import NIGHTLY, tree_digest
from tests.faults import fakes
from tests.faults.harness import COUNTS, DIMS, Bench, Run, different
from tests.faults.test_sweep import Mode, expect, partials

# Each kind of fault, the operation of its first, and the number of operations to the next. By
# default there are more kills than errors, and errors while one kind of addition is made.
FAULTS = {"kill": (1, 25), "EIO": (4, 61), "ENOSPC": (21, 61)}
ERRORS = {("EIO", "views"), ("ENOSPC", "samples")}


def features(bench: Bench, grown: Path, store: Path) -> tuple[Path, dict[str, str], Any]:
    shutil.copytree(grown / "one", store)
    step = bench.build(store, resume=True, features=["blip2_text"])
    return grown / "one", tree_digest(grown / "two"), step


def samples(bench: Bench, grown: Path, store: Path) -> tuple[Path, dict[str, str], Any]:
    shutil.copytree(bench.golden_store, store)
    step = bench.build(store, resume=True, append=True, data_dir=str(grown / "more"))
    return bench.golden_store, tree_digest(grown / "fourteen"), step


def views(bench: Bench, grown: Path, store: Path) -> tuple[Path, dict[str, str], Any]:
    shutil.copytree(bench.golden_store, store)
    whole = grown / "views"
    if not whole.exists():
        steps = [bench.build(whole), bench.build(whole, resume=True, views=16)]
        assert bench.run(steps).kind == "done"
    return bench.golden_store, tree_digest(whole), bench.build(store, resume=True, views=16)


KINDS = {"features": features, "views": views, "samples": samples}


@pytest.mark.parametrize("kind", KINDS)
def test_an_extended_store(bench: Bench, grown: Path, store: Path, kind: str) -> None:
    base, expected, step = KINDS[kind](bench, grown, store)
    run = bench.run([step, ("verify", str(store)), ("digest", str(store))])
    assert run.kind == "done", run
    assert run.values[1] == []
    assert different(run.values[2], expected) == {}
    assert not (store / EXTENSION).exists()
    before, after = zarr.open_group(base, mode="r"), zarr.open_group(store, mode="r")
    for name in FeatureStore(base).features:
        old, new = before[name], after[name]
        assert isinstance(old, zarr.Array)
        assert isinstance(new, zarr.Array)
        n, v, _ = old.shape
        np.testing.assert_array_equal(new[:n, :v], old[:])
    # Nothing is left to do, whatever is said of it.
    for _ in range(2):
        again = bench.run([(step[0], step[1] | {"append": False, "features": None})])
        assert (again.kind, again.values[0]["built"]) == ("done", 0), again
    assert different(tree_digest(store), expected) == {}


def test_more_views_are_those_of_a_store_made_at_once(
    bench: Bench, grown: Path, store: Path
) -> None:
    _, _, step = views(bench, grown, store)
    assert bench.run([step]).kind == "done"
    once, found = FeatureStore(grown / "sixteen"), FeatureStore(store)
    assert found.fingerprint == once.fingerprint | {"view_parts": "8,16"}
    assert found.records == once.records
    for name in once.features:
        for chunk in range(once.spec.chunks):
            rows = found.read_chunk(name, chunk)
            np.testing.assert_array_equal(rows, once.read_chunk(name, chunk))
        np.testing.assert_allclose(found.moments(name).mean, once.moments(name).mean, rtol=1e-12)
        assert FeatureDataset(store, [name], views="all")[0][name].shape == (16, DIMS[name])


def test_a_damaged_chunk_of_more_views_is_made_again(
    bench: Bench, grown: Path, store: Path
) -> None:
    _, expected, step = views(bench, grown, store)
    assert bench.run([step]).kind == "done"
    file = store / "clip_text/c.1.0.0"
    data = bytearray(file.read_bytes())
    data[100] ^= 4
    file.write_bytes(data)
    run = bench.run([("repair", str(store)), bench.build(store, resume=True, views=16)])
    assert run.values[0] == [1], run
    assert run.values[1]["built"] == 4, run
    assert different(tree_digest(store), expected) == {}
    COUNTS["flipped byte"] += 1


def dying() -> list[Any]:
    """Each kind of addition with each kind of fault."""
    return [
        pytest.param(
            *(kind, action),
            marks=[] if action == "kill" or (action, kind) in ERRORS else pytest.mark.nightly,
        )
        for kind in KINDS
        for action in FAULTS
    ]


@pytest.mark.parametrize(("kind", "action"), dying())
def test_it_dies_at_every_operation(
    bench: Bench, grown: Path, store: Path, kind: str, action: str
) -> None:
    """The old store is intact, or the next build puts the extension in place."""
    start, every = (1, 1) if NIGHTLY else FAULTS[action]
    base, expected, step = KINDS[kind](bench, grown, store)
    whole = [tree_digest(base), expected]
    n, met = start, set()
    while True:
        shutil.rmtree(store)
        shutil.copytree(base, store)
        run = bench.fault(step, n, action)
        if not run.fired:
            assert run.kind == "done", run
            break
        expect(run, Mode(action, sticky=False, every=1), store.parent)
        assert action == "kill" or not partials(store), run
        met.add(_state(store, whole, run))
        # With the original options, or --resume alone once the extension was started.
        started = (store / EXTENSION / "zarr.json").exists() or not (store / "zarr.json").exists()
        plain = {"append": False, "features": None, "views": None}
        later = (step[0], step[1] | plain) if started and n % 2 else step
        after = bench.run([later, ("verify", str(store)), ("digest", str(store))])
        assert after.kind == "done", (run, after)
        assert after.values[1] == [], run
        assert different(after.values[2], expected) == {}, run
        n += every
    assert {"before", "between"} <= met or start > 3, met


def _state(store: Path, whole: list[dict[str, str]], run: Run) -> str:
    """``before``, ``between`` or ``after``; anything else is damage."""
    found = {
        name: digest
        for name, digest in tree_digest(store).items()
        if not name.startswith(EXTENSION)
    }
    if not (store / "zarr.json").exists():
        assert (store / EXTENSION / "final/zarr.json").exists(), run
        with pytest.raises(InputError, match="merge is not finished"):
            FeatureStore(store)
        [finding] = verify(store).findings
        assert "build --resume finishes it" in finding.problem
        return "between"
    assert verify(store).findings == [], run
    states = [different(found, digest) for digest in whole]
    assert {} in states, (run, states)
    return "before" if states[0] == {} else "after"


# Refusals ------------------------------------------------------------------------------------


def refused(bench: Bench, store: Path, *texts: str, **changes: Any) -> None:
    before = tree_digest(store)
    run = bench.run([bench.build(store, resume=True, **changes)])
    assert run.kind == "error", run
    for text in texts:
        assert text in run.message, run
    assert tree_digest(store) == before


def test_what_cannot_be_added_is_told(bench: Bench, grown: Path, store: Path) -> None:
    shutil.copytree(bench.golden_store, store)
    more = {"data_dir": str(grown / "more")}
    # Three different cases: after the last sample, between samples, and missing.
    refused(bench, store, "+'0000011', +'0000012', +'zzz'", "--resume --append adds them", **more)
    between = grown / "between"
    shutil.copytree(grown / "more", between)
    for suffix in (".jpg", ".json"):
        (between / f"zzz{suffix}").rename(between / f"000000{suffix}")
    refused(bench, store, "would move their rows", data_dir=str(between), append=True)
    gone = grown / "gone"
    shutil.copytree(grown / "more", gone)
    (gone / "0000003.json").unlink()
    refused(bench, store, "-'0000003'", "restore the missing", data_dir=str(gone), append=True)
    both = {"views": 16, "append": True}
    refused(bench, store, "more views and samples at once", "one kind after", **more, **both)
    refused(bench, store, "another views.", "stored: 8\n", "now:    4\n", views=4)


def test_a_store_that_is_not_complete_is_finished_first(bench: Bench, store: Path) -> None:
    for n in range(120, 400, 5):
        shutil.rmtree(store, ignore_errors=True)
        bench.fault(bench.build(store), n, "kill")
        if (store / "zarr.json").exists() and len(FeatureStore(store).ledger) == 2:
            break
    refused(bench, store, "another views.", "stored: 8\n", "now:    16\n", views=16)


def test_another_extension_than_was_begun_is_told(bench: Bench, grown: Path, store: Path) -> None:
    shutil.copytree(bench.golden_store, store)
    views = bench.build(store, resume=True, views=16)
    for n in range(60, 400, 10):
        run = bench.fault(views, n, "kill")
        if (store / EXTENSION / "zarr.json").exists():
            break
    assert run.kind == "killed"
    changes = {"append": True, "data_dir": str(grown / "more"), "views": 8}
    refused(bench, store, "an unfinished extension by something else", "--resume alone", **changes)
    plain = bench.build(store, resume=True, views=None, features=None)
    assert bench.run([plain]).values[0]["built"] == 11
    assert FeatureStore(store).spec.views == 16


def test_an_input_that_changed_is_told(bench: Bench, grown: Path, store: Path) -> None:
    """A changed input is refused at the start, before anything is built."""
    shutil.copytree(bench.golden_store, store)
    moved = grown / "moved"
    shutil.copytree(bench.data, moved)
    (moved / "0000002.json").write_text('{"plot": "something else"}')
    refused(bench, store, "content of inputs", views=16, data_dir=str(moved))
    more = grown / "more-moved"
    shutil.copytree(grown / "more", more)
    (more / "0000002.json").write_text('{"plot": "something else"}')
    refused(bench, store, "content of inputs", "0000002.json", append=True, data_dir=str(more))
    COUNTS["input changed"] += 2


GROWTH: dict[str, dict[str, Any]] = {
    "features": {"features": tuple(fakes.DIMS)},
    "views": {"views": 2 * fakes.VIEWS},
    "samples": {"append": True},
}


@pytest.mark.parametrize("kind", GROWTH)
def test_an_input_that_changes_before_it_is_read_again_is_told(tmp_path: Path, kind: str) -> None:
    """An input changes after the check at the start: none of its rows is added to the old ones."""
    data, store, expected = tmp_path / "data", tmp_path / "store", tmp_path / "expected"
    fakes.make_data(data)
    few = {"features": ("clip_text",), "batch_sizes": {"clip_text": 8}}
    base: dict[str, Any] = few if kind == "features" else {}
    for path in (store, expected):
        fakes.make(data, path, **base)
    before = tree_digest(store)
    if kind == "samples":
        for suffix, later in (("jpg", "not looked at"), ("json", '{"plot": "w1 w2"}')):
            (data / f"later.{suffix}").write_text(later)
    changed = data / "0000017.json"  # of the last chunk, which new samples join
    content = changed.read_bytes()

    def change(event: str, _facts: Mapping[str, Any]) -> None:
        if event == "started":
            changed.write_text('{"plot": "w1 w2 w3 and another end"}')

    asked = {"resume": True, **GROWTH[kind]}
    with fakes.loaded(), pytest.raises(StoreMismatchError, match="content of '0000017'") as caught:
        build(fakes.config(data, store, **asked), [change])
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    COUNTS["input changed meanwhile"] += 1
    left = {n: d for n, d in tree_digest(store).items() if not n.startswith(EXTENSION)}
    assert different(left, before) == {}
    assert verify(store).findings == []
    changed.write_bytes(content)
    for path in (store, expected):
        fakes.make(data, path, **asked)
    assert different(tree_digest(store), tree_digest(expected)) == {}
    assert verify(store).findings == []


# Signals, and damage to what is half made ------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param("SIGINT", marks=pytest.mark.nightly), "SIGTERM"])
def test_a_signal_while_it_is_added(short: Bench, store: Path, name: str) -> None:
    shutil.copytree(short.golden_store, store)
    resume = short.build(store, resume=True, views=32)
    whole = short.run([resume, ("digest", str(store))])
    expected = whole.values[1]
    command = short.command(store, "--resume", "--views", "32")
    number, codes, n = getattr(signal, name), set(), 9
    while True:
        shutil.rmtree(store)
        shutil.copytree(short.golden_store, store)
        run = short.fault(command, n, name)
        if not run.fired:
            break
        if run.kind == "killed":  # without a current chunk, the signal acts as on any program
            assert (name, run.code) == ("SIGTERM", -number), run
        else:
            [ended] = run.values
            codes.add(ended["code"])
            assert ended["code"] in (128 + number, 130, 3), run
            assert "Traceback" not in ended["stderr"], run
            advice = ("--resume", "run the same command again")  # the second before any chunk
            assert ended["code"] == 3 or any(words in ended["stderr"] for words in advice), run
        after = short.run([resume, ("verify", str(store)), ("digest", str(store))])
        assert (after.kind, after.values[1]) == ("done", []), (run, after)
        assert different(after.values[2], expected) == {}, run
        n += 5 if NIGHTLY else 71
    assert 128 + number in codes, codes


@pytest.fixture
def half_made(bench: Bench, grown: Path, store: Path) -> dict[str, str]:
    """The golden store with one of three chunks of more views, and the complete store."""
    _, expected, step = views(bench, grown, store)
    for n in range(80, 400, 5):
        shutil.rmtree(store)
        shutil.copytree(bench.golden_store, store)
        run = bench.fault(step, n, "kill")
        ledger = store / EXTENSION / "records/ledger.jsonl"
        if ledger.exists() and ledger.read_bytes().count(b"\n") == 1:
            return expected
    raise AssertionError(run)


def test_what_the_store_lost_is_made_before_it_is_added_to(
    bench: Bench, half_made: dict[str, str], store: Path
) -> None:
    (store / "clip_text/c.1.0.0").unlink()
    COUNTS["chunk lost"] += 1
    plain = bench.build(store, resume=True, views=None, features=None)
    run = bench.run([plain])
    assert "clip_text/c.1.0.0 (chunk 1) is damaged" in run.message, run
    run = bench.run([("repair", str(store)), plain, ("verify", str(store)), plain])
    assert run.values[0] == [1], run
    assert (run.values[1]["built"], run.values[3]["built"]) == (4, 7), run
    assert run.values[2] == [], run
    assert different(tree_digest(store), half_made) == {}


def test_a_damaged_chunk_of_what_is_half_made_is_named_and_made_again(
    bench: Bench, half_made: dict[str, str], store: Path
) -> None:
    (store / EXTENSION / "clip_text/c.0.0.0").unlink()
    COUNTS["chunk lost"] += 1
    plain = bench.build(store, resume=True, views=None, features=None)
    run = bench.run([plain])
    assert f"{EXTENSION}/clip_text/c.0.0.0 (chunk 0) is damaged" in run.message, run
    found = bench.value(("verify", str(store)))
    assert [f.partition(":")[0] for f in found] == [f"{EXTENSION}/clip_text/c.0.0.0"]
    run = bench.run([("repair", str(store)), plain, ("verify", str(store))])
    assert run.values[1]["built"] == 11, run
    assert run.values[2] == [], run
    assert different(tree_digest(store), half_made) == {}
