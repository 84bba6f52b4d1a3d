"""Tiny checkpoints and inputs that the tests of the backbones share."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from consumers.backbones import registry
from consumers.backbones.protocol import Backbone
from featurestore.records import FEATURES
from tests import forked

KINDS = {"clip_image": "clip", "clip_text": "sentence"} | dict.fromkeys(FEATURES[2:], "blip2")


@pytest.fixture(scope="module", autouse=True)
def forked_children() -> Iterator[None]:
    """Builds of this process fork their producers."""
    with forked.children():
        yield


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from manyviews.operations.demo import checkpoints

    return checkpoints.make_checkpoints(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def backbone(tiny_folders: dict[str, Path]) -> Callable[[str], Backbone]:
    """A feature's backbone on the CPU in float32, loaded once."""

    @functools.cache
    def load(feature: str) -> Backbone:
        return registry.load(feature, str(tiny_folders[KINDS[feature]]), "cpu", "float32")

    return load


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """64 pictures of different colours, gradients and grain, uint8 ``[64, 224, 224, 3]``."""
    rng = np.random.default_rng(1)
    ramp = np.linspace(-1, 1, 224)
    base = rng.uniform(30, 225, (64, 1, 1, 3))
    across, down = rng.normal(0, 50, (2, 64, 1, 1, 3))
    grain = rng.normal(0, 20, (64, 224, 224, 3))
    tilt = across * ramp[None, None, :, None] + down * ramp[None, :, None, None]
    found: np.ndarray = np.clip(base + tilt + grain, 0, 255).astype(np.uint8)
    return found


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """72 texts of 0 to 900 words, some with masks, odd blanks, capitals and other scripts."""
    rng = random.Random(2)
    line = "love war [MASK] Detective king, ghost? dragon 1999 café Ünder naïve x-ray the of"
    words = line.split()
    sizes = [0, 1, 2, 300, 900, *(rng.randrange(1, 60) for _ in range(64))]
    texts = [" ".join(rng.choices(words, k=size)) for size in sizes]
    return [*texts, " \n two  lines\n of  text\t", "UPPER lower", "雨 и дождь 🌧"]
