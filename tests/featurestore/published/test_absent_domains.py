"""The published domains of a store where samples lack an image or a text: these are left out."""

import json
from pathlib import Path

import numpy as np
import pytest

from featurestore.datamodule import make_datasets
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.storage.store import FeatureStore
from tests.featurestore.stores import make_generic_store
from tests.featurestore.worlds import domain_data

ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
SPLIT = {"train": [0, 1, 2, 3, 8], "dev": [4, 9, 10], "test": [5, 6]}
LEFT = {"train": [0, 3, 8], "dev": [10], "test": []}


@pytest.mark.parametrize("materialized", [False, True])
@pytest.mark.parametrize("normalize", ["none", "train_split"])
def test_samples_that_lack_an_input_are_in_no_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalize: str, materialized: bool
) -> None:
    rows = make_generic_store(tmp_path / "store", ABSENT)
    folder = tmp_path / "store"
    if materialized:
        folder = tmp_path / "files"
        materialize(FeatureStore(tmp_path / "store"), folder, prefix=PREFIX)
    stems = {name: [f"folder/{i:03d}" for i in part] for name, part in SPLIT.items()}
    (tmp_path / "split.json").write_text(json.dumps(stems))
    monkeypatch.setenv("MMIMDB1_DIR", str(tmp_path))
    parts = make_datasets(
        folder / f"{PREFIX}_clip_image.npy",
        folder / f"{PREFIX}_clip_text.npy",
        view_mode="all",
        normalize=normalize,
    )
    names = {"image_latents": "clip_image", "caption_embeddings": "clip_text"}
    for groups, part in zip(parts, LEFT, strict=True):
        data = domain_data(groups[frozenset(names)])
        for domain, feature in names.items():
            kept = [i for i in range(11) if feature == "clip_image" and i not in (2, 9)]
            kept = kept or [0, 2, 3, 8, 10]
            wide = rows[feature].astype(np.float64)
            used = wide[kept].reshape(-1, wide.shape[2])
            wide = (wide - used.mean(axis=0)) / (used.std(axis=0) + 1e-6)
            if normalize == "train_split":
                used = wide[LEFT["train"]].reshape(-1, wide.shape[2])
                wide = (wide - used.mean(axis=0)) / used.std(axis=0, ddof=1)
            expected = wide[LEFT[part]].reshape(-1, wide.shape[2])
            assert data[domain].shape == expected.shape
            np.testing.assert_allclose(np.asarray(data[domain]), expected, atol=2e-5)
