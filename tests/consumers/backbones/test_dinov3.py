"""DINOv3, whose processor resizes with torchvision only and keeps fractions of a pixel's values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consumers.backbones import declared
from consumers.backbones.config import BackboneConfig
from consumers.backbones.registry import quiet_transformers
from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable
from manyviews.operations.demo.checkpoints import _spread
from producers.recipes.images.geometry import clean_view

SIDE = 64


def load(folder: Path, size: int = 0) -> Any:
    config = BackboneConfig(adapter="transformers-image", model=str(folder), size=size)
    return declared.load("f", config, "cpu", "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ensure_importable()
    quiet_transformers()
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    made = tmp_path_factory.mktemp("models") / "dinov3"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = DINOv3ViTConfig(image_size=SIDE, patch_size=16, intermediate_size=64, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DINOv3ViTModel(config)
        _spread(model)
        model.save_pretrained(made)
    DINOv3ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def posters(demo_data: Path) -> list[Image.Image]:
    found = []
    for path in sorted((demo_data / "dataset").glob("*.jp*g")):
        try:
            with Image.open(path) as image:
                found.append(image.convert("RGB"))
        except OSError:
            continue  # the demo has damaged ones, too
    assert len(found) > 20
    return found


@pytest.mark.parametrize("size", [0, 96])
def test_pixels_are_the_processors_rounded_and_features_follow(
    folder: Path, posters: list[Image.Image], size: int
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    backbone = load(folder, size)
    side = size or SIDE
    assert backbone.image.size == side
    processor = AutoImageProcessor.from_pretrained(folder, size={"height": side, "width": side})
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ours = torch.from_numpy(np.stack([clean_view(p, backbone.image) for p in posters]))
    expected = torch.cat([processor(p, return_tensors="pt")["pixel_values"] for p in posters])
    level = 1 / (255 * torch.tensor(processor.image_std)[:, None, None])
    apart = (backbone._normalize(ours) - expected).abs() / level
    assert apart.max() < 1
    assert apart.mean() < 0.3
    with torch.inference_mode():
        features = model(pixel_values=expected).pooler_output
    error = (backbone.embed(ours) - features) / features.std(0)
    assert features.std(0).min() > 1e-3
    assert error.square().mean().sqrt() < 0.01


def test_what_differs_by_more_than_rounding_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import DINOv3ViTImageProcessor

    original = DINOv3ViTImageProcessor.resize

    def blurred(self: Any, image: torch.Tensor, **keywords: Any) -> torch.Tensor:
        resized: torch.Tensor = original(self, image, **keywords | {"antialias": False})
        return resized

    monkeypatch.setattr(DINOv3ViTImageProcessor, "resize", blurred)
    with pytest.raises(ConfigError, match="not reproduced: it differs from ours"):
        load(folder)
