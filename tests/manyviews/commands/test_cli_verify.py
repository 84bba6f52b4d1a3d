"""The ``verify`` command: exit codes, names of damaged files, repairs, and inputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.imdb.labels import write_augmented_labels, write_labels
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.storage.store import FeatureStore
from featurestore.system.locks import FileLock
from manyviews import main
from tests.conftest import tree_digest
from tests.faults import fakes
from tests.featurestore.stores import make_store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs ``verify`` in this process, as a shell would; returns exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main.run_command(["verify", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    return tmp_path / "store"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)


def facts(output: str) -> dict[str, Any]:
    [line] = output.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_sound_store(run: Run, store: Path) -> None:
    before = tree_digest(store, mtimes=True)
    code, output, errors = run("--store", store)
    assert (code, output) == (0, "")
    assert errors.splitlines() == [
        "3 of 3 chunks committed",
        "nothing damaged: 3 chunks, 12 files checked",
    ]
    code, output, _ = run("--store", store, "--json", "--repair")
    assert code == 0
    found = facts(output)
    assert (found["chunks"], found["committed"], found["files"]) == (3, 3, 12)
    assert (found["findings"], found["repaired"], found["to_make"]) == ([], False, [])
    assert (found["damaged"], found["ok"]) == (0, True)
    assert "changed_inputs" not in found
    assert tree_digest(store, mtimes=True) == before


def test_damage_is_named_with_status_1_and_repaired_on_request(run: Run, store: Path) -> None:
    files = ["clip_image/c.0.0.0", "records/moments/clip_text/c.2.0.0"]
    for file in files:
        flip(store / file)
    before = tree_digest(store, mtimes=True)
    code, output, errors = run("--store", store)
    assert (code, output) == (1, "")
    for file, chunk in zip(files, (0, 2), strict=True):
        assert f"damaged: {file} (chunk {chunk}): its content is not what was committed" in errors
    assert "verify --repair" in errors
    assert "nothing damaged" not in errors
    assert "2 problems found: 3 chunks, 12 files checked" in errors.splitlines()
    assert tree_digest(store, mtimes=True) == before
    code, output, errors = run("--store", store, "--repair", "--json")
    assert code == 0
    assert "`build --resume` rebuilds 2 chunks: [0, 2]" in errors
    found = facts(output)
    assert [(file, chunk) for file, chunk, _ in found["findings"]] == [
        (files[0], 0),
        (files[1], 2),
    ]
    assert (found["repaired"], found["to_make"]) == (True, [0, 2])
    assert (found["damaged"], found["ok"]) == (2, True)
    assert "nothing damaged" not in errors
    code, output, _ = run("--store", store, "--json")
    assert code == 0
    assert (facts(output)["committed"], facts(output)["to_make"]) == (1, [0, 2])


def test_irreparable_damage_is_an_error(run: Run, store: Path) -> None:
    flip(store / "records/samples.jsonl")
    before = tree_digest(store)
    code, output, errors = run("--store", store, "--repair")
    assert (code, output) == (1, "")
    assert "records/samples.jsonl is damaged" in errors
    assert "--overwrite" in errors
    assert tree_digest(store) == before


def test_a_store_locked_by_another_process_is_not_repaired(run: Run, store: Path) -> None:
    lock = FileLock(store / "records/runs/lock", store)
    flip(store / "clip_image/c.0.0.0")
    before = tree_digest(store)
    code, _, errors = run("--store", store, "--repair")
    assert code == 1
    assert f"process {os.getpid()} on " in errors
    assert run("--store", store)[0] == 1  # verifying needs no lock
    lock.release()
    assert tree_digest(store) == before


def test_a_missing_store_is_an_error(run: Run, tmp_path: Path) -> None:
    code, _, errors = run("--store", tmp_path / "nowhere")
    assert code == 2
    assert "no feature store" in errors
    assert not (tmp_path / "nowhere").exists()


def test_verify_inputs_reports_changed_files(run: Run, tmp_path: Path) -> None:
    data, store = fakes.make_data(tmp_path / "data"), tmp_path / "store"
    fakes.make(data, store)
    asked = ("--store", store, "--verify-inputs", "--data-dir", data)
    code, _, errors = run(*asked)
    assert code == 0
    assert f"18 inputs compared with {data}; 18 were not read" in errors
    assert errors.splitlines()[-1].startswith("nothing damaged: ")
    assert errors.splitlines()[-1].endswith(" 18 inputs compared")
    before = tree_digest(store, mtimes=True)
    (data / "0000002.json").write_text('{"plot": "another"}')
    (data / "0000005.json").unlink()
    shutil.copy(data / "0000001.json", data / "0000000.json")
    code, output, errors = run(*asked, "--json", "--repair")
    assert code == 1
    names = [f"000000{n}.json" for n in (0, 2, 5)]
    assert [name for name, _ in facts(output)["changed_inputs"]] == names
    assert (facts(output)["inputs"], facts(output)["repaired"]) == (18, False)
    for name in names:
        assert f"changed: '{name}': " in errors
    assert "Restore them" in errors
    assert "nothing damaged, 3 inputs changed: " in errors.splitlines()[-1]
    assert tree_digest(store, mtimes=True) == before  # a changed input drops no chunk


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--verify-inputs"], "The inputs are missing: give --data-dir DIR"),
        (["--data-dir", "."], "Inputs are read with --verify-inputs only: add it"),
        (["--data", "."], "Inputs are read with --verify-inputs only: add it"),
    ],
)
def test_verify_inputs_and_inputs_require_each_other(
    run: Run, store: Path, more: list[str], said: str
) -> None:
    code, _, errors = run("--store", store, *more)
    assert code == 2
    assert said in errors


def test_materialized_files(run: Run, store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    asked = ("--store", store, "--materialized", folder, "--json")
    code, output, _ = run(*asked)
    assert code == 1
    assert "no manifest of these files" in facts(output)["materialized"][0][1]
    materialize(FeatureStore(store), folder)
    materialize(FeatureStore(store), folder, prefix="other")
    code, output, _ = run(*asked)
    assert (code, facts(output)["materialized"]) == (0, [])
    assert facts(output)["materialized_files"] == len(list(folder.iterdir()))
    flip(folder / "other_clip_text.npy")
    flip(folder / f"{PREFIX}_manifest.json")
    code, output, errors = run(*asked)
    assert code == 1
    named = [file for file, _ in facts(output)["materialized"]]
    assert named == [f"{PREFIX}_manifest.json", "other_clip_text.npy"]
    assert "its content is not what was written; `materialize` writes it again" in errors
    assert (facts(output)["findings"], facts(output)["repaired"]) == ([], False)


def test_label_files(run: Run, store: Path, tmp_path: Path) -> None:
    """A folder with labels only, and augmented labels next to embeddings."""
    folder, beside = tmp_path / "labels", tmp_path / "embeddings"
    stems = FeatureStore(store).stems
    write_labels(stems, [{"genres": ["Drama"]}] * len(stems), folder)
    materialize(FeatureStore(store), beside)
    write_augmented_labels(folder, beside)
    code, output, errors = run("--store", store, "--materialized", folder, "--json")
    assert (code, facts(output)["materialized"]) == (0, [])
    assert facts(output)["materialized_files"] == len(list(folder.iterdir())) == 4
    assert "4 materialized files checked" in errors
    asked = ("--store", store, "--materialized", beside, "--json")
    code, output, _ = run(*asked)
    assert (code, facts(output)["materialized"]) == (0, [])
    assert facts(output)["materialized_files"] == len(list(beside.iterdir()))
    flip(folder / "labels_all_23.npy")
    flip(beside / f"{PREFIX}_labels.npy")
    code, output, errors = run("--store", store, "--materialized", folder)
    assert code == 1
    assert "damaged: labels_all_23.npy: its content is not what was written; `labels`" in errors
    code, output, errors = run(*asked)
    assert code == 1
    assert [file for file, _ in facts(output)["materialized"]] == [f"{PREFIX}_labels.npy"]
    assert "is not what was written; `labels --augment` writes it again" in errors
