"""A CPU's compute threads: compared with one thread, with processes, and on a busy machine.

    python -m benchmarks.threads [--quick] [--only embed|busy] [--model NAME]

``embed``: views made before are embedded by one thread, by two threads that share the weights, and
by two processes of one thread each, in turns. ``busy``: the demo's build by its command, with
nothing beside it and with two processes that loop. Wall time, as it is time that is to be saved.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size import draw_lengths, make_full_size
from benchmarks.measuring import (
    Contender,
    Lap,
    Spread,
    goal,
    machine,
    parser,
    ratio,
    table,
    take_turns,
    timed,
)
from benchmarks.measuring import rate as rate_of
from consumers.backbones import registry
from consumers.device.computing import ComputePool
from consumers.engine.batching import ImageBatcher, TextBatcher
from manyviews.operations.demo.checkpoints import make_checkpoints, unigram_tokenizer
from manyviews.operations.demo.data import make_demo_data

ROOT = Path(__file__).resolve().parent.parent
ONE, TWO, PROCESSES = "1 thread", "2 threads", "2 processes"
# Rows of a lap; tiny models take many, so that a lap takes a second or two.
ROWS = {"ViT-B/32": 128, "MiniLM": 512}
TINY = {
    "tiny CLIP": ("clip_image", "clip"),
    "tiny DistilBERT": ("clip_text", "sentence"),
    "tiny Q-Former": ("blip2_image", "blip2"),
    "tiny T5": ("blip2_text", "blip2"),
}
MODELS = (*ROWS, *TINY)
# Ends with the benchmark, even if the benchmark is killed.
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
TINY_ROWS = 512
CPU = torch.device("cpu")


def main() -> None:
    """Prints the tables."""
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument("--only", choices=("embed", "busy"), help="one of the measurements")
    arguments.add_argument("--model", choices=MODELS, help="embed by this model alone")
    arguments.add_argument("--child", help="the task of a child process, as JSON; internal")
    given = arguments.parse_args()
    if given.child:
        _serve(json.loads(given.child))
        return
    print(machine("torch", "transformers"))
    with tempfile.TemporaryDirectory(prefix="manyviews-threads-") as folder:
        if given.only != "busy":
            _embed(Path(folder), [given.model] if given.model else MODELS, quick=given.quick)
        if given.only != "embed" and not given.model:
            _busy(Path(folder), quick=given.quick)


def _embed(folder: Path, names: Sequence[str], *, quick: bool) -> None:
    rows = []
    for name in names:
        feature, checkpoint = _model(name, folder / "models")
        count = ROWS.get(name, TINY_ROWS) // (2 if quick else 1)
        task = {"feature": feature, "model": str(checkpoint), "rows": count}
        laps, memory = _laps(task, rounds=3 if quick else 7)
        for contender, of in laps.items():
            rows.append([name, contender, str(rate_of(of)), str(ratio(of, laps[ONE]))])
            rows[-1].append(f"{memory[contender] >> 20:,}")
        wanted = 1.7 if name in ROWS else 1.0
        print(
            goal(f"{name}: {TWO} / {ONE}", ratio(laps[TWO], laps[ONE]).median, wanted), flush=True
        )
    print(table(["model", "", "rows per s", f"times {ONE}", "memory, MiB"], rows), flush=True)


def _model(name: str, folder: Path) -> tuple[str, Path]:
    """The feature whose loader takes a model, and its checkpoint, created in ``folder``."""
    folder.mkdir(exist_ok=True)
    if name == "ViT-B/32":
        return "clip_image", make_full_size("clip_image", folder, CPU)
    if name == "MiniLM":
        return "clip_text", _minilm(folder / "minilm")
    feature, kind = TINY[name]
    tiny = folder / "tiny"
    return feature, (tiny / kind if tiny.is_dir() else make_checkpoints(tiny)[kind])


def _minilm(folder: Path) -> Path:
    """A BERT of MiniLM-L6's size with random weights, as sentence-transformers keeps it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    BertModel(config).save_pretrained(folder / "base")
    unigram_tokenizer().save_pretrained(folder / "base")
    transformer = modules.Transformer(str(folder / "base"), max_seq_length=128)
    pooling = modules.Pooling(384, pooling_mode="mean")
    made = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    made.save(str(folder / "model"))
    return folder / "model"


class Work:
    """Views of a chunk, made before, and the backbone that embeds them."""

    def __init__(self, task: dict[str, Any], pool: ComputePool) -> None:
        backbone: Any = registry.load(task["feature"], task["model"], "cpu", "float32")
        batch, self.rows = registry.info(task["feature"]).batch_size("cpu"), task["rows"]
        rng = np.random.default_rng(0)
        self._batcher: ImageBatcher | TextBatcher
        self._views: tuple[Any, Any]
        if hasattr(backbone, "image"):
            side = backbone.image.size
            pixels = rng.integers(0, 256, (self.rows, side, side, 3), dtype=np.uint8)
            self._batcher = ImageBatcher(backbone, batch, self.rows, pool)
            self._views = (pixels[0], pixels[1:])
        else:
            limit = backbone.text.max_length
            ids = rng.integers(3, 90, (self.rows, limit), dtype=np.int32)
            self._batcher = TextBatcher(backbone, batch, self.rows, pool)
            self._views = (ids, draw_lengths(rng, self.rows, limit))

    def embed(self) -> float:
        """Embeds all of them; returns how many."""
        self._batcher.add(*self._views)
        self._batcher.launch().take()
        return float(self.rows)


def _laps(task: dict[str, Any], rounds: int) -> tuple[dict[str, list[Lap]], dict[str, int]]:
    """Laps of each contender in turns, and the memory that it takes, in bytes.

    Every contender has separate processes, which wait while it is another contender's turn.
    """
    halves = task | {"rows": task["rows"] // 2}
    tasks = {
        ONE: [task | {"threads": 1}],
        TWO: [task | {"threads": 2}],
        PROCESSES: [halves | {"threads": 1}] * 2,
    }
    with ExitStack() as stack:
        crews = {n: [stack.enter_context(_child(t)) for t in of] for n, of in tasks.items()}
        for child in (child for crew in crews.values() for child in crew):
            _receive(child)

        def contender(name: str) -> Contender:
            def work() -> float:
                for child in crews[name]:
                    _send(child, "go")
                return sum(float(_receive(child)) for child in crews[name])

            return timed(work, time.perf_counter)

        laps = take_turns({name: contender(name) for name in crews}, rounds)
        memory = {
            name: sum(_memory_of(child.pid) for child in crew) for name, crew in crews.items()
        }
    return laps, memory


@contextmanager
def _child(task: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.threads", "--child", json.dumps(task)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _serve(task: dict[str, Any]) -> None:
    with ComputePool(task["threads"], CPU) as pool:
        work = Work(task, pool)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(work.embed(), flush=True)


def _send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _receive(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a contender ended with {process.wait()}")
    return line


def _memory_of(pid: int) -> int:
    """Memory of a process that no other has, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    sizes = dict(line.split(":", 1) for line in lines[1:])
    return sum(int(sizes[f"Private_{kind}"].split()[0]) << 10 for kind in ("Clean", "Dirty"))


def _busy(folder: Path, *, quick: bool) -> None:
    data = folder / "data"
    make_demo_data(data)
    checkpoints = make_checkpoints(folder / "checkpoints")
    command = [sys.executable, str(ROOT / "cli.py"), "build", "--store", str(folder / "store")]
    command += ["--data-dir", str(data / "dataset"), "--device", "cpu", "--chunk", "16", "--quiet"]
    names = {"clip_image": "clip", "clip_text": "sentence", "blip2": "blip2"}
    for feature, name in names.items():
        command += ["--model", f"{feature}={checkpoints[name]}"]
    if quick:
        command += ["--views", "16"]

    def lap() -> Lap:
        start = time.perf_counter()
        # One of the demo's posters is cut short: done, with bad samples.
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 3:
            raise SystemExit("the build failed")
        seconds = time.perf_counter() - start
        shutil.rmtree(folder / "store")
        return Lap(1, seconds)

    def beside() -> Lap:
        loops = [subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]) for _ in range(2)]
        try:
            return lap()
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()

    alone, busy = "nothing beside it", "two busy loops beside it"
    laps = take_turns({alone: lap, busy: beside}, rounds=2 if quick else 5)
    slower = Spread.of(b.seconds / a.seconds for a, b in zip(laps[alone], laps[busy], strict=True))
    rows = [[n, str(Spread.of(x.seconds for x in of))] for n, of in laps.items()]
    print(table(["the demo's build", "seconds"], [*rows, ["times as long", str(slower)]]))
    print(goal("allowed / found", 3.0 / slower.median, 1.0), flush=True)


if __name__ == "__main__":
    main()
