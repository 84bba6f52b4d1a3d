"""FLOPs of a forward pass, and a device's maximum FLOP per second.

torch's counter knows matrix products, convolutions and attention; a multiplication and an addition
are two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from numpy.polynomial import Polynomial
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# Dense, without sparsity, in FLOP per second: bfloat16 and float16, and float32 without TF32, from
# NVIDIA's data sheets. Words of the names that torch gives; of two that fit, the first: a bare H100
# or H200 is the SXM module.
MAKERS_PEAK = {
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 30.3e12),
    "RTX 4090": (165e12, 82.6e12),
}
# A part of a GPU, or a slower one of nearly the same name.
_SLOWER = {"MIG", "Laptop", "D"}


def wait_for(device: torch.device) -> None:
    """Waits until all queued work of a GPU is done; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a square matrix product, the median of some."""
    side = 8192 if device.type == "cuda" else 2048
    left = torch.randn(side, side, device=device).to(dtype)
    laps = []
    for _ in range(8):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(4):
            left @ left
        wait_for(device)
        laps.append(4 * 2 * side**3 / (time.perf_counter() - start))
    return statistics.median(laps[1:])


def makers_peak(name: str, dtype: torch.dtype) -> float | None:
    """FLOP per second that the maker states for a GPU of this name; None where it is not known."""
    words = name.replace("-", " ").split()
    if _SLOWER & set(words):
        return None
    padded = f" {' '.join(words)} "
    found = next((peaks for key, peaks in MAKERS_PEAK.items() if f" {key} " in padded), None)
    return None if found is None else found[dtype == torch.float32]


def forward_flops(backbone: Any, *batch: torch.Tensor) -> int:
    """FLOPs of embedding one batch, padding included."""
    # The counter does not know the attention kernels of CPUs.
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={op: _attention}) as counter:
        backbone.embed(*batch)
    return int(counter.get_total_flops())


def text_flops(backbone: Any) -> Polynomial:
    """FLOPs of one text by its tokens, without padding.

    Some are for the text, some for each token and some for each pair of tokens: three lengths tell.
    """
    limit = backbone.text.max_length
    lengths = (limit // 4, limit // 2, limit)
    ids = torch.full((1, limit), 3, device=backbone.device)
    counted = [forward_flops(backbone, ids[:, :n], torch.ones_like(ids[:, :n])) for n in lengths]
    return Polynomial.fit(lengths, counted, 2)


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
