"""Minimum time for MM-IMDb on a GPU, computed from the FLOPs of the backbones at full size.

    python -m benchmarks.ceiling

Nothing is timed and no GPU is needed. The backbones are the very ones that a build loads, with
random weights, and run on torch's ``meta`` device, where tensors have shapes and no values. Divided
by what the maker says a GPU does at most, the FLOPs give a time that no program comes under;
divided by the utilisation that ``benchmarks.gpu`` measures, the time that a build takes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.flops import MAKERS_PEAK, forward_flops, makers_peak, text_flops
from benchmarks.full_size import SAMPLES_OF_MMIMDB, VIEWS, draw_lengths, make_full_size
from benchmarks.measuring import table
from consumers.backbones import registry
from featurestore.records import FEATURES

GPUS = ("H100", "A100", "L40S", "RTX 4090")
HEAD = ("feature", "dtype on a GPU", "GFLOP per view", *(f"{gpu}, minutes" for gpu in GPUS))
META = torch.device("meta")


def emptied(backbone: Any) -> Any:
    """The backbone itself, of whose weights only shapes are left."""
    backbone._network.to(META)
    backbone.device = META
    if hasattr(backbone, "image"):
        backbone._normalize.table = backbone._normalize.table.to(META)
    return backbone


def flops_per_view(backbone: Any) -> float:
    """FLOPs of one view without padding, of texts the mean over lengths like MM-IMDb's."""
    if hasattr(backbone, "image"):
        side = backbone.image.size
        pixels = torch.empty(1, side, side, 3, dtype=torch.uint8, device=backbone.device)
        return forward_flops(backbone, pixels)
    lengths = draw_lengths(np.random.default_rng(0), 100_000, backbone.text.max_length)
    return float(text_flops(backbone)(lengths.astype(float)).mean())


def least_seconds(flops: float, gpu: str, dtype: torch.dtype) -> float:
    """Seconds for MM-IMDb on a GPU that always reaches its specified peak.

    Args:
        flops: per view.
        gpu: a name that ``MAKERS_PEAK`` has.
        dtype: of the weights.
    """
    peak = makers_peak(gpu, dtype)
    if peak is None:
        raise ValueError(f"{gpu} is none of {', '.join(MAKERS_PEAK)}")
    return flops * VIEWS * SAMPLES_OF_MMIMDB / peak


def main() -> None:
    """Prints a table with a line per backbone, and their sum."""
    rows, total = [], np.zeros(len(GPUS))
    with tempfile.TemporaryDirectory(prefix="manyviews-ceiling-") as folder:
        for feature in FEATURES:
            checkpoint = make_full_size(feature, Path(folder), torch.device("cpu"))
            flops = flops_per_view(emptied(registry.load(feature, str(checkpoint), "cpu", "auto")))
            dtype = registry.resolve_dtype("auto", "cuda:0", feature)
            seconds = np.array([least_seconds(flops, g, getattr(torch, dtype)) for g in GPUS])
            total += seconds
            minutes = [f"{s / 60:.1f}" for s in seconds]
            rows.append([feature, dtype, f"{flops / 1e9:.1f}", *minutes])
    rows.append(["all four", "", "", *(f"{s / 60:.1f}" for s in total)])
    print(table(HEAD, rows))
    rates = (f"{SAMPLES_OF_MMIMDB / s:.0f} on an {gpu}" for gpu, s in zip(GPUS, total, strict=True))
    print(f"\nTo keep up, producers would have to make, in samples per s: {', '.join(rates)}.")


if __name__ == "__main__":
    main()
