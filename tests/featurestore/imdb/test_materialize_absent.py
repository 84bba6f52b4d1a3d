"""Materialized files of samples without an image or a text, and their file of presence."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from featurestore import FeatureDataset
from featurestore.errors import InputError
from featurestore.imdb.materialize import PREFIX, materialize, verify_materialized
from featurestore.storage.store import FeatureStore
from tests.featurestore import kills
from tests.featurestore.kills import killed_at
from tests.featurestore.stores import StoreAndRows, make_generic_store, make_store

ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
KEPT = {"clip_image": [0, 1, 3, 4, 5, 6, 7, 8, 10], "clip_text": [0, 2, 3, 8, 10]}
PRESENCE = "features_presence.npy"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("absent") / "store"
    return path, make_generic_store(path, ABSENT)


def manifest(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "features_manifest.json").read_bytes()))


def test_rows_stats_and_presence(built: StoreAndRows, tmp_path: Path) -> None:
    path, rows = built
    done = materialize(FeatureStore(path), tmp_path / "out")
    for name, kept in KEPT.items():
        dim = rows[name].shape[2]
        wide = rows[name][kept].reshape(-1, dim).astype(np.float64)
        stats = np.load(tmp_path / "out" / f"features_{name}.stats.npz")
        np.testing.assert_allclose(stats["mu"], wide.mean(axis=0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(stats["sigma"], wide.std(axis=0), rtol=1e-6)
        written = np.load(tmp_path / "out" / f"features_{name}.npy").reshape(rows[name].shape)
        scaled = (rows[name] - stats["mu"]) / (stats["sigma"] + np.float32(1e-6))
        assert written[kept].tobytes() == scaled[kept].tobytes()
        others = [i for i in range(11) if i not in kept]
        assert written[others].tobytes() == np.zeros_like(rows[name][others]).tobytes()
    presence = np.load(tmp_path / "out" / PRESENCE)
    assert (presence.dtype, presence.shape) == (np.dtype(bool), (11, 2))
    for column, kept in enumerate(KEPT.values()):
        assert np.flatnonzero(presence[:, column]).tolist() == kept
    stated = manifest(tmp_path / "out")
    digest = hashlib.sha256((tmp_path / "out" / PRESENCE).read_bytes()).hexdigest()
    assert isinstance(stated["sha256"], dict)
    assert stated["sha256"][PRESENCE] == digest
    assert stated["presence_npy"] == PRESENCE
    assert stated["modalities"] == {"clip_image": "image", "clip_text": "text"}
    assert stated["absent"] == {"image": 2, "text": 6}
    assert list(done.files)[-2:] == [PRESENCE, "features_manifest.json"]
    assert verify_materialized(tmp_path / "out", "features") == []


def test_the_index_of_other_data_than_mm_imdb(built: StoreAndRows, tmp_path: Path) -> None:
    materialize(FeatureStore(built[0]), tmp_path / "out")
    with (tmp_path / "out/features_aug_index.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 11 * 4
    assert lines[4 * 8 + 2] == {
        "aug_idx": "34",
        "orig_idx": "8",
        "view": "2",
        "stem": "folder/008",
        "image_name": "",
        "text_len": "24",
    }
    assert {line["text_len"] for line in lines if line["orig_idx"] == "9"} == {"0"}


def test_no_presence_where_nothing_is_absent(tmp_path: Path) -> None:
    make_store(tmp_path / "paper")
    make_generic_store(tmp_path / "whole", {})
    make_generic_store(
        tmp_path / "images", dict.fromkeys(range(11), "text"), dims={"clip_image": 64}
    )
    for name, prefix in (("paper", PREFIX), ("whole", "features"), ("images", "features")):
        materialize(FeatureStore(tmp_path / name), tmp_path / f"{name}-files")
        names = {p.name for p in (tmp_path / f"{name}-files").iterdir()}
        assert f"{prefix}_manifest.json" in names
        assert not any("presence" in each for each in names)
        text = (tmp_path / f"{name}-files" / f"{prefix}_manifest.json").read_text()
        assert "presence" not in text
        assert "modalities" not in text
        assert FeatureDataset(tmp_path / f"{name}-files").indices.tolist() == list(range(11))


def test_a_second_run_replaces_presence(built: StoreAndRows, tmp_path: Path) -> None:
    make_generic_store(tmp_path / "whole", {})
    for path, has_presence in (
        (built[0], True),
        (built[0], True),
        (tmp_path / "whole", False),
        (built[0], True),
    ):
        materialize(FeatureStore(path), tmp_path / "out")
        assert (tmp_path / "out" / PRESENCE).exists() == has_presence
        assert verify_materialized(tmp_path / "out", "features") == []


def test_damaged_presence_is_found_and_refused(built: StoreAndRows, tmp_path: Path) -> None:
    out = tmp_path / "out"
    materialize(FeatureStore(built[0]), out)
    whole = (out / PRESENCE).read_bytes()
    (out / PRESENCE).write_bytes(whole[:-1] + bytes([1 - whole[-1]]))
    assert [f.file for f in verify_materialized(out, "features")] == [PRESENCE]
    with pytest.raises(InputError, match=r"presence\.npy is not what was written"):
        FeatureDataset(out)
    (out / PRESENCE).unlink()
    assert [f.file for f in verify_materialized(out, "features")] == [PRESENCE]
    with pytest.raises(InputError, match=r"Could not read .*presence\.npy"):
        FeatureDataset(out, missing="zero")


def test_a_killed_run_leaves_no_trace_in_the_next(built: StoreAndRows, tmp_path: Path) -> None:
    make_generic_store(tmp_path / "whole", {})
    reference = tmp_path / "reference"
    materialize(FeatureStore(tmp_path / "whole"), reference)
    number = 1
    while killed_at(number, kills.materialize_store, built[0], tmp_path / "out"):
        out = tmp_path / f"out-{number}"
        if (tmp_path / "out").exists():
            (tmp_path / "out").rename(out)
        materialize(FeatureStore(tmp_path / "whole"), out)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {
            p.name: p.read_bytes() for p in reference.iterdir()
        }
        number += 1
    assert number > 20


def test_a_feature_without_any_input(tmp_path: Path) -> None:
    make_generic_store(tmp_path / "store", dict.fromkeys(range(11), "text"))
    with pytest.raises(InputError, match="has the input of clip_text"):
        materialize(FeatureStore(tmp_path / "store"), tmp_path / "out")
    materialize(FeatureStore(tmp_path / "store"), tmp_path / "out", zscore="none")
    assert not np.load(tmp_path / "out/features_clip_text.npy").any()
    assert len(FeatureDataset(tmp_path / "out", ["clip_image"], zscore="none")) == 11
