"""The tasks of ``benchmarks.engine``, each run in a separate process: one task, given as JSON.

python -m benchmarks.engine_tasks '{"do": "engine", "data": ..., "store": ..., "views": 70}'
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
    from consumers.config import BuildConfig

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
    from consumers.decisions import decide
    from consumers.plan import make_plan
    from consumers.resume.completion import completed
    from producers.sources.kinds import scan_collection

    given = _config(task)
    found = scan_collection(given.inputs)
    config = completed(given, None, found)
    return make_plan(decide(config, found, None, None), lambda *_, **__: None)


def _producers_alone(task: Mapping[str, Any]) -> dict[str, Any]:
    from producers.pool import ProducerPool

    plan = _planned(task)
    samples = plan.decided.found.samples
    with ProducerPool(plan.job, samples, producers=plan.producers, timeout_s=300) as pool:
        pool.release(pool.take())
        start = time.perf_counter()
        for _ in samples[1:]:
            pool.release(pool.take())
        seconds = time.perf_counter() - start
    return {"samples": len(samples) - 1, "seconds": seconds}


def _backbones_alone(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.device.computing import ComputePool
    from consumers.engine.embedding import Embedder

    plan = _planned(task)
    views = _views_of_a_chunk(plan)
    with ComputePool(plan.decided.threads, plan.device) as pool:
        chunk = plan.spec.chunk
        embedder = Embedder(
            plan.backbones, plan.batch_sizes, plan.view_parts, chunk, plan.text_multiple, pool
        )
        start = time.perf_counter()
        before: list[Any] = []
        for number in range(plan.spec.chunks):
            for sample, _ in zip(views, plan.spec.samples_of(number), strict=False):
                embedder.add(sample)
            ended = embedder.launch()
            # As in a build, a chunk's features are taken while the next chunk is embedded.
            for feature in before:
                feature[0].take()
            before = ended
        for feature in before:
            feature[0].take()
        seconds = time.perf_counter() - start
    return {"samples": plan.spec.samples, "seconds": seconds}


def _views_of_a_chunk(plan: Any) -> list[Any]:
    """Copies, so that no producer is there any more when the backbones are measured."""
    from copy import deepcopy

    from producers.pool import ProducerPool

    samples = [plan.decided.found.samples[i] for i in plan.spec.samples_of(0)]
    views = []
    with ProducerPool(plan.job, samples, producers=plan.producers, timeout_s=300) as pool:
        for _ in samples:
            taken = pool.take()
            views.append(deepcopy(taken))
            pool.release(taken)
    return views


def _engine(task: Mapping[str, Any]) -> dict[str, Any]:
    from consumers.build import build

    arrived: list[tuple[float, float, float]] = []

    def note(event: str, facts: Mapping[str, Any]) -> None:
        if event == "sample":
            made = sum(map(_cpu_of, _tree()[1:]))
            arrived.append((time.perf_counter(), facts["waited_s"], made))

    report = build(_config(task), [note])
    (started, waited, made), (_, waited_in_all, made_in_all) = arrived[0], arrived[-1]
    seconds = time.perf_counter() - started
    return {
        "samples": report.built - 1,
        "seconds": seconds,
        "busy": {
            "producers": (made_in_all - made) / seconds,
            "backbones": 1 - (waited_in_all - waited) / seconds,
        },
    }


def _transport(task: Mapping[str, Any]) -> dict[str, Any]:
    """CPU of both sides for samples of which next to nothing is made."""
    from producers.pool import ProducerPool
    from producers.sources.pairs import scan
    from producers.worker import Job

    found = scan(Path(task["data"]))
    job = Job(found.places.source, task["views"], 0, (), (), 4)
    first = 200  # by then the producer has started
    with ProducerPool(job, found.samples, producers=1, timeout_s=300) as pool:
        (worker,) = pool._workers
        for number in range(len(found.samples)):
            if number == first:
                start = time.process_time() + _cpu_of(worker.child.pid)
            pool.release(pool.take())
        used = time.process_time() + _cpu_of(worker.child.pid) - start
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
    from featurestore.storage.store import FeatureStore

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
    print(json.dumps(_do(json.loads(sys.argv[1]))))
