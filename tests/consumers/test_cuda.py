"""Whole builds on a GPU, if there is one: equal bytes after any interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.backbones import registry
from consumers.build import build
from consumers.config import BuildConfig
from consumers.device.computing import ComputePool
from consumers.engine.batching import ImageBatcher, TextBatcher
from featurestore.records import FEATURES
from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from tests.conftest import ROOT, tree_digest

DEVICE = "cuda:0"
CHUNK, VIEWS = 8, 4

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

Configure = Callable[..., BuildConfig]


@pytest.fixture(scope="module")
def configure(demo_data: Path, checkpoints: dict[str, str]) -> Configure:
    def make(store: Path, **changes: Any) -> BuildConfig:
        values: dict[str, Any] = {"data_dir": demo_data / "dataset", "models": checkpoints}
        values |= {"device": DEVICE, "producers": 2, "views": VIEWS, "chunk": CHUNK}
        # Small batches, so that every staging buffer is used many times.
        values["batch_sizes"] = dict.fromkeys(FEATURES, 5)
        return BuildConfig(store=store, **values | changes)

    return make


@pytest.fixture(scope="module")
def golden(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("cuda") / "store"
    build(configure(store))
    assert verify(store).findings == []
    return store


def test_the_same_bytes_again(configure: Configure, golden: Path, tmp_path: Path) -> None:
    build(configure(tmp_path / "store", producers=1))
    assert tree_digest(tmp_path / "store") == tree_digest(golden)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("chunks", [1, 4])
def test_the_same_bytes_after_a_stop(
    configure: Configure, golden: Path, tmp_path: Path, number: signal.Signals, chunks: int
) -> None:
    store = tmp_path / "store"
    config = configure(store)
    typed = [sys.executable, str(ROOT / "cli.py"), "build", "--data-dir", str(config.data_dir)]
    typed += ["--store", str(store), "--device", DEVICE, "--producers", "2"]
    typed += ["--views", str(VIEWS), "--chunk", str(CHUNK)]
    for name in FEATURES:
        typed += ["--model", f"{name}={config.models[name]}", "--batch-size", f"{name}=5"]
    process = subprocess.Popen(typed, stderr=subprocess.PIPE, text=True)
    ledger = store / "records/ledger.jsonl"
    while process.poll() is None and committed(ledger) < chunks:
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    # On a fast GPU the rest may be done already, and the handlers gone.
    assert process.returncode in (-number, 128 + signal.SIGTERM, 3), errors
    build(configure(store, resume=True))
    assert tree_digest(store) == tree_digest(golden)


def committed(ledger: Path) -> int:
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def test_float32_is_as_exact_as_on_a_cpu(
    configure: Configure, demo_store: Path, tmp_path: Path
) -> None:
    """With TF32 the difference would be a hundred times larger."""
    build(configure(tmp_path / "store", dtype="float32"))
    found, expected = FeatureStore(tmp_path / "store"), FeatureStore(demo_store)
    for name in FEATURES:
        rows = [
            np.concatenate([s.read_chunk(name, c) for c in range(s.spec.chunks)])
            for s in (found, expected)
        ]
        assert rows[0].shape == rows[1].shape
        deviation = rows[1].reshape(-1, rows[1].shape[-1]).std(axis=0)
        assert (np.abs(rows[0] - rows[1]) <= 1e-4 * deviation + 1e-6).all(), name


@pytest.mark.parametrize("feature", FEATURES)
def test_every_batch_reads_its_own_rows(checkpoints: dict[str, str], feature: str) -> None:
    """The host is far ahead of a slow GPU, over more batches than there are buffers."""
    model: Any = registry.load(feature, checkpoints[feature], DEVICE, "float32")
    honest, rng = model.embed, np.random.default_rng(0)

    def slow(*batch: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
        found: torch.Tensor = honest(*batch)
        return found

    model.embed = slow
    rows, size = 35, 3
    pool = ComputePool(1, model.device)
    batcher: Any
    alone: list[tuple[torch.Tensor, ...]]
    if feature.endswith("image"):
        side = model.image.size
        # Of one colour each, so that no row looks like another.
        pixels = np.broadcast_to(rng.integers(0, 256, (rows, 1, 1, 3)), (rows, side, side, 3))
        pixels = pixels.astype(np.uint8)
        batcher = ImageBatcher(model, size, rows, pool)
        add = partial(batcher.add, pixels[0], pixels[1:])
        alone = [(torch.from_numpy(pixels[i : i + 1]),) for i in range(rows)]
    else:
        limit = model.text.max_length
        ids = rng.integers(3, 40, (rows, limit)).astype(np.int32)
        lengths = rng.integers(1, min(limit, 30), rows).astype(np.int32)
        batcher = TextBatcher(model, size, rows, pool)
        add = partial(batcher.add, ids, lengths)
        kept = [torch.from_numpy(ids[i : i + 1, :n]).long() for i, n in enumerate(lengths)]
        alone = [(row, torch.ones_like(row)) for row in kept]
    with pool:
        for _ in range(2):
            add()
            found = batcher.launch().take()
            with torch.inference_mode():
                expected = [honest(*(t.to(DEVICE) for t in b)).cpu().numpy() for b in alone]
            np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-3, atol=1e-4)
