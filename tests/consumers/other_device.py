"""Embeds with every kind of backbone on a device that is not the CPU, without having one.

    python -m tests.consumers.other_device FOLDER

Fake tensors have shapes, dtypes and devices, and no values; an operation on tensors of two devices
fails as it does on a GPU, which the ``meta`` device alone would let pass for most operations. torch
lets Python register a device for that: for a whole process, so this is a separate one. Prints a
JSON line for each backbone and dtype: the features' device, dtype and shape, or what failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from consumers.backbones import declared, registry
from consumers.backbones.config import BackboneConfig
from consumers.backbones.declared import ADAPTERS
from consumers.checkpoints.patches import multiply_patches
from consumers.engine.batching import ImageBatcher, TextBatcher
from manyviews.operations.demo import checkpoints
from tests.consumers.conftest import KINDS
from tests.consumers.library_models import make_library_models

OTHER = torch.device("privateuseone:0")
ROWS, TOKENS = 3, 9
# A feature of which one tensor is left on the CPU.
FORGOTTEN = "forgotten"


def make_all(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The checkpoints of the paper's backbones, and those of the adapters."""
    tiny_folders = checkpoints.make_checkpoints(folder / "tiny")
    libraries = {adapter: folder / adapter for adapter in ADAPTERS}
    libraries["open-clip-text"] = libraries["open-clip-image"]
    make_library_models(libraries, tiny_folders["sentence"])
    return tiny_folders, libraries


def load_all(
    tiny_folders: dict[str, Path], libraries: dict[str, Path], dtype: str
) -> dict[str, Any]:
    """The paper's four backbones, one of every adapter, and one that is only partly moved."""
    loaded: dict[str, Any] = {
        feature: registry.load(feature, str(tiny_folders[kind]), "cpu", dtype)
        for feature, kind in KINDS.items()
    }
    loaded[FORGOTTEN] = registry.load("clip_image", str(tiny_folders["clip"]), "cpu", dtype)
    for adapter, own in libraries.items():
        table = BackboneConfig(adapter=adapter, model=str(own))
        loaded[adapter] = declared.load("own", table, "cpu", dtype)
    return loaded


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """A fake of ``tensor`` on the other device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=OTHER)


def embed(name: str, backbone: Any) -> torch.Tensor:
    """The features of a batch that was sent to the other device."""
    for network in vars(backbone).values():
        if isinstance(network, torch.nn.Module):
            multiply_patches(network)  # as on a GPU
            network._apply(moved)  # type: ignore[no-untyped-call]
    backbone.device = OTHER
    owner: Any = SimpleNamespace(backbone=backbone)
    if not hasattr(backbone, "image"):
        sent = torch.empty(ROWS, TOKENS, dtype=torch.int32, device=OTHER)
        return TextBatcher._forward(owner, sent)
    if name != FORGOTTEN:
        backbone._normalize.table = moved(backbone._normalize.table)
    side = backbone.image.size
    sent = torch.empty(ROWS, side, side, 3, dtype=torch.uint8, device=OTHER)
    return ImageBatcher._forward(owner, sent)


def main(folder: Path, dtypes: list[str]) -> None:
    """Prints the lines."""
    made = make_all(folder)
    loaded = {dtype: load_all(*made, dtype) for dtype in dtypes}
    _setup_privateuseone_for_python_backend()
    for dtype, models in loaded.items():
        for name, backbone in models.items():
            line: dict[str, Any] = {"backbone": name, "dtype": dtype, "dim": backbone.dim}
            try:
                with FakeTensorMode(allow_non_fake_inputs=name == FORGOTTEN):
                    features = embed(name, backbone)
                line["found"] = [str(features.device), str(features.dtype), *features.shape]
            except (AssertionError, RuntimeError) as error:
                line["failed"] = str(error)
            print(json.dumps(line))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
