"""Whole builds in this process with exact fake backbones: a build of five chunks in half a second.

A feature of a text is a pure function of its tokens, in integers that float32 holds exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from consumers.backbones import registry
from consumers.build import Observer, build
from consumers.build_report import BuildReport
from consumers.config import BuildConfig
from featurestore.verify.store import verify
from producers.recipes.texts.tokens import TextSpec
from tests.conftest import tree_digest

VIEWS, SAMPLES, CHUNK = 4, 18, 4
CHUNKS = 5  # the last one is half full
DIMS = {"clip_text": 64, "blip2_text": 128}
BATCH = 8
_MODULUS = 8191


def tokenizer() -> str:
    words = ["[PAD]", "[UNK]", "[END]", "[MASK]", *(f"w{i}" for i in range(90))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 2)]
    )
    return str(made.to_str())


@dataclass
class FakeText:
    """A text backbone whose features depend on every token and its place, not on the batch."""

    feature: str
    dim: int
    text: TextSpec
    model: str = "fake"
    fingerprint: str = "0" * 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    calls: int = 0

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        places = torch.arange(1, input_ids.shape[1] + 1)
        sums = ((input_ids + 1) * places * attention_mask).sum(dim=1)
        factors = torch.arange(1, self.dim + 1) + len(self.feature)
        return (sums[:, None] * factors % _MODULUS).float() - _MODULUS // 2


Wrap = Callable[[FakeText, torch.Tensor, Callable[[], torch.Tensor]], Any]


@contextmanager
def loaded(wrap: dict[str, Wrap] | None = None, **changes: Any) -> Iterator[dict[str, FakeText]]:
    """Builds load fakes inside this block.

    Args:
        wrap: per feature what is called in place of ``embed``, with the honest one to call.
        changes: attributes of every fake.
    """
    made: dict[str, FakeText] = {}

    def load(feature: str, model: str, device: str, dtype: str) -> FakeText:
        fake = FakeText(feature, DIMS[feature], TextSpec(tokenizer(), 32), model)
        fake.dtype = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        for name, value in changes.items():
            setattr(fake, name, value)
        if wrap and feature in wrap:
            honest, act = fake.embed, wrap[feature]
            changed: Any = fake
            changed.embed = lambda ids, mask: act(fake, ids, lambda: honest(ids, mask))
        made[feature] = fake
        return fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", load)
        yield made


def declared_text(request: Any) -> FakeText:
    """A custom adapter: exact, and its weights are the last part of its model's name."""
    spec = TextSpec(tokenizer(), request.max_length or 32)
    weights = hashlib.sha256(Path(request.model).name.encode()).hexdigest()
    made = FakeText(request.feature, 64, spec, request.model, weights)
    made.dtype = request.dtype
    return made


def other_text(request: Any) -> FakeText:
    """Another adapter."""
    return declared_text(request)


def make_data(folder: Path, samples: int = SAMPLES) -> Path:
    """A data folder whose posters are never opened."""
    folder.mkdir(parents=True)
    for i in range(samples):
        (folder / f"{i:07d}.jpg").write_bytes(b"not opened: no image feature is built")
        plot = " ".join(f"w{(7 * i + j * j) % 90}" for j in range(3 + i))
        (folder / f"{i:07d}.json").write_text(json.dumps({"plot": plot}))
    return folder


def config(data: Path, store: Path, **changes: Any) -> BuildConfig:
    values: dict[str, Any] = {"views": VIEWS, "chunk": CHUNK, "features": tuple(DIMS)}
    values |= {"batch_sizes": dict.fromkeys(DIMS, BATCH), "producers": 1, "threads": 1}
    values["device"] = "cpu"
    return BuildConfig(data_dir=data, store=store, **values | changes)


def make(data: Path, store: Path, observers: tuple[Observer, ...] = (), **changes: Any) -> Any:
    """An uninterrupted build."""
    with loaded():
        report: BuildReport = build(config(data, store, **changes), observers)
    return report


def committed(store: Path) -> list[int]:
    """The chunks that the ledger names, read without the project's code."""
    lines = (store / "records" / "ledger.jsonl").read_bytes().splitlines()
    return [json.loads(line)["chunk"] for line in lines]


def recovers(data: Path, store: Path, golden: Path, **changes: Any) -> None:
    """Verify, resume, verify, and the golden bytes."""
    assert verify(store).findings == []
    make(data, store, resume=True, **changes)
    found = verify(store)
    assert (found.findings, found.notices) == ([], [])
    assert tree_digest(store) == tree_digest(golden)
