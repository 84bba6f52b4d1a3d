"""The paper's backbones at full size, in a build and alone with inputs that are on the device.

    python -m benchmarks.gpu [--quick] [--device cpu] [--feature clip_image]... [--samples N]

The weights are random, made from the configurations of CLIP ViT-B/32 and BLIP-2 flan-t5-xl; speed
does not depend on them. Every backbone runs the batches of whole chunks twice, in turn: on tensors
that are on the device already, and as a build does, from host memory to host memory, one chunk's
rows taken while the next is made. A chunk is as large as a build's: how full its batches are
depends on it. Utilisation counts the FLOPs of real images and tokens, not those of padding, and is
reported as a share of a large matrix product's rate in the same dtype, measured in this run, and of
the maker's figure where the GPU is known.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.flops import forward_flops, makers_peak, matrix_rate, text_flops, wait_for
from benchmarks.full_size import SAMPLES_OF_MMIMDB, VIEWS, draw_lengths, make_full_size
from benchmarks.measuring import (
    Contender,
    Lap,
    goal,
    machine,
    parser,
    rate,
    ratio,
    table,
    take_turns,
    timed,
)
from consumers.backbones import registry
from consumers.device.computing import ComputePool
from consumers.device.devices import resolve_threads
from consumers.engine.batching import ImageBatcher, TextBatcher
from consumers.engine.committing import Committer, LaunchedChunk
from featurestore.records import FEATURES
from featurestore.storage.shape import choose_chunk

ALONE, BUILDING = "model alone", "as in a build"
# Fields of one colour per side of an image: noise alone would look the same to a model.
FIELDS = 7
HEAD = (
    "feature",
    "dtype, batch",
    "rows per s",
    "times model alone",
    "GFLOP per row (with padding)",
    "utilisation: of a matrix product / of the maker's figure",
    "GPU memory, MiB",
    "samples per s",
    "minutes for MM-IMDb",
)
# How far the features of two rows are apart, to the largest value: much more than rounding.
LEAST_APART = 1e-4


class Work:
    """A chunk's rows for one backbone, in host memory and in the batches of the plan.

    Attributes:
        rows: of the chunk.
        useful: FLOPs of the rows themselves.
        spent: FLOPs of the batches, with what pads texts and fills up the last batch.
    """

    def __init__(self, backbone: Any, batch: int, samples: int) -> None:
        self.backbone, self.rows = backbone, samples * VIEWS
        threads = resolve_threads(0, str(backbone.device))
        # Ends with the process.
        self._pool = ComputePool(threads, backbone.device).__enter__()
        self._batch, self._samples = batch, samples
        self._rng = np.random.default_rng(0)
        self._batchers: Sequence[ImageBatcher | TextBatcher]
        self.batches: list[tuple[torch.Tensor, ...]]
        self.useful: float
        self.spent: float
        if hasattr(backbone, "image"):
            self._make_images()
        else:
            self._make_texts()

    def _make_images(self) -> None:
        side, batch = self.backbone.image.size, self._batch
        fields = self._rng.integers(0, 256, (VIEWS, FIELDS, FIELDS, 3), dtype=np.uint8)
        at = np.arange(side) * FIELDS // side
        # One sample's pixels again and again; it is not the content that takes time.
        self._pixels = fields[:, at][:, :, at]
        self._batchers = [ImageBatcher(self.backbone, batch, self.rows, self._pool)]
        order = np.arange(-(-self.rows // batch) * batch).reshape(-1, batch)
        self.batches = [self._sent(self._pixels[rows % VIEWS]) for rows in order]
        self.batches[-1][0][self.rows - batch * (len(order) - 1) :] = 0  # what fills it up
        one = forward_flops(self.backbone, *self.batches[0]) / batch
        self.useful, self.spent = one * self.rows, one * order.size

    def _make_texts(self) -> None:
        limit, batch = self.backbone.text.max_length, self._batch
        self._lengths = draw_lengths(self._rng, self.rows, limit)
        self._ids = self._rng.integers(3, 90, (self.rows, limit), dtype=np.int32)
        # A build has two as well, of which one chunk's texts are embedded while the next come.
        batchers = [TextBatcher(self.backbone, batch, self.rows, self._pool) for _ in range(2)]
        self._batchers, self.plan = batchers, batchers[0].plan(self._lengths)
        self.batches = [self._padded(b.rows, b.length) for b in self.plan]
        one = text_flops(self.backbone)
        self.useful = float(one(self._lengths.astype(float)).sum())
        self.spent = sum(len(b.rows) * float(one(b.length)) for b in self.plan)

    def _padded(self, rows: Sequence[int], length: int) -> tuple[torch.Tensor, ...]:
        mask = np.arange(length) < self._lengths[list(rows), None]
        ids = np.where(mask, self._ids[list(rows), :length], self.backbone.text.pad_id)
        return self._sent(ids.astype(np.int64), mask.astype(np.int64))

    def _sent(self, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array).to(self.backbone.device) for array in arrays)

    def alone(self) -> torch.Tensor:
        """The features of all batches, in the order of the plan, on the device."""
        return torch.cat([self.backbone.embed(*batch) for batch in self.batches])[: self.rows]

    def fill(self, number: int = 0) -> ImageBatcher | TextBatcher:
        """Adds the samples of a chunk, and returns what they were added to."""
        batcher = self._batchers[number % len(self._batchers)]
        for sample in range(self._samples):
            if isinstance(batcher, ImageBatcher):
                batcher.add(self._pixels[0], self._pixels[1:])
            else:
                rows = slice(sample * VIEWS, (sample + 1) * VIEWS)
                batcher.add(self._ids[rows], self._lengths[rows])
        return batcher

    def built(self) -> np.ndarray:
        """The features as a build has them, in the order of the rows."""
        return self.fill().launch().take()

    def build(self, chunks: int) -> Lap:
        """Consecutive chunks, as in a build.

        One more goes before them, and time counts from when its rows are there to when the last
        one's are: within it the device finds work at its beginning and at its end, as in a build.
        """
        arrived: list[float] = []

        def take(launched: LaunchedChunk) -> None:
            launched.features[0][0].take()
            arrived.append(time.perf_counter())

        with Committer(take) as committer:
            for number in range(1 + chunks):
                feature = self.fill(number).launch()
                committer.committed()
                committer.write(LaunchedChunk(number, (), [[feature]]))
            committer.committed()
        return Lap(chunks * self.rows, arrived[-1] - arrived[0])

    def in_order(self, planned: np.ndarray) -> np.ndarray:
        """Features in the order of the rows."""
        if hasattr(self.backbone, "image"):
            return planned
        found = np.empty_like(planned)
        found[[row for batch in self.plan for row in batch.rows]] = planned
        return found


def measure(
    work: Work, batch: int, peak: float, seconds: float, rounds: int
) -> tuple[list[str], float]:
    """A line of the table, in the order of ``HEAD``, and the minutes for MM-IMDb.

    Prints them as well, and whether the goal is met: a run may be ended before its last backbone.

    Args:
        work: a chunk.
        batch: the batch size, for the report.
        peak: FLOP per second of a matrix product in the backbone's dtype.
        seconds: a lap has as many chunks as take this long, one at least.
        rounds: laps of each kind.
    """
    backbone = work.backbone
    cuda = backbone.device.type == "cuda"
    require_equal(work)
    if cuda:
        _require_no_wait(work)
    wait_for(backbone.device)
    start = time.perf_counter()
    work.alone()
    wait_for(backbone.device)
    chunks = math.ceil(seconds / (time.perf_counter() - start))

    def alone() -> float:
        for _ in range(chunks):
            work.alone()
        wait_for(backbone.device)
        return chunks * work.rows

    contenders: dict[str, Contender] = {
        ALONE: timed(alone, time.perf_counter),
        BUILDING: lambda: work.build(chunks),
    }
    laps = take_turns(contenders, rounds)
    share = ratio(laps[BUILDING], laps[ALONE])
    print(goal(f"{backbone.feature}: {BUILDING} / {ALONE}", share.median, 0.95), flush=True)
    speed = rate(laps[BUILDING]).median
    flops = work.useful / work.rows
    used = [f"{flops * speed / peak:.0%}"]
    if cuda:
        makers = makers_peak(torch.cuda.get_device_name(backbone.device), backbone.dtype)
        used.append(f"{flops * speed / makers:.0%}" if makers else "not known")
    minutes = SAMPLES_OF_MMIMDB * VIEWS / speed / 60
    row = [
        backbone.feature,
        f"{str(backbone.dtype).removeprefix('torch.')}, {batch}",
        str(rate(laps[BUILDING])),
        str(share),
        f"{flops / 1e9:.1f} ({work.spent / work.rows / 1e9:.1f})",
        " / ".join(used),
        f"{torch.cuda.max_memory_reserved(backbone.device) >> 20:,}" if cuda else "",
        f"{speed / VIEWS:.1f}",
        f"{minutes:,.1f}",
    ]
    print("; ".join(f"{head}: {cell}" for head, cell in zip(HEAD, row, strict=True)), flush=True)
    return row, minutes


def require_equal(work: Work) -> None:
    """Stops unless both ways, and each of them twice, give the same bytes, and rows differ."""
    first, second = work.built(), work.built()
    direct = work.in_order(work.alone().cpu().numpy())
    if not first.tobytes() == second.tobytes() == direct.tobytes():
        raise SystemExit(f"{work.backbone.feature}: the features' bytes differ between runs")
    # Were all rows' features the same, mixed-up rows would pass too.
    rows = first[:VIEWS]
    apart = min(np.abs(rows[:i] - rows[i]).max(axis=1).min() for i in range(1, len(rows)))
    if apart < LEAST_APART * np.abs(rows).max():
        raise SystemExit(f"{work.backbone.feature}: different rows have the same features")


def _require_no_wait(work: Work) -> None:
    """Stops where an operation between two batches waits for the GPU: torch's own watch."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        feature = work.fill().launch()
        for batch in feature.batches:
            batch.result()
        feature.fetched.result()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    feature.take()


def _forget(device: torch.device) -> None:
    """Frees the memory of the last backbone, and that of drawing the weights of this one.

    Some backbones hold themselves, by what is wrapped around them.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main() -> None:
    """Prints a table with a line per backbone."""
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument("--device", default="auto", help="as for build")
    arguments.add_argument(
        "--feature", action="append", choices=FEATURES, help="all on a GPU, clip_image on a CPU"
    )
    arguments.add_argument(
        "--samples", type=int, default=0, help="per chunk, as a build's; fewer to try it on a CPU"
    )
    given = arguments.parse_args()
    device = registry.resolve_device(given.device)
    cuda = device.startswith("cuda")
    wanted = given.feature or (FEATURES if cuda else ("clip_image",))
    print(machine("torch", "transformers"), registry.device_kind(device), sep=", ", flush=True)
    seconds, rounds = (1.0, 3) if given.quick else (4.0, 7)
    rows, peaks, total = [], {}, 0.0
    with tempfile.TemporaryDirectory(prefix="manyviews-gpu-") as folder:
        for feature in wanted:
            dtype = registry.resolve_dtype("auto", device, feature)
            checkpoint = make_full_size(feature, Path(folder), torch.device(device))
            backbone = registry.load(feature, str(checkpoint), device, dtype)
            if dtype not in peaks:
                peaks[dtype] = matrix_rate(backbone.device, backbone.dtype)
            batch = registry.info(feature).batch_size(device)
            samples = given.samples or choose_chunk(0, VIEWS, {feature: backbone.dim})
            _forget(backbone.device)
            work = Work(backbone, batch, samples)
            row, minutes = measure(work, batch, peaks[dtype], seconds, rounds)
            rows.append(row)
            total += minutes
            del backbone, work
    print(f"\n{table(HEAD, rows)}")
    print(
        f"\nTogether they share the device: {total / 60:.2f} hours for MM-IMDb, if producers make "
        f"{SAMPLES_OF_MMIMDB / total / 60:.1f} samples per s."
    )


if __name__ == "__main__":
    main()
