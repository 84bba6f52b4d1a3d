"""The report on a store where samples lack an image or a text: its figures are without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from manyviews.operations.report.features import measure
from manyviews.operations.report.page import Sources, page
from manyviews.operations.report.pairs import pairs
from manyviews.operations.report.sampling import choose
from tests.featurestore.stores import make_generic_store

DIMS = {"clip_image": 64, "clip_text": 64}
# The whole second chunk has no text; sample 9 has neither input; sample 8 is bad.
ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
BAD = {8: [BadInput(8, "image", "truncated", "it ends")]}
SOUND = {"clip_image": [0, 1, 3, 4, 5, 6, 7, 10], "clip_text": [0, 2, 3, 10]}
BOTH = [0, 3, 10]


def test_figures_are_without_absent_rows(tmp_path: Path) -> None:
    rows = make_generic_store(tmp_path / "store", ABSENT, dims=DIMS, bad=BAD)
    store = FeatureStore(tmp_path / "store")
    measured = []
    for name, sound in SOUND.items():
        facts = measure(store, name, choose(store))
        measured.append(facts)
        assert facts.samples.tolist() == sound
        values = rows[name][sound].astype(np.float64)
        np.testing.assert_array_equal(facts.clean, values[:, 0])
        norms = np.sqrt((values**2).sum(axis=2))
        np.testing.assert_allclose(facts.clean_norms, norms[:, 0], rtol=1e-5)
        np.testing.assert_allclose(facts.view_norms, norms[:, 1:].ravel(), rtol=1e-5)
        # Means and deviations count placeholders, as the z-score does.
        with_bad = rows[name][sorted({*sound, 8})].reshape(-1, 64).astype(np.float64)
        np.testing.assert_allclose(facts.moments.mean, with_bad.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(facts.moments.sigma, with_bad.std(axis=0), atol=1e-9)
        assert facts.between is not None
        assert facts.within is not None
        between = 4 * values.mean(axis=1).var(axis=0, ddof=1)
        within = ((values - values.mean(axis=1)[:, None]) ** 2).sum((0, 1)) / (len(sound) * 3)
        np.testing.assert_allclose(facts.between, between, rtol=1e-6)
        np.testing.assert_allclose(facts.within, within, rtol=1e-6)
    (pair,) = pairs(measured)
    image, text = (rows[name][BOTH, 0] for name in DIMS)
    np.testing.assert_allclose(
        pair.matched, cosine_similarity(image, text).diagonal(), rtol=1e-4, atol=1e-6
    )


def test_the_page_counts_absent_inputs(tmp_path: Path) -> None:
    make_generic_store(tmp_path / "store", ABSENT, dims=DIMS, bad=BAD)
    store = FeatureStore(tmp_path / "store")
    text = page(store, Sources(store.path), choose(store))
    for modality, count in (("image", 2), ("text", 6)):
        assert f"samples without {modality}" in text
        assert f"{count}; their rows are zeros, and in no figure" in text


@pytest.mark.parametrize("absent", ["text", "both"])
def test_a_feature_without_any_input_has_no_figure(tmp_path: Path, absent: str) -> None:
    make_generic_store(tmp_path / "store", dict.fromkeys(range(11), absent), dims=DIMS)
    store = FeatureStore(tmp_path / "store")
    text = page(store, Sources(store.path), choose(store))
    lacking = "clip_text" if absent == "text" else "clip_image, clip_text"
    assert f"None of them has the input of {lacking}." in text
    assert ("norms of clip_image" in text) == (absent == "text")
    assert "norms of clip_text" not in text
