"""The engine against the slower of its two sides, and what it costs beside them.

    python -m benchmarks.engine [--quick] [--only sides|overhead|growth|opening]

The two sides are measured alone in the same rounds as the whole: the producers with nobody behind
them but a loop that gives every slot back, and the backbones with one chunk's views again and
again. Each contender is a separate process, so that none inherits another's memory. Rates count
from the first sample on, to the last one's commit; the time until the first sample is
reported separately. A number that is robust on a noisy machine is reported as well: how busy the
slower side was while the whole ran, by the producer's CPU time or by the time that the backbones
did not wait.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import Lap, Spread, goal, machine, parser, table, take_turns
from benchmarks.workload import data_folder

ROOT = Path(__file__).resolve().parent.parent
VIEWS = 70


def main() -> None:
    """Prints the tables."""
    parts = {"sides": _sides, "overhead": _overhead, "growth": _growth, "opening": _opening}
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument("--only", choices=parts, help="one of the measurements")
    given = arguments.parse_args()
    print(machine("torch", "transformers", "numpy"))
    chosen = [given.only] if given.only else list(parts)
    if given.quick and not given.only:  # the others take minutes however short they are
        chosen = ["sides", "overhead"]
    with tempfile.TemporaryDirectory(prefix="manyviews-engine-") as folder:
        for name, part in parts.items():
            if name in chosen:
                part(Path(folder), quick=given.quick)


def _sides(work: Path, *, quick: bool) -> None:
    """The whole against producers alone and backbones alone; quick, the whole by itself."""
    clip, sentence = _tiny(work / "tiny")
    kinds: dict[str, dict[str, Any]] = {
        "null": {"models": {"clip_image": ""}},
        "tiny CLIP": {"models": {"clip_image": clip}},
        # Texts wait for the end of their chunk, and the producers must not wait for them. At the
        # build's own end somebody has to: in many chunks that counts for little.
        "null, tiny texts": {"models": {"clip_image": "", "clip_text": sentence}},
    }
    sides = () if quick else ("producers alone", "backbones alone")
    rows = []
    for kind, task in kinds.items():
        samples = 32 if quick else 96 * (2 if "clip_text" in task["models"] else 1)
        task |= {"data": str(data_folder(work, samples)), "views": VIEWS}
        busy: list[dict[str, float]] = []
        contenders = {n: _contender(n, task, work, busy) for n in (*sides, "engine")}
        laps = take_turns(contenders, rounds=1 if quick else 4)
        slower = [
            min(pair) for pair in zip(*([x.rate for x in laps[n]] for n in sides), strict=True)
        ]
        for name, of in laps.items():
            share = (
                Spread.of(x.rate / y for x, y in zip(of, slower, strict=True)) if sides else None
            )
            rows.append([kind, name, str(Spread.of(x.rate for x in of)), str(share or ""), ""])
        rows[-1][-1] = str(Spread.of(max(of.values()) for of in busy[1:]))
        if share:
            print(goal(f"{kind}: engine to the slower side", share.median, 0.95))
    head = ["backbone", "", "samples per s", "times the slower side", "slower side busy"]
    print(table(head, rows))


def _contender(name: str, task: dict[str, Any], work: Path, busy: list[dict[str, float]]) -> Any:
    """Laps of a side or of the whole, which adds to ``busy`` what share of it each side worked."""

    def lap() -> Lap:
        found = _child({"do": name, "store": str(work / "store"), **task})
        shutil.rmtree(work / "store", ignore_errors=True)
        if "busy" in found:
            busy.append(found["busy"])
        return Lap(found["samples"], found["seconds"])

    return lap


def _overhead(work: Path, *, quick: bool) -> None:
    """What a sample costs on its way, and how long the first one takes."""
    task = {"data": str(data_folder(work, 2000)), "views": VIEWS}
    rounds = range(1 if quick else 3)
    found = [_child({"do": "transport", **task}) for _ in rounds]
    cpu = Spread.of(1e3 * f["cpu_s"] / f["samples"] for f in found)
    print(f"transport, both sides: {cpu} ms of CPU per sample, goal 2")
    task["data"] = str(data_folder(work, 96))
    first = []
    for _ in rounds:
        first.append(_child({"do": "first", "store": str(work / "store"), **task})["seconds"])
        shutil.rmtree(work / "store")
    print(
        f"from the command to the first batch, without loading models: {Spread.of(first)} s, goal 3"
    )


def _growth(work: Path, *, quick: bool) -> None:
    """Memory and time of a sample, early and late, in small and in large data sets."""
    sizes = (1_000, 2_000) if quick else (1_000, 10_000, 100_000)
    rows, base = [], 0
    for samples in sizes:
        task = {"data": str(data_folder(work, samples)), "store": str(work / "store")}
        found = _child({"do": "growth", "views": 2, "chunk": 64, **task})
        shutil.rmtree(work / "store")
        memory, cost = found["memory"], found["cost"]
        base = base or memory["100"]
        for mark, used in memory.items():
            # The first thousand have the start-up in them.
            late = mark in cost and int(mark) > 2000
            share = f"{cost[mark] / cost['2000']:.2f}" if late else ""
            rows.append([f"{samples:,}", f"{int(mark):,}", f"{used / base:.3f}", share])
    head = ["samples", "at sample", "memory / first", "CPU of 1,000 / of the second 1,000"]
    print(f"memory of the tree at sample 100 of {sizes[0]:,}: {base >> 20} MiB")
    print(table(head, rows))


def _opening(work: Path, *, quick: bool) -> None:
    """A store of the whole data set's length, opened and resumed; a quick one is shorter."""
    samples = 5_000 if quick else 25_959
    data, store = data_folder(work, samples), work / "store"
    task = {"data": str(data), "store": str(store), "views": 2, "chunk": 64}
    _child({"do": "write", **task})
    found = [_child({"do": "open", **task}) for _ in range(3 if quick else 5)]
    for what in ("opened", "resumed"):
        spread = Spread.of(f[what] for f in found)
        print(f"{samples:,} samples {what} in {spread} s, goal 1")


def _tiny(folder: Path) -> tuple[str, str]:
    """Checkpoints of a CLIP and of a sentence encoder."""
    from manyviews.operations.demo.checkpoints import make_checkpoints

    made = make_checkpoints(folder)
    return str(made["clip"]), str(made["sentence"])


def _child(task: Mapping[str, Any]) -> dict[str, Any]:
    """Does a task in a new process and returns what it found."""
    command = [sys.executable, "-m", "benchmarks.engine_tasks", json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["BEGUN"] = str(time.clock_gettime(time.CLOCK_MONOTONIC))
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
