"""Common code of the fault tests: the golden build, runs with faults, and checks after each run.

Every fault is counted where it happens, and a test whose fault did not happen fails.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from tests import warm
from tests.conftest import ROOT

SAMPLES = 11
DIMS = {"clip_text": 32, "blip2_text": 64}
# Injected faults that were seen to happen in this process, by kind.
COUNTS: Counter[str] = Counter()

_NAMESPACE = ("unshare", "-Urm", "--propagation", "private")


@dataclass(frozen=True, slots=True)
class Run:
    """How a child ended.

    Attributes:
        kind: ``done``, ``error`` (one of the project's), ``defect`` (any other exception),
            ``killed`` or ``hung``.
        code: exit status, negative for a signal.
        operations: disk operations that it began.
        fired: faults that were injected.
        where: the first operation that one was injected into.
        leftovers: its processes that were alive five seconds after its end.
        values: what each finished step returned.
        type: the error's class; ``classes`` are it and its bases.
        message: the error's message, or a defect's traceback.
        exit_code: what the command line makes of the error.
        path: the path that the error names.
        bytes: the bytes that it names.
    """

    kind: str
    code: int
    operations: int
    fired: int
    where: str
    leftovers: list[str]
    values: list[Any]
    type: str = ""
    classes: list[str] = field(default_factory=list)
    message: str = ""
    exit_code: int = 0
    path: str = ""
    bytes: int | None = None

    def __str__(self) -> str:
        what = f"{self.kind} {self.code} after {self.operations} operations"
        return f"{what}, fault x {self.fired} at {self.where!r}: {self.type} {self.message}"


@cache
def namespaces_allowed() -> bool:
    """Whether this machine allows tests to mount file systems."""
    command = [*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class LightPopen(warm.Popen):
    """A fork of a process without transformers, which most of these tests do not need.

    Its memory is half as large, and so is the time of each fork. The modules are those of a
    build, including what it imports late.
    """

    imported = (
        *("consumers.build", "consumers.backbones.registry", "featurestore.imdb.materialize"),
        *("featurestore.verify.repair", "manyviews.main", "rich.progress", "torch", "zarr"),
        *("huggingface_hub.errors", "huggingface_hub.hf_api", "huggingface_hub._snapshot_download"),
    )


class Zygote:
    """The process that forks one child per run; with ``mounts``, in a separate mount namespace.

    Args:
        mounts: shell commands that are run before it starts, as root of the namespace.
    """

    def __init__(self, mounts: str = "") -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # the fakes are the CPU's
        }
        self._errors = tempfile.TemporaryFile()
        self._process = LightPopen(
            [sys.executable, "-m", "tests.faults.zygote", mounts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._read()

    def _read(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the zygote ended: {self._errors.read().decode()[-4000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._requests.write(json.dumps(request).encode("ascii") + b"\n")
        self._requests.flush()
        return self._read()

    def start(self, task: dict[str, Any]) -> int:
        """Forks a child that does ``task``; returns its process id."""
        pid: int = self._ask(do="start", task=task)["pid"]
        return pid

    def wait(self, pid: int, timeout_s: float = 240.0) -> Run:
        """Waits until the child and all of its processes have ended."""
        reply = self._ask(do="wait", pid=pid, timeout_s=timeout_s)
        known = {f.name for f in fields(Run)}
        return Run(**{name: value for name, value in reply.items() if name in known})

    def close(self) -> None:
        """Ends it."""
        self._requests.close()
        self._process.wait(timeout=60)
        self._replies.close()
        self._errors.close()


class Bench:
    """A data folder, a golden build of it, and runs of builds with faults."""

    def __init__(self, folder: Path, zygote: Zygote, *, views: int = 8, chunk: int = 4) -> None:
        self.folder = folder
        self.zygote = zygote
        self.views, self.chunk = views, chunk
        self.data = folder / "data"
        self.tokenizer = folder / "tokenizer.json"
        make_data(self.data)
        make_tokenizer(self.tokenizer)
        self.golden_store = folder / "golden"
        run = self.run(
            [self.build(self.golden_store, producers=2), ("verify", str(self.golden_store))],
            forked=False,
            fault={"n": -1, "action": "none"},
        )
        assert run.kind == "done", run
        assert run.values[0]["built"] == SAMPLES
        assert run.values[0]["bad"] == 1
        assert run.values[1] == []
        self.operations = run.operations
        self.golden = self.value(("digest", str(self.golden_store)))

    def build(self, store: Path, **changes: Any) -> tuple[str, dict[str, Any]]:
        """The step of a build into ``store``."""
        values: dict[str, Any] = {
            "data_dir": str(self.data),
            "store": str(store),
            "features": list(DIMS),
            "views": self.views,
            "chunk": self.chunk,
            "batch_sizes": dict.fromkeys(DIMS, 16),
            "producers": 1,
            "device": "cpu",
        }
        return "build", values | changes

    def command(self, store: Path, *more: str) -> tuple[str, list[str]]:
        """The step of a build as a user types it."""
        typed = ["build", "--data-dir", str(self.data), "--store", str(store), "--producers", "1"]
        typed += ["--features", ",".join(DIMS), "--views", str(self.views)]
        typed += ["--chunk", str(self.chunk)]
        for name in DIMS:
            typed += ["--batch-size", f"{name}=16"]
        return "command", [*typed, "--device", "cpu", *more]

    def task(self, steps: Sequence[tuple[str, Any]], **more: Any) -> dict[str, Any]:
        """A task with all parameters of a child."""
        return {"steps": steps, "tokenizer": str(self.tokenizer), "dims": DIMS, **more}

    def run(self, steps: Sequence[tuple[str, Any]], timeout_s: float = 240.0, **more: Any) -> Run:
        """Runs ``steps`` in one child; counts the fault, and checks what holds for every run."""
        run = self.zygote.wait(self.zygote.start(self.task(steps, **more)), timeout_s)
        self.check(run)
        return run

    def check(self, run: Run) -> None:
        """Checks what must hold after every run."""
        assert run.kind not in ("defect", "hung"), run
        assert run.leftovers == [], run

    def value(self, step: tuple[str, Any]) -> Any:
        """The return value of a single step."""
        run = self.run([step])
        assert run.kind == "done", run
        return run.values[0]

    def fault(
        self, step: tuple[str, Any], n: int, action: str, *, sticky: bool = False, **more: Any
    ) -> Run:
        """Runs one step with a fault at operation ``n``; counts it if it happened."""
        only = ["write"] if action == "short" else []
        plan = {"n": n, "action": action, "sticky": sticky, "only": only}
        run = self.run([step], fault=plan, **more)
        if run.fired:
            COUNTS[action + (" sticky" if sticky else "")] += 1
        return run

    def recover(self, store: Path, what: object, **changes: Any) -> None:
        """Asserts that nothing is damaged, and that a resume gives the golden bytes."""
        name = str(store)
        steps: list[tuple[str, Any]] = []
        if (store / "zarr.json").exists():
            steps.append(("verify", name))
        steps += [self.build(store, resume=True, **changes), ("verify", name), ("digest", name)]
        run = self.run([*steps, ("lock_free", name)])
        assert run.kind == "done", f"{what}, then {run}"
        *found, _, after, digest, free = run.values
        assert found in ([], [[]]), f"damaged: {what}, {found}"
        assert after == [], f"damaged after resume: {what}"
        assert different(digest, self.golden) == {}, f"other bytes: {what}"
        assert free, what


def different(found: dict[str, str], expected: dict[str, str]) -> dict[str, str]:
    """The entries of two digests that are not equal, as words."""
    return {
        name: f"{found.get(name)} instead of {expected.get(name)}"
        for name in found.keys() | expected.keys()
        if found.get(name) != expected.get(name)
    }


def make_data(folder: Path) -> None:
    """Eleven samples, one with a synopsis that cannot be read; the last chunk is not full."""
    folder.mkdir()
    words = random.Random(5)
    for i in range(SAMPLES):
        stem = folder / f"{i:07d}"
        stem.with_suffix(".jpg").write_bytes(b"not looked at: no image feature is built")
        plot = " ".join(
            "".join(words.choices(string.ascii_lowercase, k=words.randint(1, 4)))
            for _ in range(words.randint(3, 20))
        )
        text = json.dumps({"plot": plot, "genres": ["Drama"]}) if i != 6 else '{"plot": '
        stem.with_suffix(".json").write_text(text)


def make_tokenizer(path: Path) -> None:
    """A tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    signs = ["[PAD]", "[UNK]", "[END]", *string.ascii_lowercase, "[", "]", *"MASK"]
    vocabulary = {sign: number for number, sign in enumerate(dict.fromkeys(signs))}
    vocabulary |= {f"##{sign}": len(vocabulary) + n for n, sign in enumerate(signs[3:])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 2)]
    )
    tokenizer.save(str(path))


def copy(source: Path, target: Path) -> Path:
    """A copy of a store, without its locks' holders."""
    shutil.copytree(source, target)
    return target


def end(pid: int, number: int = signal.SIGKILL) -> bool:
    """Sends a signal to a process; whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
