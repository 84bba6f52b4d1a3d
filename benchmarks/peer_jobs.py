"""The jobs that are compared: how each is started, and how the rows that it left are read."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks import peer_recipe
from benchmarks.observing import Marks
from benchmarks.peer_job import Job, Rows, Work
from featurestore.errors import ManyViewsError
from featurestore.storage.store import RUNS, FeatureStore

OURS, NAIVE = "manyviews", "naive script"
LOADER, RENDERED = "PyTorch DataLoader, 2 workers", "clip-retrieval 2.45"
# Of Ray. The path of its sockets, which it puts deep below, may have 107 characters.
SCRATCH = Path(tempfile.gettempdir(), f"ray-{os.getpid()}")
SHARDS = 4  # tar files; webdataset wants one per worker at least
CHUNK = 16  # samples


def jobs() -> list[Job]:
    """All of them, ours first on each side."""
    return [
        _ours("clip_image", "clip", speed=16),
        Job(
            "naive script",
            "image",
            "pytorch",
            _program("naive"),
            npy_rows("clip_image"),
            worker=None,
        ),
        Job(
            LOADER,
            "image",
            "pytorch",
            _program("dataloader"),
            npy_rows("clip_image"),
            lambda command: "peer_dataloader" in command,
        ),
        Job(
            "Ray Data 2.60",
            "image",
            "ray",
            _program("ray"),
            _parquet_rows,
            # A task that makes views; the actor is a MapWorker.
            lambda command: command.startswith("ray::") and command.endswith("Map(Views.__call__)"),
        ),
        Job(
            RENDERED,
            "image",
            "clip-retrieval",
            _clip_retrieval,
            _clip_retrieval_rows,
            lambda command: "peer_clip_retrieval" in command,
            logs=("stats/",),
            speed=8,
        ),
        _ours("clip_text", "sentence", speed=24),
        Job(
            "sentence-transformers 6.2, 2 processes",
            "text",
            "sentence-transformers",
            _program("sentence_transformers", model="sentence"),
            npy_rows("clip_text"),
            lambda command: "spawn_main" in command,
            speed=24,
        ),
    ]


def rendering(copies: int) -> Job:
    """Makes the shards that clip-retrieval reads, each view so many times, in ``out``."""
    command = _program("render", copies=copies, shards=SHARDS)
    return Job("rendering", "image", "pytorch", command, lambda _work, _run: {}, worker=None)


def _program(name: str, model: str = "clip", **more: int) -> Callable[[Work, Path], list[str]]:
    """The command of one of the programs beside this one.

    Args:
        name: name of its file, after ``peer_``.
        model: the checkpoint that it loads.
        more: further arguments of this peer.
    """

    def command(work: Work, run: Path) -> list[str]:
        task = {
            "data": str(work.data),
            "model": str(work.models / model),
            "views": work.views,
            "out": str(run / "out"),
            "marks": str(run / "marks"),
            "scratch": str(SCRATCH),
            "workers": 2,
            **more,
        }
        return [f"benchmarks/peer_{name}.py", json.dumps(task)]

    return command


def npy_rows(feature: str) -> Callable[[Work, Path], Rows]:
    """Reads ``out/<feature>.npy``; there are no rows where it cannot be read."""

    def rows(work: Work, run: Path) -> Rows:
        file = run / "out" / f"{feature}.npy"
        stems = peer_recipe.stems(str(work.data))
        try:
            found = np.load(file).reshape(len(stems), work.views, -1)
        except (OSError, ValueError):
            return {}
        return dict(zip(stems, found, strict=True))

    return rows


def _parquet_rows(work: Work, run: Path) -> Rows:
    import pyarrow.parquet as pq

    found: Rows = {}
    for file in sorted((run / "out").glob("*.parquet")):
        table = pq.read_table(file)
        for sid, row in zip(table["sid"].to_pylist(), table["features"].to_pylist(), strict=True):
            found[sid] = np.asarray(row, np.float32).reshape(work.views, -1)
    return found


# manyviews -------------------------------------------------------------------------------------


def _ours(feature: str, model: str, speed: int) -> Job:
    def command(work: Work, run: Path) -> list[str]:
        options = {
            "--data-dir": work.data,
            "--store": run / "out",
            "--features": feature,
            "--model": f"{feature}={work.models / model}",
            "--views": work.views,
            "--chunk": CHUNK,
            "--device": "cpu",
        }
        pairs = [str(part) for pair in options.items() for part in pair]
        return ["cli.py", "build", *pairs, "--resume"]

    def rows(_work: Work, run: Path) -> Rows:
        try:
            store = FeatureStore(run / "out")
            chunks = [c for c in range(store.spec.chunks) if c in store.ledger]
            parts = {c: store.read_chunk(feature, c) for c in chunks}
        except ManyViewsError:
            return {}
        return {
            store.stems[i]: row
            for chunk in chunks
            for i, row in zip(store.spec.samples_of(chunk), parts[chunk], strict=True)
        }

    modality = feature.partition("_")[2]
    name = OURS if modality == "image" else f"{OURS}, texts"
    return Job(
        name,
        modality,
        "",
        command,
        rows,
        lambda command: "producers.worker" in command,
        _log_marks,
        logs=("records/runs/",),
        speed=speed,
    )


def _log_marks(run: Path) -> Marks:
    """The latest run's own log: models are loaded when it has ``started``."""
    offset, started = time.monotonic() - time.time(), time.time()
    names = {"started": "ready", "finished": "done"}

    def marks() -> Mapping[str, float]:
        found: dict[str, float] = {}
        for log in sorted((run / "out" / RUNS).glob("*.log")):
            for line in log.read_text("utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    event = json.loads(line)
                    moment = datetime.fromisoformat(event["time"]).timestamp()
                    if moment >= started and event["event"] in names:
                        found[names[event["event"]]] = moment + offset
        return found

    return marks


# clip-retrieval --------------------------------------------------------------------------------


def _clip_retrieval(work: Work, run: Path) -> list[str]:
    model = work.models / "open_clip"
    options = {
        "input_dataset": f"{work.shards}/{{0..{SHARDS - 1}}}.tar",
        "output_folder": run / "out",
        "input_format": "webdataset",
        "clip_model": f"open_clip:tiny/{model}/tiny.pt",
        "num_prepro_workers": 2,
        "enable_text": False,
        "enable_metadata": False,
    }
    program = ["benchmarks/peer_clip_retrieval.py", str(model / "tiny.json"), str(run / "marks")]
    return [*program, "inference", *(f"--{name}={value}" for name, value in options.items())]


def _clip_retrieval_rows(_work: Work, run: Path) -> Rows:
    """One row per file that it read: a view, not a sample."""
    import pyarrow.parquet as pq

    found: Rows = {}
    for file in sorted((run / "out").glob("img_emb/*.npy")):
        number = file.stem.rpartition("_")[2]
        names = pq.read_table(run / f"out/metadata/metadata_{number}.parquet")["image_path"]
        rows = np.load(file).astype(np.float32)[:, None]
        found |= dict(zip(names.to_pylist(), rows, strict=True))
    return found
