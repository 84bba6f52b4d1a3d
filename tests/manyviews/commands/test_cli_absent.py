"""Commands on a store where samples lack an image or a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyviews import main
from tests.featurestore.stores import make_generic_store

# The whole second chunk has no text; sample 9 has neither input.
ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main([str(each) for each in arguments])
    output, errors = capfd.readouterr()
    assert ended.value.code == 0
    return str(output or errors)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("absent") / "store"
    make_generic_store(path, ABSENT)
    return path


def test_status_counts_absent_inputs(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = run(capfd, "status", "--store", store)
    assert "2 samples without image, whose rows are zeros" in text
    assert "6 samples without text, whose rows are zeros" in text
    facts = json.loads(run(capfd, "status", "--store", store, "--json"))
    assert facts["absent"] == {"image": 2, "text": 6}


def test_status_says_nothing_where_nothing_is_absent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_generic_store(
        tmp_path / "store", dict.fromkeys(range(11), "text"), dims={"clip_image": 64}
    )
    assert "without" not in run(capfd, "status", "--store", tmp_path / "store")
    facts = json.loads(run(capfd, "status", "--store", tmp_path / "store", "--json"))
    assert facts["absent"] == {}


@pytest.mark.parametrize("given", [None, "mine"])
def test_the_default_prefix_follows_the_preset(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], given: str | None
) -> None:
    more: list[Any] = [] if given is None else ["--prefix", given]
    run(capfd, "materialize", "--store", store, "--out-dir", tmp_path / "out", *more)
    prefix = given or "features"
    assert {p.name.partition("_")[0] for p in (tmp_path / "out").iterdir()} == {prefix}
    text = run(capfd, "verify", "--store", store, "--materialized", tmp_path / "out")
    assert "nothing damaged" in text


def test_the_probe_leaves_absent_inputs_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    count, ids = 60, [f"folder/{i:03d}" for i in range(60)]
    absent = dict.fromkeys(range(0, count, 5), "text")
    make_generic_store(tmp_path / "store", absent, samples=count)
    labels = np.zeros((count, 23), np.float32)
    labels[np.arange(count), np.arange(count) % 3] = 1
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels/labels_all_23.npy", labels)
    (tmp_path / "labels/ids_all.txt").write_text("\n".join(ids))
    split = {"train": ids[:30], "dev": ids[30:40], "test": ids[40:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    arguments = ["probe", "--store", tmp_path / "store", "--labels-dir", tmp_path / "labels"]
    arguments += ["--split-json", tmp_path / "split.json", "--device", "cpu"]
    text = run(capfd, *arguments)
    assert (
        "24 train, 8 dev, 16 test samples; 0 with a bad input, 12 without the input of a feature "
        "left out" in text
    )
    facts = json.loads(run(capfd, *arguments, "--json"))
    assert facts["absent"] == {"train": 6, "dev": 2, "test": 4}
    facts = json.loads(run(capfd, *arguments, "--features", "clip_image", "--json"))
    assert facts["absent"] == {"train": 0, "dev": 0, "test": 0}
    assert facts["samples"] == {"train": 30, "dev": 10, "test": 20}
