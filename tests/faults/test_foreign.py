"""Stores with unknown changes: refused before any write, and the message names the file.

``test_damage.py`` holds every flipped byte against every reader; here whole files are of another
kind, and it is ``build --resume`` that must not write a byte into what it does not understand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import ManyViewsError
from featurestore.storage.arrays import crc32c
from featurestore.storage.store import SCHEMA, FeatureStore, record_crc32c
from featurestore.training.dataset import FeatureDataset
from tests.conftest import tree_digest
from tests.faults.harness import COUNTS, Bench, different

LEDGER, ROOT_FILE, ARRAY = "records/ledger.jsonl", "zarr.json", "clip_text/zarr.json"

Change = Callable[[Path], None]


@pytest.fixture(scope="session")
def started(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of three chunks, of the golden build."""
    store = tmp_path_factory.mktemp("foreign") / "store"
    for n in range(120, 400):
        shutil.rmtree(store, ignore_errors=True)
        run = bench.fault(bench.build(store), n, "kill")
        assert run.kind == "killed", run
        if len(FeatureStore(store).ledger) == 2:
            return store
    raise AssertionError("no kill left two chunks")


def replaced(file: str, data: bytes) -> Change:
    def change(store: Path) -> None:
        (store / file).write_bytes(data)

    return change


def halved(store: Path) -> None:
    data = (store / ROOT_FILE).read_bytes()
    (store / ROOT_FILE).write_bytes(data[: len(data) // 2])


def huge(store: Path) -> None:
    with (store / ARRAY).open("r+b") as file:
        file.truncate(1 << 30)  # sparse


def of_another_array(store: Path) -> None:
    shutil.copy(store / "blip2_text/zarr.json", store / ARRAY)


def edited(file: str, **changes: Any) -> Change:
    """A valid document with another content."""

    def change(store: Path) -> None:
        document = json.loads((store / file).read_bytes())
        (store / file).write_text(json.dumps(document | changes))

    return change


def of_schema(schema: object) -> Change:
    """Written by another version, with a checksum that fits."""

    def change(store: Path) -> None:
        document = json.loads((store / ROOT_FILE).read_bytes())
        record = document["attributes"]["manyviews"]
        record["schema"] = schema
        record["crc32c"] = record_crc32c(record)
        (store / ROOT_FILE).write_text(json.dumps(document))

    return change


def lines_of(store: Path) -> list[bytes]:
    return (store / LEDGER).read_bytes().splitlines(keepends=True)


def sealed(line: bytes, old: bytes, new: bytes) -> bytes:
    """A line of the ledger with another content, and a checksum that fits."""
    text = line.rpartition(b', "crc32c": "')[0].replace(old, new, 1)
    return text + b', "crc32c": "%08x"}\n' % crc32c(text)


def ledger(make: Callable[[list[bytes]], list[bytes]]) -> Change:
    def change(store: Path) -> None:
        (store / LEDGER).write_bytes(b"".join(make(lines_of(store))))

    return change


# Per case what is done, the file that is named, and what the message says of it.
CASES: dict[str, tuple[Change, str, str]] = {
    "root empty": (replaced(ROOT_FILE, b""), ROOT_FILE, "not JSON"),
    "root half": (halved, ROOT_FILE, "not JSON"),
    "array empty": (replaced(ARRAY, b""), ARRAY, "not JSON"),
    "array of 1 GB": (huge, ARRAY, "at most"),
    "array of another": (of_another_array, ARRAY, "shape"),
    "array of another type": (edited(ARRAY, data_type="float64"), ARRAY, "data_type"),
    "array of no type": (edited(ARRAY, data_type=["x"]), ARRAY, "data_type"),
    "array of other codecs": (edited(ARRAY, codecs=[]), ARRAY, "codecs"),
    "array of another fill": (edited(ARRAY, fill_value=0.0), ARRAY, "fill_value"),
    "array is a group": (edited(ARRAY, node_type="group"), ARRAY, "node_type"),
    "older schema": (of_schema(1), "schema", "stored: 1"),
    "newer schema": (of_schema(SCHEMA + 1), "schema", f"stored: {SCHEMA + 1}"),
    "ledger lost": (lambda store: (store / LEDGER).unlink(), LEDGER, "missing"),
    "bad line": (ledger(lambda lines: [b"{}\n", lines[1]]), LEDGER, "line 1"),
    "no line": (ledger(lambda lines: [lines[0], b"\n", lines[1]]), LEDGER, "line 2"),
    "torn line in the middle": (ledger(lambda x: [x[0][:50] + b"\n", x[1]]), LEDGER, "line 1"),
    "two lines the same": (ledger(lambda x: [x[0], x[1], x[0]]), LEDGER, "chunk 0 again"),
    "line of chunk 3 of 3": (
        ledger(lambda x: [x[0], sealed(x[1], b'{"chunk": 1', b'{"chunk": 3')]),
        LEDGER,
        "chunk 3 of 3",
    ),
    "line of chunk -1": (
        ledger(lambda x: [x[0], sealed(x[1], b'{"chunk": 1', b'{"chunk": -1')]),
        LEDGER,
        "chunk -1 of 3",
    ),
    "samples lost": (lambda s: (s / "records/samples.jsonl").unlink(), "samples", "missing"),
}


@pytest.mark.parametrize("name", CASES)
def test_resume_refuses_before_any_write(
    bench: Bench, started: Path, store: Path, name: str
) -> None:
    change, file, text = CASES[name]
    shutil.copytree(started, store)
    change(store)
    COUNTS["foreign store"] += 1
    before = tree_digest(store) if "1 GB" not in name else {}
    run = bench.run([bench.build(store, resume=True)], fault={"n": -1, "action": "none"})
    assert run.kind == "error", run
    assert file in run.message, run
    assert text in run.message, run
    assert len(run.message.splitlines()) <= 5, run
    assert run.operations <= 1, run  # the lock's
    if before:
        assert different(tree_digest(store), before) == {}
    with pytest.raises(ManyViewsError):
        FeatureDataset(store)


def test_older_and_newer_versions_are_refused_with_advice(
    bench: Bench, started: Path, store: Path
) -> None:
    shutil.copytree(started, store)
    of_schema(SCHEMA + 1)(store)
    run = bench.run([bench.build(store, resume=True)])
    assert f"stored: {SCHEMA + 1}" in run.message
    assert f"now:    {SCHEMA}" in run.message
    assert "Read it with the version that wrote it" in run.message
    assert run.exit_code == 2


STRAYS = ("c.2.0.0.partial", "ledger.jsonl.partial", "x.tmp", "zarr.json~", ".DS_Store", "c.9.0.0")


def test_leftovers_are_swept_or_ignored_and_never_read(
    bench: Bench, started: Path, store: Path
) -> None:
    """Partial files of the store are removed; all other files are kept."""
    shutil.copytree(started, store)
    folders = ["", "records", "clip_text", "records/moments/blip2_text"]
    for folder in folders:
        for name in STRAYS:
            (store / folder / name).write_bytes(b"\xff" * 1000)
            COUNTS["stray file"] += 1
    run = bench.run([bench.build(store, resume=True), ("verify", str(store))])
    assert run.kind == "done", run
    assert run.values[1] == []
    kept = {f"{folder}/{n}".lstrip("/") for folder in folders for n in STRAYS}
    kept = {name for name in kept if not name.endswith(".partial")}
    found = tree_digest(store)
    assert different({n: d for n, d in found.items() if n not in kept}, bench.golden) == {}
    assert kept <= found.keys()


@pytest.mark.parametrize("file", ["clip_text/c.1.0.0", "records/moments/blip2_text/c.0.0.0"])
def test_a_chunk_that_the_ledger_names_and_that_is_lost(
    bench: Bench, started: Path, store: Path, file: str
) -> None:
    """Never read as NaN, as other libraries do: named, dropped and rebuilt."""
    shutil.copytree(started, store)
    (store / file).unlink()
    COUNTS["chunk lost"] += 1
    found = bench.value(("verify", str(store)))
    assert len(found) == 1
    assert file in found[0]
    steps = [("repair", str(store)), bench.build(store, resume=True), ("verify", str(store))]
    run = bench.run([*steps, ("digest", str(store))])
    assert run.kind == "done", run
    assert run.values[0] == sorted({int(file.rpartition("/c.")[2][0]), 2})
    assert run.values[2] == []
    assert different(run.values[3], bench.golden) == {}
