"""Commands that read a store give the same results before and after it is sealed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from featurestore.storage.commits import COMMITS
from manyviews import main
from tests.conftest import tree_digest
from tests.featurestore.stores import make_store, unseal

DATA = "DATA"


@pytest.fixture
def unsealed(demo_store: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(demo_store, tmp_path / "store"))
    unseal(path, kept=[1])
    return path


def result(command: list[str], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main.run_command([*command, "--json"]) in (0, 3)
    facts: dict[str, Any] = json.loads(capfd.readouterr().out)
    return facts


def files(folder: Path) -> dict[str, str]:
    """The digest of each file; empty if the command writes none."""
    return tree_digest(folder) if folder.is_dir() else {}


@pytest.mark.parametrize(
    "command",
    [
        ["materialize", "--out-dir", "OUT"],
        ["materialize", "--out-dir", "OUT", "--zscore", "train", "--split-json", "SPLIT"],
        ["export", "--format", "npy", "--out-dir", "OUT"],
        ["export", "--format", "safetensors", "--views", "1-2", "--out-dir", "OUT"],
        ["probe", "--labels-dir", "LABELS", "--split-json", "SPLIT", "--features", "clip_text"],
        ["views", "--data-dir", DATA, "--id", "ID", "--sheet", "OUT.png"],
        ["verify"],
        ["verify", "--verify-inputs", "--data-dir", DATA],
        ["status"],
    ],
    ids=lambda command: " ".join(command[:4]),
)
def test_the_result_is_that_of_the_sealed_store(
    command: list[str],
    demo_data: Path,
    demo_store: Path,
    unsealed: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    labels, split = tmp_path / "labels", demo_data / "split.json"
    if "LABELS" in command:
        result(
            ["labels", "--data-dir", str(demo_data / "dataset"), "--out-dir", str(labels)], capfd
        )
    stem = next(p.stem for p in sorted((demo_data / "dataset").glob("*.jpg")))
    known = {DATA: demo_data / "dataset", "SPLIT": split, "LABELS": labels, "ID": stem}
    before, results = tree_digest(unsealed), []
    for store in (demo_store, unsealed):
        out = tmp_path / f"out-{store.parent.name}-{store.name}"
        given = {**known, "OUT": out, "OUT.png": out.with_suffix(".png")}
        typed = [str(given.get(word, word)) for word in command]
        facts = result([*typed, "--store", str(store)], capfd)
        written = {n: d for n, d in files(out).items() if not n.endswith("manifest.json")}
        results.append((plain(facts, store, out), written))
    (one, written), (two, also_written) = results
    assert one == two
    assert written == also_written
    assert bool(written) == ("OUT" in command)
    assert tree_digest(unsealed) == before  # readers seal nothing


def plain(facts: dict[str, Any], store: Path, out: Path) -> dict[str, Any]:
    """The facts without paths, times and what tells whether the store is sealed."""
    text = json.dumps(facts).replace(str(out), "OUT").replace(str(store), "STORE")
    kept: dict[str, Any] = json.loads(text)
    for key in ("notices", "sealed", "seconds", "last_run", "views_per_s", "samples_per_s"):
        kept.pop(key, None)
    return kept


def test_a_report_of_an_unsealed_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pages = []
    sealed, unsealed = tmp_path / "sealed/store", tmp_path / "unsealed/store"
    make_store(sealed, dims={"clip_image": 64})
    shutil.copytree(sealed, unsealed)
    unseal(unsealed, kept=[1])
    for store in (sealed, unsealed):
        page = tmp_path / "page.html"
        result(["report", "--store", str(store), "--out", str(page)], capfd)
        pages.append(page.read_text("utf-8").replace(str(store), "STORE"))
    assert pages[0] == pages[1]


def test_an_incomplete_unsealed_store_is_refused_where_all_rows_are_needed(
    unsealed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (unsealed / COMMITS / "00000002").unlink()
    out = tmp_path / "files"
    for command in ("materialize", "export --format npy"):
        typed = [*command.split(), "--store", str(unsealed), "--out-dir", str(out)]
        assert main.run_command(typed) == 2
        assert "is not complete: 2 of 3 chunks committed" in capfd.readouterr().err
    assert not list(out.glob("*"))
