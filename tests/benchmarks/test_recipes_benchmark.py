"""The scores of the benchmark of recipes: what they find in features that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.recipes import baseline, info_nce, probe, scores


def test_info_nce_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 9, 5))
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    logits = unit_a @ unit_b.T / 0.2
    expected = 0.0
    for each in (logits, logits.T):
        expected -= np.mean(np.diag(each) - np.log(np.exp(each).sum(axis=1)))
    found = info_nce(torch.from_numpy(a), torch.from_numpy(b))
    assert float(found) == pytest.approx(expected)


def test_scores_find_labels_in_features_and_none_in_noise() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random((120, 3)) < 0.4
    noise = rng.normal(size=(120, 4, 8)).astype(np.float32)
    known = noise.copy()
    known[:, :, :3] += 8 * labels[:, None]
    chance = baseline(labels)
    of = {
        name: probe(x[:80], labels[:80], x[80:, 0], labels[80:])
        for name, x in (("known", known), ("noise", noise))
    }
    assert of["known"] > 0.98
    assert abs(of["noise"] - chance) < 0.15
    found = scores([known, known], labels, seed=0, steps=60)
    assert min(found.clean, found.views) > 0.98
    assert found.contrastive > chance + 0.2
