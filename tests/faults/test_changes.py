"""Changes on resume: configuration, versions and inputs; and changes that have no effect.

Every field of ``BuildConfig`` and every field of the fingerprint has a case, found by looking at
the classes themselves: a new one without a case is a failing test.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from consumers.build import build
from consumers.config import BuildConfig
from consumers.resume.checks import INPUT_CACHE
from featurestore.errors import StoreMismatchError
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore, record_crc32c
from featurestore.verify.store import verify
from producers.recipes.images.random_crops import Simclr
from producers.recipes.texts.hiding import Mask
from tests.conftest import NIGHTLY, ROOT, tree_digest
from tests.faults.fakes import CHUNK, SAMPLES, VIEWS, config, loaded, make, make_data
from tests.faults.harness import COUNTS, DIMS, Bench, Run, different

# The zygote's fakes take the last part of a model's name for its weights.
MODEL = "here/weights-1"
MODELS = dict.fromkeys(DIMS, MODEL)
LEDGER = "records/ledger.jsonl"
WEIGHTS = {n: hashlib.sha256(b"weights-%d" % n).hexdigest() for n in (1, 2)}


@dataclass(frozen=True, slots=True)
class Same:
    """The value may change: the resume completes the golden bytes."""

    value: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """The value may not change: an error that holds each of these texts, and nothing is written."""

    value: Any
    texts: tuple[str, ...]
    type: str = "StoreMismatchError"


def mismatch(value: Any, field: str, stored: object, now: object) -> Refused:
    return Refused(value, (f"another {field}.", f"stored: {stored}\n", f"now:    {now}\n"))


# Callables get the bench's folder. The store has two of its three chunks.
CASES: dict[str, list[Same | Refused]] = {
    "data_dir": [
        Same(lambda folder: str(folder / "moved")),
        Refused(lambda folder: str(folder / "fewer"), ("sample list", "11 samples", "10 samples")),
        Refused(lambda folder: str(folder / "none"), ("does not exist",), "InputError"),
    ],
    # The same inputs, named in another way.
    "data": [
        Same(lambda folder: str(folder / "moved")),
        Refused(lambda folder: str(folder / "fewer"), ("sample list", "11 samples", "10 samples")),
    ],
    "collection": [
        Same(lambda folder: {"kind": "mm-imdb", "path": str(folder / "moved")}),
        Refused(
            lambda folder: {
                "kind": "mm-imdb",
                "path": str(folder / "moved"),
                "clean_text": "first",
            },
            ("sets clean_text, which kind", "text_key"),
            "ConfigError",
        ),
        Refused(
            lambda folder: {"kind": "folder", "path": str(folder / "moved"), "text_key": "plot"},
            ("another preset.", "stored: mm-imdb", "now:    generic"),
        ),
    ],
    "store": [Same(lambda folder: str(folder / "moved-store"))],
    "follow_links": [Same(True)],
    "resume": [Refused(False, ("already holds", "--resume", "--overwrite"), "InputError")],
    # All of a complete store: ``test_extension.py``.
    "append": [Same(True)],
    "overwrite": [Same(True), Refused("with resume", ("exclude each other",), "ConfigError")],
    "views": [mismatch(16, "views", 8, 16)],
    "seed": [mismatch(124, "seed", 123, 124)],
    "image_recipe": [
        Same({"name": "simclr"}),
        mismatch({"name": "crop"}, "image_recipe", "simclr-2", "crop-1"),
        mismatch({"name": "simclr", "blur": 0.1}, "image_recipe.blur", 0.5, 0.1),
        # No feature of this build is of images, so that two views are not asked for.
        mismatch({"name": "flip"}, "image_recipe", "simclr-2", "flip-1"),
    ],
    "text_recipe": [
        Same({"name": "mask", "share": 0.15}),
        mismatch({"name": "drop"}, "text_recipe", "mask-1", "drop-1"),
        mismatch({"name": "mask", "token": "_"}, "text_recipe.token", '"[MASK]"', '"_"'),
    ],
    "features": [
        mismatch(["clip_text"], "features", "clip_text,blip2_text", "clip_text"),
        mismatch(
            ["blip2_text", "clip_text"], "features", "clip_text,blip2_text", "blip2_text,clip_text"
        ),
    ],
    "models": [
        Same(dict.fromkeys(DIMS, "elsewhere/weights-1")),
        Refused(
            MODELS | {"clip_text": "here/weights-2"},
            ("another clip_text.weights_sha256.", WEIGHTS[1], WEIGHTS[2]),
        ),
    ],
    "batch_sizes": [
        Same({}),  # the value that the store was started with
        mismatch(dict.fromkeys(DIMS, 8), "blip2_text.batch_size", 16, 8),
    ],
    "backbones": [
        Same({"other": {"adapter": "timm", "model": "no/such"}}),  # no feature of this build
        Refused({"clip_text": {"adapter": "timm"}}, ("[backbones.clip_text]",), "ConfigError"),
    ],
    "producers": [Same(0), Same(2), Same(8)],
    "threads": [Same(0), Same(2), Same(8)],
    "slots": [Same(2), Same(3), Same(64)],
    "chunk": [Same(0), mismatch(8, "chunk", 4, 8)],
    "codec": [Same("none"), Same(None), mismatch("zstd", "codec", "none", "zstd")],
    "device": [
        Same("auto"),
        Refused("cuda:7", ("cuda:7",), "ConfigError"),
        Refused("tpu", ("tpu",), "ConfigError"),
    ],
    "dtype": [
        Same("auto"),
        mismatch("bfloat16", "blip2_text.dtype", "torch.float32", "torch.bfloat16"),
    ],
    # The bad one is committed; see below for one that is not.
    "bad_sample": [Refused("fail", ("placeholders for 1 input that", "0000006"), "BadInputsError")],
    "allow_version_change": [Same(True)],
    "verify_inputs": [Same(True)],
    "remake_changed": [Same(True)],  # of a folder in which nothing changed
    "sample_timeout_s": [Same(1000.0)],
    "worker": [Same("0/1")],
    # Builds by several processes: ``tests/consumers/workers``.
    "devices": [Refused(["cpu"], ("--device cpu and --devices cpu exclude",), "ConfigError")],
    "ray": [Refused("local", ("--ray needs --ray-workers N",), "ConfigError")],
    "ray_workers": [Refused(2, ("--ray-workers needs --ray",), "ConfigError")],
}


@pytest.fixture(scope="session")
def half_built(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two of three chunks, and variants of its data folder beside it."""
    folder = tmp_path_factory.mktemp("changes")
    golden, store = folder / "golden", folder / "half_built"
    assert bench.run([bench.build(golden, models=MODELS)]).kind == "done"
    for n in range(120, 400, 5):
        shutil.rmtree(store, ignore_errors=True)
        run = bench.fault(bench.build(store, models=MODELS), n, "kill")
        if len(FeatureStore(store).ledger) == 2:
            break
    assert run.kind == "killed"
    shutil.copytree(bench.data, folder / "moved")
    shutil.copytree(bench.data, folder / "fewer")
    (folder / "fewer" / "0000003.jpg").unlink()
    return folder


def resume(bench: Bench, half_built: Path, at: Path, **changes: Any) -> Run:
    shutil.copytree(half_built / "half_built", at)
    name, values = bench.build(at, models=MODELS, resume=True)
    step = (name, values | changes)
    return bench.run([step], fault={"n": -1, "action": "none"})


def test_no_field_of_the_configuration_is_forgotten() -> None:
    assert set(CASES) == {field.name for field in fields(BuildConfig)}
    assert all(CASES.values())


@pytest.mark.parametrize("name", [field.name for field in fields(BuildConfig)])
def test_each_field_of_the_configuration_changed(
    bench: Bench, half_built: Path, store: Path, name: str
) -> None:
    for number, case in enumerate(CASES[name]):
        at = store.with_name(f"{name}-{number}")
        value = case.value(half_built) if callable(case.value) else case.value
        changes = {name: value}
        if name in ("data", "collection"):
            changes["data_dir"] = None
        if name == "overwrite":
            changes = {"overwrite": True, "resume": value == "with resume"}
        if name == "store":
            shutil.copytree(half_built / "half_built", value)
        run = resume(bench, half_built, at, **changes)
        COUNTS["configuration changed"] += 1
        if isinstance(case, Same):
            assert run.kind == "done", run
            where = Path(value) if name == "store" else at
            assert different(tree_digest(where), tree_digest(half_built / "golden")) == {}, name
        else:
            assert (run.kind, run.type) == ("error", case.type), run
            assert all(text in run.message for text in case.texts), run
            assert len(run.message.splitlines()) <= 4, run
            assert run.exit_code == (1 if case.type == "BadInputsError" else 2), run
            assert different(tree_digest(at), tree_digest(half_built / "half_built")) == {}, name


def test_a_bad_sample_that_is_still_to_come_may_stop_the_build(bench: Bench, store: Path) -> None:
    """``--bad-sample`` changes no features: a build that it stopped resumes without it."""
    run = bench.run([bench.build(store, bad_sample="fail")])
    assert run.kind == "error", run
    assert "0000006" in run.message
    assert "--bad-sample placeholder" in run.message
    assert len(FeatureStore(store).ledger) == 1
    COUNTS["configuration changed"] += 1
    bench.recover(store, run)


# The fingerprint -----------------------------------------------------------------------------


def edit(store: Path, name: str, value: Any) -> None:
    """Changes a field of a store's fingerprint, with a checksum that fits: an older machine's."""
    path = store / "zarr.json"
    document = json.loads(path.read_bytes())
    record = document["attributes"]["manyviews"]
    record["fingerprint"][name] = value
    record["crc32c"] = record_crc32c(record)
    path.write_text(json.dumps(document))


def test_each_field_of_the_fingerprint_is_compared(
    bench: Bench, half_built: Path, tmp_path: Path
) -> None:
    """Each field in turn differs in the store: refused with its name and both values."""
    stored = FeatureStore(half_built / "half_built").fingerprint
    allowed = set()
    for name, now in stored.items():
        value: Any = now + 1 if isinstance(now, int) else f"{now}x"
        if name.endswith(".dtype"):
            value = "torch.float16"
        store = tmp_path / name
        shutil.copytree(half_built / "half_built", store)
        edit(store, name, value)
        asked: dict[str, Any] = {"models": MODELS, "dtype": "float32", "resume": True}
        asked |= {"image_recipe": Simclr().values(), "text_recipe": Mask().values()}
        run = bench.run([bench.build(store, **asked)])
        # A model's name says nothing that its hash does not.
        if name.endswith(".model"):
            assert run.kind == "done", run
            continue
        COUNTS["fingerprint changed"] += 1
        assert run.kind == "error", (name, run)
        if name == "stems_sha256":  # the store's own list contradicts it
            assert run.type == "CorruptStoreError", run
            continue
        assert (run.type, run.exit_code) == ("StoreMismatchError", 2), (name, run)
        assert f"another {name}." in run.message, run
        assert f"stored: {value}\n  now:    {now}\n" in run.message, run
        permitted = bench.run([bench.build(store, **asked, allow_version_change=True)])
        if permitted.kind == "done":
            allowed.add(name)
            lines = list(map(json.loads, (store / LEDGER).read_bytes().splitlines()))
            recorded = [line.get("changed") for line in lines]
            assert recorded == [None, None, {name: f"{value} -> {now}"}], name
            assert verify(store).findings == []
    versions = {name for name in stored if name.startswith("version.")}
    assert len(versions) >= 7
    assert allowed == versions | {"device_kind"}


# The order of arrival ------------------------------------------------------------------------

# The first sample waits for ten others: all but those behind it in its producer's own queue can
# be made before it.
SLOW_FIRST = """
import os, time
from producers import decode
from producers.recipes.images.random_crops import Simclr
from producers.recipes.texts.hiding import Mask
honest, others = decode.text, __file__ + ".others"

def text(data):
    if b'"w0 w1' in data:
        open(__file__ + ".waits", "a").write("x")
        while not os.path.exists(others) or os.path.getsize(others) < 10:
            time.sleep(0.01)
    else:
        with open(others, "a") as file:
            file.write("x")
    return honest(data)

decode.text = text
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("changes") / "data")


@pytest.fixture(scope="module")
def golden(data: Path) -> Path:
    make(data, data.parent / "golden")
    return data.parent / "golden"


def test_eight_producers_and_a_slow_first_sample(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other samples are ready before the first one; the rows are the same."""
    assert b'"w0 w1' in (data / "0000000.json").read_bytes()
    site, ready = tmp_path / "site", []
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_FIRST)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")

    def watch(event: str, facts: Mapping[str, Any]) -> None:
        if event == "sample":
            ready.append(facts["filled"])

    make(data, tmp_path / "store", (watch,), producers=8, slots=64)
    assert [p.read_text() for p in site.glob("*.waits")] == ["x"]
    assert max(ready) > 5
    COUNTS["slow sample"] += 1
    assert tree_digest(tmp_path / "store") == tree_digest(golden)


# Inputs --------------------------------------------------------------------------------------


def test_other_samples_are_listed_up_to_five(data: Path, golden: Path, tmp_path: Path) -> None:
    copied, store = tmp_path / "data", tmp_path / "store"
    shutil.copytree(data, copied)
    shutil.copytree(golden, store)
    for i in range(4):
        (copied / f"{i:07d}.jpg").rename(copied / f"{i:07d}x.jpg")
        (copied / f"{i:07d}.json").rename(copied / f"{i:07d}x.json")
    with pytest.raises(Exception, match="sample list") as caught:
        make(copied, store, resume=True)
    COUNTS["input changed"] += 4
    listed = "+'0000000x', +'0000001x', +'0000002x', +'0000003x', -'0000000' and 3 more"
    assert listed in str(caught.value)
    assert tree_digest(store) == tree_digest(golden)


def test_inputs_that_change_while_they_are_read(data: Path, tmp_path: Path) -> None:
    """Inputs that are deleted, truncated, extended or replaced by a FIFO after the scan."""
    copied, store = tmp_path / "data", tmp_path / "store"
    shutil.copytree(data, copied)
    last = [copied / f"{i:07d}.json" for i in range(14, SAMPLES)]

    def change(event: str, facts: Mapping[str, Any]) -> None:
        if event == "started":
            last[0].unlink()
            last[1].write_bytes(last[1].read_bytes()[:-9])
            last[2].write_text(json.dumps({"plot": "w1 w2 w3 w4 and then some more"}))
            last[3].unlink()
            os.mkfifo(last[3])

    with loaded():
        report = build(config(copied, store), [change])
    COUNTS["input changed meanwhile"] += 4
    assert [b[:3] for b in map(_facts, report.bad)] == [
        (14, "text", "missing"),
        (15, "text", "not-json"),
        (17, "text", "not-a-file"),
    ]
    # The third was read as it was then: whole, and recorded as such.
    assert FeatureStore(store).records[16].words == 8
    assert verify(store).findings == []
    before = tree_digest(store)
    for path in (last[0], last[3]):  # their pairs are samples again
        path.unlink(missing_ok=True)
        path.write_text('{"plot": "there again"}')
    for _ in range(2):  # with the kept times, which are of before the change, and without them
        assert make(copied, store, resume=True, verify_inputs=True).built == 0
        (store / INPUT_CACHE).unlink(missing_ok=True)
    assert tree_digest(store) == before


def test_repaired_inputs_are_rebuilt(tmp_path: Path) -> None:
    """Only their chunks are rebuilt; the store then equals a build from the repaired folder."""
    data, store, away = make_data(tmp_path / "data"), tmp_path / "store", tmp_path / "away"
    (data / "0000002.json").write_text('{"plot": ')
    (data / "0000009.json").rename(away)

    def take_away(event: str, _facts: Mapping[str, Any]) -> None:
        if event == "scanned":
            (data / "0000009.json").unlink()

    shutil.copy(away, data / "0000009.json")
    make(data, store, (take_away,))
    assert [_facts(b) for b in FeatureStore(store).bad_inputs] == [
        (2, "text", "not-json"),
        (9, "text", "missing"),
    ]
    COUNTS["input changed"] += 2
    before = tree_digest(store, mtimes=True)
    (data / "0000002.json").write_text('{"plot": "w1 w2 w3"}')
    away.rename(data / "0000009.json")
    with pytest.raises(StoreMismatchError, match=r"'0000002\.json'.*\n.*--remake-changed"):
        make(data, store, resume=True)
    assert tree_digest(store, mtimes=True) == before
    report = make(data, store, resume=True, remake_changed=True, bad_sample="fail")
    assert report.built == 2 * CHUNK
    make(data, tmp_path / "golden")
    assert tree_digest(store) == tree_digest(tmp_path / "golden")
    assert make(data, store, resume=True, remake_changed=True).built == 0


def test_a_kill_while_repaired_inputs_are_rebuilt(bench: Bench, store: Path) -> None:
    """At any operation: only the dropped chunks are missing, and a resume rebuilds them."""
    data, repaired = store.parent / "data", '{"plot": "repaired"}'
    shutil.copytree(bench.data, data)
    (data / "0000006.json").write_text(repaired)
    golden = store.parent / "repaired"
    assert bench.run([bench.build(golden, data_dir=str(data))]).kind == "done"
    wanted = bench.value(("digest", str(golden)))
    step = bench.build(store, data_dir=str(data), resume=True, remake_changed=True)
    fired = 0
    for n in range(1, 200, 1 if NIGHTLY else 9):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(bench.golden_store, store)
        run = bench.fault(step, n, "kill")
        if not run.fired:
            break
        fired += 1
        assert verify(store).findings == [], run
        assert len(FeatureStore(store).ledger) >= 2, run
        again = bench.build(store, data_dir=str(data), resume=True, remake_changed=True)
        assert bench.run([again]).kind == "done", run
        assert different(bench.value(("digest", str(store))), wanted) == {}, run
    assert fired > 3


@pytest.mark.parametrize("how", ["most", "adding", "gone"])
def test_no_chunk_is_given_up_where_it_may_be_a_mistake(
    data: Path, golden: Path, tmp_path: Path, how: str
) -> None:
    copied, store = tmp_path / "data", tmp_path / "store"
    shutil.copytree(data, copied)
    shutil.copytree(golden, store)
    changes: dict[str, Any] = {}
    advice = "the right --data-dir"
    for path in sorted(copied.glob("*.json"))[: 10 if how == "most" else 1]:
        path.write_text(json.dumps({"plot": path.stem}))
    if how == "adding":
        changes, advice = {"views": 2 * VIEWS}, "what is being added"
    elif how == "gone":
        (copied / "0000005.json").unlink()
        advice = "sample list"
    COUNTS["input changed"] += 1
    before = tree_digest(store, mtimes=True)
    with pytest.raises(StoreMismatchError, match=advice):
        make(copied, store, resume=True, remake_changed=True, **changes)
    assert tree_digest(store, mtimes=True) == before


def _facts(bad: BadInput) -> tuple[int, str, str]:
    return bad.index, bad.modality, bad.reason


# What is there already -----------------------------------------------------------------------


def test_resume_of_nothing_begins_and_of_everything_does_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    for path in (tmp_path / "absent" / "deep", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        first = bench.run([bench.command(path, "--resume"), ("digest", str(path))])
        assert first.values[0]["code"] == 3, first
        assert "built 11 samples" in first.values[0]["stderr"]
        assert different(first.values[1], bench.golden) == {}
        before = tree_digest(path, mtimes=True)
        # The lock is opened, and nothing else is done to the disk.
        again = bench.run([bench.build(path, resume=True)], fault={"n": -1, "action": "none"})
        assert again.values[0]["built"] == 0, again
        assert again.operations <= 1, again
        ended = bench.value(bench.command(path, "--resume"))
        assert "nothing to do" in ended["stderr"]
        assert tree_digest(path, mtimes=True) == before
