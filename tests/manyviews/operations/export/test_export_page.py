"""Runs every command and every reading example of the page on exports."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyviews.operations.export.formats import DTYPES, FORMATS
from tests.conftest import ROOT
from tests.featurestore.stores import make_store
from tests.test_docs import blocks
from tests.typed import typed

PAGE = ROOT / "docs/exporting.md"
SAMPLES, VIEWS = 12, 16


def test_the_page_names_every_format_and_dtype() -> None:
    text = PAGE.read_text("utf-8")
    assert all(f"`{name}`" in text for name in (*FORMATS, *DTYPES))


def test_every_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = make_store(
        tmp_path / "features", samples=SAMPLES, views=VIEWS, chunk=8, dims={"clip_image": 8}
    )
    stems = [f"{i:07d}" for i in range(SAMPLES)]
    (tmp_path / "labels").mkdir()
    np.save("labels/labels_all_23.npy", np.eye(SAMPLES, 23, dtype=np.float32))
    Path("labels/ids_all.txt").write_text("\n".join(stems))
    for block in blocks(PAGE, "bash"):
        typed(block)
    capsys.readouterr()
    said: list[str] = []
    scope: dict[str, Any] = {}
    for block in blocks(PAGE, "python"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # webdataset does not close its files
            exec(block, scope := {})
            gc.collect()
        said.append(capsys.readouterr().out.strip())
        if "clean" in scope:
            assert scope["clean"].shape == (SAMPLES, 8)
    assert said == [
        "0000000 (12, 8)",
        "0000000 (12, 8)",
        "torch.bfloat16 torch.Size([12, 8])",
        "0000000 tensor(0) torch.Size([8]) tensor(1.)",
        f"0000000 {list(range(10))} (10, 8)",
        "12 ['features-00000-of-00001.parquet', '_export.json']",
    ]
    import pyarrow.parquet as pq

    read = pq.read_table("clean")["clip_image"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(read.reshape(-1, 8), rows["clip_image"][:, 0])
    assert json.loads(Path("clean/_export.json").read_text())["zscore"] == "none"
