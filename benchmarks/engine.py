"""The engine against the slower of its two sides, and what it costs beside them.

    python -m benchmarks.engine [--quick] [--only sides|overhead|growth|opening]

The two sides are measured alone in the same rounds as the whole: the producers with nobody behind
them but a loop that gives every slot back, and the backbones with one chunk's views again and
again. Each contender is a process of its own, so that none inherits another's memory. Rates count
from the first sample on, to the last one's commit; how long the first takes is told apart.
"""

from __future__ import annotations

import json
import os
import resource
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
    """The whole against producers alone and backbones alone."""
    clip, sentence = _tiny(work / "tiny")
    kinds: dict[str, dict[str, Any]] = {
        "null": {"models": {"clip_image": ""}},
        "tiny CLIP": {"models": {"clip_image": clip}},
        # Texts wait for the end of their chunk, and the producers must not wait for them. At the
        # build's own end somebody has to: in many chunks that counts for little.
        "null, tiny texts": {"models": {"clip_image": "", "clip_text": sentence}},
    }
    rows = []
    for kind, task in kinds.items():
        samples = 32 if quick else 144 * (3 if "clip_text" in task["models"] else 1)
        task |= {"data": str(data_folder(work, samples)), "views": VIEWS}
        laps = take_turns(
            {
                name: _contender(name, task, work)
                for name in ("producers alone", "backbones alone", "engine")
            },
            rounds=1 if quick else 2,
        )
        shares = [
            engine.rate / min(producers.rate, alone.rate)
            for producers, alone, engine in zip(
                laps["producers alone"], laps["backbones alone"], laps["engine"], strict=True
            )
        ]
        share = Spread.of(shares)
        for name, of in laps.items():
            rate = Spread.of(lap.rate for lap in of)
            slower = Spread.of(
                lap.rate / min(p.rate, b.rate)
                for lap, p, b in zip(
                    of, laps["producers alone"], laps["backbones alone"], strict=True
                )
            )
            rows.append([kind, name, str(rate), str(slower)])
        print(goal(f"{kind}: engine to the slower side", share.median, 0.95))
    print(table(["backbone", "", "samples per s", "times the slower side"], rows))


def _contender(name: str, task: dict[str, Any], work: Path) -> Any:
    def lap() -> Lap:
        found = _child({"do": name, "store": str(work / "store"), **task})
        shutil.rmtree(work / "store", ignore_errors=True)
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
    rows = []
    for samples in sizes:
        task = {"data": str(data_folder(work, samples)), "store": str(work / "store")}
        found = _child({"do": "growth", "views": 2, "chunk": 64, **task})
        shutil.rmtree(work / "store")
        memory, cost = found["memory"], found["cost"]
        base = memory["100"]
        rows += [
            [
                f"{samples:,}",
                f"{int(mark):,}",
                f"{memory[mark] / base:.3f}",
                f"{cost[mark] / cost['2000']:.2f}" if mark in cost and "2000" in cost else "",
            ]
            for mark in memory
        ]
        rows[-1][0] += f" ({base >> 20} MiB at 100)"
    print(
        table(
            [
                "samples",
                "at sample",
                "memory of the tree / at 100",
                "CPU of 1,000 / of the second 1,000",
            ],
            rows,
        )
    )


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
    from consumers.tiny import make_checkpoints

    made = make_checkpoints(folder)
    return str(made["clip"]), str(made["sentence"])


# In a process of its own -----------------------------------------------------------------------


def _child(task: Mapping[str, Any]) -> dict[str, Any]:
    """Does a task in a new process and returns what it found."""
    command = [sys.executable, "-m", "benchmarks.engine", "--task", json.dumps(task)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["BEGUN"] = str(time.clock_gettime(time.CLOCK_MONOTONIC))
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _do(task: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.workload import null_backbones

    with null_backbones(but=[name for name, model in _models(task).items() if model]):
        return {
            "producers alone": _producers_alone,
            "backbones alone": _backbones_alone,
            "engine": _engine,
            "transport": _transport,
            "first": _first_batch,
            "growth": _grow,
            "write": _write,
            "open": _open,
        }[task["do"]](task)


def _models(task: Mapping[str, Any]) -> dict[str, str]:
    """A checkpoint for each feature; none where it costs nothing."""
    models: dict[str, str] = task.get("models", {"clip_image": ""})
    return models


def _config(task: Mapping[str, Any], **more: Any) -> Any:
    from featurestore.config import BuildConfig

    values: dict[str, Any] = {
        "data_dir": Path(task["data"]),
        "store": Path(task.get("store", "nowhere")),
        "views": task["views"],
        "features": tuple(_models(task)),
        "models": {name: model for name, model in _models(task).items() if model},
        "chunk": task.get("chunk", 16),
        "device": "cpu",
    }
    return BuildConfig(**values | more)


def _planned(task: Mapping[str, Any]) -> Any:
    from consumers.extending import completed
    from consumers.plan import make_plan
    from producers.source import scan

    config = completed(_config(task), None)
    return make_plan(config, scan(config.data_dir), None, None, lambda *_, **__: None)


def _producers_alone(task: Mapping[str, Any]) -> dict[str, Any]:
    from producers.pool import ProducerPool

    plan = _planned(task)
    samples = plan.found.samples
    with ProducerPool(plan.job, samples, workers=plan.workers, timeout_s=300) as pool:
        pool.release(pool.take())
        start = time.perf_counter()
        for _ in samples[1:]:
            pool.release(pool.take())
        seconds = time.perf_counter() - start
    return {"samples": len(samples) - 1, "seconds": seconds}


def _backbones_alone(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.embedding import Embedder

    plan = _planned(task)
    embedder = Embedder(plan.backbones, plan.batch_sizes, plan.view_parts, plan.spec.chunk)
    views = _views_of_a_chunk(plan)
    start = time.perf_counter()
    for chunk in range(plan.spec.chunks):
        for sample, _ in zip(views, plan.spec.samples_of(chunk), strict=False):
            embedder.add(sample)
        embedder.end()
        for feature in embedder.finish():
            feature[0].take()
    return {"samples": plan.spec.samples, "seconds": time.perf_counter() - start}


def _views_of_a_chunk(plan: Any) -> list[Any]:
    """Copies, so that no producer is there any more when the backbones are measured."""
    from copy import deepcopy

    from producers.pool import ProducerPool

    samples = [plan.found.samples[i] for i in plan.spec.samples_of(0)]
    views = []
    with ProducerPool(plan.job, samples, workers=plan.workers, timeout_s=300) as pool:
        for _ in samples:
            taken = pool.take()
            views.append(deepcopy(taken))
            pool.release(taken)
    return views


def _engine(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.build import build

    arrived: list[float] = []

    def note(event: str, _facts: Mapping[str, Any]) -> None:
        if event == "sample":
            arrived.append(time.perf_counter())

    report = build(_config(task), [note])
    return {"samples": report.built - 1, "seconds": time.perf_counter() - arrived[0]}


def _transport(task: Mapping[str, Any]) -> dict[str, Any]:
    """CPU of both sides for samples of which next to nothing is made."""
    from producers.pool import ProducerPool
    from producers.source import scan
    from producers.worker import Job

    found = scan(Path(task["data"]))
    job = Job(str(found.data_dir.resolve()), VIEWS, 0, (), (), 4)
    first = 200  # by then the producer has started
    with ProducerPool(job, found.samples, workers=1, timeout_s=300) as pool:
        (worker,) = pool._workers
        for number in range(len(found.samples)):
            if number == first:
                start = time.process_time() + _cpu_of(worker.process.pid)
            pool.release(pool.take())
        used = time.process_time() + _cpu_of(worker.process.pid) - start
    return {"samples": len(found.samples) - first, "cpu_s": used}


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks


def _first_batch(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.build import build

    at: dict[str, float] = {}

    def note(event: str, _facts: Mapping[str, Any]) -> None:
        at.setdefault(event, time.clock_gettime(time.CLOCK_MONOTONIC))

    build(_config(task), [note])
    loading = at["started"] - at["loading"]
    return {"seconds": at["sample"] - float(os.environ["BEGUN"]) - loading}


def _grow(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.build import build

    memory: dict[str, int] = {}
    cost: dict[str, float] = {}
    marks = {100, *(10**k for k in range(3, 6))}
    count, before = 0, 0.0

    def watch(event: str, _facts: Mapping[str, Any]) -> None:
        nonlocal count, before
        if event != "sample":
            return
        count += 1
        if count in marks:
            memory[str(count)] = _tree_bytes()
        if count % 1000 == 0:
            used = _tree_cpu()
            cost[str(count)] = used - before
            before = used

    build(_config(task, features=("clip_text",)), [watch])
    return {"memory": memory, "cost": cost}


def _tree() -> list[int]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("utf-8").split()
    return [os.getpid(), *map(int, children)]


def _tree_bytes() -> int:
    """Proportional set size of this process and its producers: shared pages count once."""
    total = 0
    for pid in _tree():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def _tree_cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(map(_cpu_of, _tree()[1:]))


def _write(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.build import build

    return {"samples": build(_config(task, features=("clip_text",))).built}


def _open(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.build import build
    from featurestore.store import FeatureStore

    start = time.perf_counter()
    store = FeatureStore(Path(task["store"]))
    opened = time.perf_counter() - start
    assert store.complete
    at: dict[str, float] = {}

    def note(event: str, _facts: Mapping[str, Any]) -> None:
        at.setdefault(event, time.perf_counter())

    start = time.perf_counter()
    build(_config(task, features=None, resume=True), [note])
    loading = at["started"] - at["loading"]
    return {"opened": opened, "resumed": time.perf_counter() - start - loading}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps(_do(json.loads(sys.argv[2]))))
    else:
        main()
