"""Encoders that differ in attention, padding and token types, compared with their libraries."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.backbones import declared
from consumers.backbones.protocol import BackboneRequest
from consumers.backbones.registry import quiet_transformers
from consumers.device.computing import ComputePool, Order
from featurestore.errors import ConfigError
from producers.recipes.texts.tokens import TokenEncoder
from tests.consumers.preprocessing.test_library_ids import TEXTS
from tests.consumers.sentence_models import KINDS, make_sentence_model

# Of a dimension's standard deviation over the texts.
CLOSE = 2e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("sentence")
    quiet_transformers()

    @functools.cache
    def make(kind: str, **settings: Any) -> Path:
        folder = root / "-".join([kind, *map(str, settings.values())])
        make_sentence_model(kind, folder, **settings)
        return folder

    return make


@functools.cache
def load(folder: Path, adapter: str = "sentence-transformers", **settings: Any) -> Any:
    """Loads without the self-test, which takes a second."""
    loader = declared._loader("f", adapter)
    device = torch.device("cpu")
    return loader(BackboneRequest("f", str(folder), device, torch.float32, **settings))


def tokens(backbone: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask in the form of a batch."""
    ids = np.empty((len(texts), backbone.text.max_length), np.int32)
    lengths = np.empty(len(texts), np.int32)
    TokenEncoder(backbone.text).encode(texts, ids, lengths)
    longest = int(lengths.max())
    mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
    return torch.from_numpy(ids[:, :longest]).long(), mask.long()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    spread = expected.std(axis=0)
    assert spread.min() > 1e-3  # different texts, different features
    assert float((abs(found - expected) / spread).max()) < CLOSE


def encode_alone(folder: Path, texts: list[str]) -> np.ndarray:
    """The library's own features of each text, embedded alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.stack([model.encode([text])[0] for text in texts])


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_librarys_own_call(made: Callable[..., Path], kind: str) -> None:
    backbone = load(made(kind))
    found = backbone.embed(*tokens(backbone, list(TEXTS))).numpy()
    assert_close(found, encode_alone(made(kind), list(TEXTS)))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_a_byte(made: Callable[..., Path], kind: str) -> None:
    """Some encoders keep state between layers, or depend on the lengths of earlier batches."""
    backbone = load(made(kind))
    ids, mask = tokens(backbone, list(TEXTS))
    order = mask.sum(1).argsort()
    batches = [(ids[rows], mask[rows]) for rows in torch.split(order, 3)]
    calls = [partial(backbone.embed, *batch) for batch in batches] * 2
    rows = []
    for threads in (1, 3):
        with ComputePool(threads, backbone.device) as pool:
            futures = [pool.submit(Order.TEXTS, call) for call in calls]
            rows.append(torch.cat([future.result() for future in futures]))
    assert torch.equal(*rows)


def test_bigbird_sees_the_whole_of_a_long_text_whatever_came_before(
    made: Callable[..., Path],
) -> None:
    """The library attends in blocks until it meets a short batch, and to the whole from then on."""
    from sentence_transformers import SentenceTransformer

    backbone = load(made("bigbird"))
    long = [" ".join(TEXTS[k:] + TEXTS[:k]) for k in range(12)]
    found = backbone.embed(*tokens(backbone, long)).numpy()
    model = SentenceTransformer(str(made("bigbird")), device="cpu")
    in_blocks = model.encode(long)
    model.encode(["short"])
    assert_close(found, model.encode(long))
    assert abs(found - in_blocks).max() > 1e-2


# --- padding on the left ---


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("deberta", "mean"), ("deberta", "cls"), ("deberta", "lasttoken"), ("mistral", "lasttoken")],
)
def test_a_tokenizer_that_pads_left(made: Callable[..., Path], kind: str, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = made(kind, pooling=pooling, side="left")
    assert SentenceTransformer(str(folder), device="cpu").tokenizer.padding_side == "left"
    backbone = load(folder)
    found = backbone.embed(*tokens(backbone, list(TEXTS))).numpy()
    assert_close(found, encode_alone(folder, list(TEXTS)))


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("xlnet", "last"),
        ("xlnet", "mean"),
        ("deberta", "cls"),
        ("mistral", "last"),
        ("fnet", "mean"),
        ("convbert", "mean"),
        ("bigbird", "pooler"),
    ],
)
def test_states_are_those_of_transformers_own_call(
    made: Callable[..., Path], kind: str, pooling: str
) -> None:
    """The same encoders without the library: token types, padding side and ignored masks."""
    from transformers import AutoModel, AutoTokenizer

    folder = made(kind, side="left")
    backbone = load(folder, "transformers-text", pooling=pooling, max_length=100)
    found = backbone.embed(*tokens(backbone, list(TEXTS))).numpy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    with torch.inference_mode():
        for text in TEXTS:
            own = tokenizer(text, truncation=True, max_length=100, return_tensors="pt")
            output = model(**own)
            states = output.last_hidden_state[0]
            vectors = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}
            expected.append(vectors[pooling] if pooling != "pooler" else output.pooler_output[0])
    assert_close(found, torch.stack(expected).numpy())


# --- what is refused ---


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    for adapter in ("sentence-transformers", "transformers-text"):
        folder = Path(shutil.copytree(made("mpnet"), tmp_path / adapter))
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text("utf-8"))
        document["model"]["vocab"]["zebra"] = len(document["model"]["vocab"])
        path.write_text(json.dumps(document))
        with pytest.raises(ConfigError, match=r"(?s)1 of its tokens have no row.*'zebra'"):
            load(folder, adapter)
