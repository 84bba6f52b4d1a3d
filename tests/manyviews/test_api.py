"""``import manyviews``: every public name, and each command's work called from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manyviews
from featurestore import errors
from tests.conftest import ROOT

HEAVY = ("torch", "numpy", "transformers", "zarr", "PIL", "click")


def test_every_name_is_there_and_importing_loads_nothing() -> None:
    code = (
        "import sys, manyviews\n"
        f"loaded = set({HEAVY!r}) & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert set(manyviews.__all__) <= set(dir(manyviews))\n"
        "for name in manyviews.__all__:\n"
        "    value = getattr(manyviews, name)\n"
        "    assert name == '__version__' or (value.__doc__ and value.__name__ == name), name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        _ = manyviews.bild


def test_every_error_is_public() -> None:
    for name, value in vars(errors).items():
        of_ours = isinstance(value, type) and value.__module__ == errors.__name__
        if of_ours and issubclass(value, (errors.ManyViewsError, errors.ManyViewsWarning)):
            # A bad sample's reason never leaves a build: it is recorded instead.
            assert name == "BadSampleError" or getattr(manyviews, name) is value, name


def test_the_commands_as_functions(
    demo_data: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    config = manyviews.BuildConfig(
        data_dir=demo_data / "dataset",
        store=tmp_path / "store",
        views=4,
        chunk=16,
        features=("clip_image",),
        models=checkpoints,
        device="cpu",
        producers=1,
    )
    split = demo_data / "split.json"
    said: list[str] = []
    assert manyviews.check(config, split_json=split, calibrate=False, say=said.append).groups
    events: list[tuple[str, Any]] = []
    manyviews.build(config, [lambda name, facts: events.append((name, dict(facts)))])
    assert events
    assert manyviews.status(config.store).ended == "complete"
    assert not manyviews.verify(config.store).findings
    report = manyviews.labels(config.data_dir, tmp_path / "labels")
    store = manyviews.FeatureStore(config.store)
    assert report.samples == store.spec.samples
    files = manyviews.materialize(str(config.store), str(tmp_path / "embeddings")).files
    rows = np.load(tmp_path / "embeddings" / next(n for n in files if n.endswith("image.npy")))
    exported = manyviews.export(config.store, tmp_path / "npy", "npy", views=[0], zscore="none")
    assert exported.rows == store.spec.samples == len(rows) // 4
    assert manyviews.report(config.store, tmp_path / "page.html")["samples"] == report.samples
    table = manyviews.probe(config.store, tmp_path / "labels", split)
    assert [row.features for row in table.rows] == [("clip_image",)] * 2
