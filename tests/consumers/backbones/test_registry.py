from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from consumers.backbones import registry
from consumers.backbones.registry import (
    REGISTRY,
    check_features,
    info,
    resolve_device,
    resolve_dtype,
)
from featurestore.errors import BackboneError, ConfigError
from featurestore.records import FEATURES


def test_the_registry_knows_every_feature() -> None:
    assert tuple(REGISTRY) == FEATURES
    for feature, entry in REGISTRY.items():
        assert entry.modality in feature
        assert entry.model({}) == entry.default_model
        assert entry.model({entry.variable: " mine "}) == "mine"
        assert entry.batch_size("cuda:1") > entry.batch_size("cpu")
    with pytest.raises(ConfigError, match="clip_image, clip_text"):
        info("clip_sound")


def test_importing_the_registry_loads_no_heavy_library() -> None:
    code = (
        "import sys, consumers.backbones.registry\n"
        "print([m for m in ('torch', 'transformers', 'torchvision') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"])
def test_names_that_are_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a device"):
        resolve_device(name)


def test_dtypes() -> None:
    assert resolve_dtype("auto", "cpu") == "float32"
    assert resolve_dtype("auto", "cuda:0") == "bfloat16"
    assert resolve_dtype("float16", "cuda:0", "blip2_image") == "float16"
    assert resolve_dtype("bfloat16", "cuda:0", "clip_text") == "float32"
    with pytest.raises(ConfigError, match="needs a GPU"):
        resolve_dtype("float16", "cpu")
    with pytest.raises(ConfigError, match="is not one of"):
        resolve_dtype("int8", "cpu")


def test_check_features() -> None:
    rows = np.ones((6, 4), np.float32)
    check_features("clip_text", rows, 4)
    check_features("clip_text", rows[:0], 4)
    check_features("clip_text", np.full((6, 4), np.finfo(np.float32).max, np.float32), 4)
    for wrong in (rows[:, :3], rows[0], rows.astype(np.float64)):
        with pytest.raises(BackboneError, match=r"clip_text returned .*expected float32"):
            check_features("clip_text", wrong, 4)
    rows[4, 1], rows[5, 0], rows[5, 1] = np.inf, -np.inf, np.nan
    with pytest.raises(BackboneError, match="2 of 6 rows, first for sample 11, view 1"):
        check_features("clip_text", rows, 4, samples=range(10, 20), views=3)
    with pytest.raises(BackboneError, match="first for sample 11, view 9"):  # of added views
        check_features("clip_text", rows, 4, samples=range(10, 20), first_view=8, views=3)


def test_loading_is_silent(
    tiny_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.consumers.conftest import KINDS

    for feature in FEATURES:
        registry.load(feature, str(tiny_folders[KINDS[feature]]), "cpu", "auto")
    assert capfd.readouterr() == ("", "")
