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
from pathlib import Path

import numpy as np
import torch

from benchmarks.flops import makers_peak, matrix_rate, wait_for
from benchmarks.full_size import SAMPLES_OF_MMIMDB, VIEWS, make_full_size
from benchmarks.gpu_work import Work
from benchmarks.measuring import (
    Contender,
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
from featurestore.records import FEATURES
from featurestore.storage.shape import choose_chunk

ALONE, BUILDING = "model alone", "as in a build"
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
