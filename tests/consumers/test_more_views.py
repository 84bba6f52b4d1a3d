"""Views added to a store: only the new ones are computed, and they equal those of one build."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import producers
from consumers.build import build
from consumers.config import BuildConfig
from consumers.decisions import decide
from consumers.plan import Plan, make_plan
from consumers.resume.completion import completed
from consumers.resume.extension import find_extension
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter
from manyviews.operations.check.forecast import forecast_group
from manyviews.operations.check.target import open_target
from manyviews.operations.check.trial import run_trial
from producers.sources.kinds import scan_collection
from producers.sources.pairs import scan

FEATURES = ("clip_image", "blip2_image", "clip_text")
SAMPLES, BEFORE, AFTER = 12, 4, 8

# Producers note every view that they make, one word each.
COUNTING = """
import os
from producers import worker
from producers.recipes.images import random_crops
from producers.recipes.texts import hiding, tokens


def counted(owner, name, word, rows=lambda *_, **__: 1):
    honest = getattr(owner, name)

    def count(*arguments, **named):
        made = honest(*arguments, **named)
        with open(os.environ["MADE"], "a") as file:
            file.write((word + " ") * rows(*arguments, **named))
        return made

    setattr(owner, name, count)


counted(random_crops, "apply", "augmented")
counted(worker, "clean_view", "clean")
counted(hiding, "hidden_words", "masked")
counted(tokens.TokenEncoder, "encode_views", "encoded", lambda _, __, ids, lengths: len(ids))
"""

Made = Callable[[], Counter[str]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The number of views computed since the last call, by kind."""
    site, notes = tmp_path / "site", tmp_path / "made"
    site.mkdir()
    (site / "sitecustomize.py").write_text(COUNTING)
    ours = Path(producers.__path__[0]).parent  # another copy may be installed
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ours}")
    monkeypatch.setenv("MADE", str(notes))

    def count() -> Counter[str]:
        found = Counter(notes.read_text().split())
        notes.write_text("")
        # The encoder's own check at its start masks some as well.
        return Counter({word: n for word, n in found.items() if word != "masked"})

    return count


@pytest.fixture
def config(demo_data: Path, checkpoints: dict[str, str], tmp_path: Path) -> BuildConfig:
    """A build of a few samples whose images share no batch, so that no batch changes a bit."""
    data = tmp_path / "data"
    data.mkdir()
    whole = scan(demo_data / "dataset")
    for sample in whole.samples[:SAMPLES]:
        for name in (str(sample.image_name), str(sample.text_name)):
            shutil.copyfile(whole.path / name, data / name)
    return BuildConfig(
        data_dir=data,
        store=tmp_path / "store",
        models=checkpoints,
        features=FEATURES,
        batch_sizes={"clip_image": 1, "blip2_image": 1},
        views=BEFORE,
        chunk=8,
        producers=1,
        device="cpu",
    )


def test_only_the_new_views_are_made(config: BuildConfig, made: Made, tmp_path: Path) -> None:
    build(config)
    all_made = made()
    decoded = all_made["clean"] // 2
    assert all_made == {
        "augmented": decoded * (BEFORE - 1),
        "clean": 2 * decoded,
        "encoded": SAMPLES * BEFORE,
    }
    build(replace(config, resume=True, views=AFTER))
    new = AFTER - BEFORE
    assert made() == {"augmented": decoded * new, "encoded": SAMPLES * new}
    once = replace(config, store=tmp_path / "once", views=AFTER)
    build(once)
    extended, whole = FeatureStore(config.store), FeatureStore(once.store)
    assert extended.records == whole.records
    for name in FEATURES:
        for chunk in range(whole.spec.chunks):
            rows, expected = (store.read_chunk(name, chunk) for store in (extended, whole))
            if name == "clip_text":  # its batches are others
                np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
            else:
                np.testing.assert_array_equal(rows, expected)


def test_a_trial_makes_what_is_added_and_writes_what_is_written(
    config: BuildConfig, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(config)
    made()
    plan = planned(replace(config, resume=True, views=AFTER))
    written: list[tuple[int, ...]] = []
    honest = StoreWriter.commit_chunk

    def commit(self: StoreWriter, chunk: int, rows: Any, samples: Any, changed: Any) -> None:
        written.append(rows["clip_text"].shape)
        honest(self, chunk, rows, samples, changed)

    monkeypatch.setattr(StoreWriter, "commit_chunk", commit)
    trials = tmp_path / "trials"
    trials.mkdir()
    trial = run_trial(plan, trials, aim_s=1000.0)
    assert list(trials.iterdir()) == []
    each = SAMPLES // 4
    assert trial.samples == 3 * each
    # A first trial of one sample a chunk, then the one that counts; with the rows that are there.
    dim = plan.spec.dims["clip_text"]
    assert written == [(1, AFTER, dim)] * 3 + [(each, AFTER, dim)] * 3
    found = made()
    assert found["clean"] == 0
    assert found["encoded"] == (3 + 3 * each) * (AFTER - BEFORE)
    target = open_target(replace(config, resume=True, views=AFTER), scan_collection(config.inputs))
    facts = forecast_group(plan, trial, target.todo(SAMPLES)).facts
    assert facts["samples"] == SAMPLES
    assert facts["seconds"] == pytest.approx(trial.seconds(SAMPLES), abs=1e-3)
    assert facts["views_per_s"] == pytest.approx((AFTER - BEFORE) / trial.sample_s, rel=1e-3)


def planned(config: BuildConfig) -> Plan:
    """The plan of a build, as ``check`` makes it."""
    found, stored = scan_collection(config.inputs), FeatureStore(config.store)
    complete = completed(config, stored, found)
    wanted = find_extension(complete, stored, found)
    return make_plan(decide(complete, found, stored, wanted), lambda *_, **__: None)
