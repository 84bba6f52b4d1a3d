"""The paper's backbones at full size against their own ceiling: the model with its input at hand.

    python -m benchmarks.gpu [--quick] [--device cpu] [--feature clip_image]...

The weights are random, made from the configurations of CLIP ViT-B/32 and BLIP-2 flan-t5-xl; speed
does not depend on them. Every backbone runs the same batches twice, in turn: on tensors that are on
the device already, and as a build does, from host memory to host memory. FLOPs are counted in the
forward pass that is timed (torch's counter: matrix products, convolutions, attention; a
multiplication and an addition are two). Utilisation is what share of a large matrix product's rate
in the same dtype that is, measured in this run, and of the maker's figure where the GPU is known.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import make_full_size
from benchmarks.measuring import Contender, goal, machine, parser, rate, ratio, table, take_turns
from benchmarks.measuring import timed as timed_lap
from consumers import backbones
from consumers.batching import ImageBatcher, TextBatcher, text_plan
from featurestore.records import FEATURES

VIEWS = 70
SAMPLES_OF_MMIMDB = 25_959
# Dense bfloat16 and float16, without sparsity, in FLOP per second, from NVIDIA's data sheets.
MAKERS_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "RTX 4090": 165e12}
ALONE, BUILDING = "model alone", "as in a build"
# Tokens of synopses: a log-normal whose median is 140 tokens and whose 95th percentile is 370.
TOKENS_LOG_MEAN, TOKENS_LOG_STD = np.log(140), 0.59


class Work:
    """A chunk's rows for one backbone, in host memory and in the batches of the plan."""

    def __init__(self, backbone: Any, batch: int, samples: int) -> None:
        rng = np.random.default_rng(0)
        self.backbone, self.rows = backbone, samples * VIEWS
        self._samples = samples
        self.batcher: ImageBatcher | TextBatcher
        self.batches: list[tuple[torch.Tensor, ...]]
        if hasattr(backbone, "image"):
            side = backbone.image.size
            # One sample's pixels again and again; it is not the content that takes time.
            self._pixels = rng.integers(0, 256, (VIEWS, side, side, 3), dtype=np.uint8)
            self.batcher = ImageBatcher(backbone, batch, self.rows)
            order = np.arange(-(-self.rows // batch) * batch).reshape(-1, batch)
            self.batches = [(torch.from_numpy(self._pixels[rows % VIEWS]),) for rows in order]
            self.batches[-1][0][self.rows - batch * (len(order) - 1) :] = 0  # what fills it up
        else:
            limit = backbone.text.max_length
            drawn = rng.lognormal(TOKENS_LOG_MEAN, TOKENS_LOG_STD, self.rows)
            self._lengths = drawn.clip(2, limit).astype(np.int32)
            self._ids = rng.integers(3, 90, (self.rows, limit), dtype=np.int32)
            self.batcher = TextBatcher(backbone, batch, self.rows)
            self.plan = text_plan(self._lengths, batch * limit, batch * 8)
            self.batches = [self._padded(b.rows, b.length) for b in self.plan]
        self.batches = [tuple(t.to(backbone.device) for t in b) for b in self.batches]

    def _padded(self, rows: Sequence[int], length: int) -> tuple[torch.Tensor, ...]:
        mask = np.arange(length) < self._lengths[list(rows), None]
        ids = np.where(mask, self._ids[list(rows), :length], self.backbone.text.pad_id)
        return torch.from_numpy(ids).long(), torch.from_numpy(mask).long()

    def alone(self) -> torch.Tensor:
        """The features of all batches, in the order of the plan, on the device."""
        return torch.cat([self.backbone.embed(*batch) for batch in self.batches])[: self.rows]

    def fill(self) -> None:
        """Adds the chunk's samples."""
        for sample in range(self._samples):
            if isinstance(self.batcher, ImageBatcher):
                self.batcher.add(self._pixels[0], self._pixels[1:])
            else:
                rows = slice(sample * VIEWS, (sample + 1) * VIEWS)
                self.batcher.add(self._ids[rows], self._lengths[rows])

    def built(self) -> np.ndarray:
        """The features as a build has them, in the order of the rows."""
        self.fill()
        return self.batcher.end().take()

    def in_order(self, planned: np.ndarray) -> np.ndarray:
        """Features in the order of the rows."""
        if isinstance(self.batcher, ImageBatcher):
            return planned
        found = np.empty_like(planned)
        found[[row for batch in self.plan for row in batch.rows]] = planned
        return found


def measure(backbone: Any, batch: int, peak: float, seconds: float, rounds: int) -> list[str]:
    """A line of the table; prints whether the goal is met and the bytes are equal."""
    wait = torch.cuda.synchronize if backbone.device.type == "cuda" else _nothing
    one = Work(backbone, batch, samples=1)
    one.built()
    start = time.perf_counter()
    one.built()
    samples = max(1, min(64, round(seconds / (time.perf_counter() - start))))
    work = Work(backbone, batch, samples)
    _require_equal(work)
    if backbone.device.type == "cuda":
        _require_no_wait(work)

    def alone() -> float:
        work.alone()
        wait()
        return work.rows

    def building() -> float:
        return len(work.built())

    contenders: dict[str, Contender] = {
        ALONE: timed_lap(alone, time.perf_counter),
        BUILDING: timed_lap(building, time.perf_counter),
    }
    laps = take_turns(contenders, rounds)
    with FlopCounterMode(display=False) as counter:
        work.alone()
    # Of what fills up the last batch nobody has any use.
    flops = counter.get_total_flops() / sum(len(first) for first, *_ in work.batches)
    share = ratio(laps[BUILDING], laps[ALONE])
    print(goal(f"{backbone.feature}: {BUILDING} / {ALONE}", share.median, 0.95), flush=True)
    speed = rate(laps[BUILDING]).median
    used = [f"{flops * speed / peak:.0%}"]
    if backbone.dtype != torch.float32 and (makers := _makers_peak(backbone.device)):
        used.append(f"{flops * speed / makers:.0%}")
    return [
        backbone.feature,
        f"{str(backbone.dtype).removeprefix('torch.')}, {batch}",
        str(rate(laps[BUILDING])),
        str(share),
        f"{flops / 1e9:.1f}",
        " / ".join(used),
        f"{SAMPLES_OF_MMIMDB * VIEWS / speed / 3600:.1f}",
    ]


def _require_equal(work: Work) -> None:
    """Stops unless both ways, and each of them twice, give the same bytes."""
    first, second = work.built(), work.built()
    direct = work.in_order(work.alone().cpu().numpy())
    if not first.tobytes() == second.tobytes() == direct.tobytes():
        raise SystemExit(f"{work.backbone.feature}: the features' bytes differ between runs")


def _require_no_wait(work: Work) -> None:
    """Stops where an operation between two batches waits for the GPU: torch's own watch."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        work.fill()
        ended = work.batcher.end()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ended.take()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a square matrix product, the median of some."""
    side = 8192 if device.type == "cuda" else 2048
    left = torch.randn(side, side, device=device).to(dtype)
    laps = []
    for _ in range(8):
        _wait_for(device)
        start = time.perf_counter()
        for _ in range(4):
            left @ left
        _wait_for(device)
        laps.append(4 * 2 * side**3 / (time.perf_counter() - start))
    return statistics.median(laps[1:])


def _makers_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in MAKERS_PEAK.items() if key in name), None)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _nothing() -> None:
    """A CPU has done what it was told when a call returns."""


def main() -> None:
    """Prints a table with a line per backbone."""
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument("--device", default="auto", help="as for build")
    arguments.add_argument(
        "--feature", action="append", choices=FEATURES, help="all on a GPU, clip_image on a CPU"
    )
    given = arguments.parse_args()
    device = backbones.resolve_device(given.device)
    cuda = device.startswith("cuda")
    wanted = given.feature or (FEATURES if cuda else ("clip_image",))
    print(machine("torch", "transformers"), backbones.device_kind(device), sep=", ", flush=True)
    seconds, rounds = (1.0, 3) if given.quick else (4.0, 7)
    rows, peaks = [], {}
    with tempfile.TemporaryDirectory(prefix="manyviews-gpu-") as folder:
        for feature in wanted:
            dtype = backbones.resolve_dtype("auto", device, feature)
            checkpoint = make_full_size(feature, Path(folder), torch.device(device))
            backbone = backbones.load(feature, str(checkpoint), device, dtype)
            if dtype not in peaks:
                peaks[dtype] = matrix_rate(backbone.device, backbone.dtype)
            batch = backbones.info(feature).batch_size(device)
            rows.append(measure(backbone, batch, peaks[dtype], seconds, rounds))
            del backbone
    print()
    print(
        table(
            [
                "feature",
                "dtype, batch",
                "rows per s",
                "times model alone",
                "GFLOP per row",
                "utilisation: of a matrix product / of the maker's figure",
                "hours for MM-IMDb",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
