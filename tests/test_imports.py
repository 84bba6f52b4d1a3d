"""Light imports stay light: producers start within tenths of a second, and help is immediate."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = ("numpy", "torch", "torchvision", "transformers", "sentence_transformers", "zarr", "PIL")
MODELS = tuple(name for name in HEAVY if name not in ("numpy", "PIL"))


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import featurestore, consumers, producers", HEAVY),
        ("import featurestore.errors", HEAVY),
        ("import consumers.config, featurestore.records, featurestore.records", HEAVY),
        ("import producers.worker", (*MODELS, "open_clip", "ftfy")),
        ("import producers.pool", MODELS),
        ("import consumers.backbones.registry", MODELS),
        ("import consumers.progress", MODELS),
        ("from manyviews import main", (*HEAVY, "rich")),
    ],
)
def test_an_import_loads_nothing_heavy(statement: str, unwanted: tuple[str, ...]) -> None:
    assert loaded_by(statement).isdisjoint(unwanted)


def test_the_check_itself_can_fail() -> None:
    assert "zarr" in loaded_by("import zarr")


def test_the_package_offers_its_main_names_lazily() -> None:
    loaded = loaded_by("import featurestore; featurestore.FeatureStore")
    assert "numpy" in loaded
    assert "torch" not in loaded  # which FeatureDataset needs
