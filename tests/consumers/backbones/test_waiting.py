"""Nothing between two batches waits for the device.

On the ``meta`` device tensors have shapes and no values: whatever needs a value on the host, for
which a GPU would have to be waited for, fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from consumers.backbones import declared, registry
from consumers.backbones.config import BackboneConfig
from consumers.engine.batching import ImageBatcher, TextBatcher
from consumers.preprocessing import masking
from consumers.preprocessing.masking import prepare_masks
from featurestore.errors import ConfigError
from featurestore.records import FEATURES
from featurestore.system.torchvision_ops import ensure_importable
from tests.consumers.conftest import KINDS

ensure_importable()
from transformers import (  # noqa: E402
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5EncoderModel,
)

META = torch.device("meta")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}


@pytest.mark.parametrize("feature", FEATURES)
def test_no_batch_waits_for_its_own_results(tiny_folders: dict[str, Path], feature: str) -> None:
    # Masks are prepared while it is loaded, where there are values.
    model: Any = registry.load(feature, str(tiny_folders[KINDS[feature]]), "cpu", "float32")
    model._network.to(META)
    owner: Any = SimpleNamespace(backbone=model)
    if hasattr(model, "image"):
        model._normalize.table = model._normalize.table.to(META)
        side = model.image.size
        sent = torch.empty(3, side, side, 3, dtype=torch.uint8, device=META)
        features = ImageBatcher._forward(owner, sent)
    else:
        sent = torch.empty(3, 9, dtype=torch.int32, device=META)
        features = TextBatcher._forward(owner, sent)
    assert (features.device, features.shape) == (META, (3, model.dim))
    with pytest.raises(RuntimeError, match="meta"):
        bool(features.isfinite().all())  # such a question would not have passed unseen


def encoders() -> dict[str, Any]:
    torch.manual_seed(1)
    t5 = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
    modern = ModernBertConfig(**SMALL, intermediate_size=32, pad_token_id=0)
    made = {
        "bert": BertModel(BertConfig(**SMALL)),
        "distilbert": DistilBertModel(
            DistilBertConfig(vocab_size=40, dim=16, hidden_dim=32, n_layers=1, n_heads=2)
        ),
        "t5": T5EncoderModel(t5),
        "modernbert": ModernBertModel(modern),
        "causal": BertModel(BertConfig(**SMALL, is_decoder=True)),
    }
    return {name: model.eval() for name, model in made.items()}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "t5"])
def test_a_prepared_mask_gives_the_same_features(kind: str) -> None:
    encoder = encoders()[kind]
    ids = torch.randint(1, 40, (5, 12), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(12) < torch.tensor([[12], [1], [7], [3], [12]])).long()
    with torch.inference_mode():
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        assert prepare_masks(encoder)
        found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask > 0], expected[mask > 0], atol=1e-5, rtol=1e-5)


def test_t5_adds_its_mask_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, taken = encoders()["t5"], []
    honest = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> torch.Tensor:
        taken.append(kwargs["attn_mask"])
        return honest(*args, **kwargs)

    assert prepare_masks(encoder)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    with torch.inference_mode():
        encoder(input_ids=torch.ones(2, 9, dtype=torch.long), attention_mask=mask)
        assert len(taken) == 3
        assert len({each.data_ptr() for each in taken}) == 1
        assert taken[0].shape == (2, 2, 9, 9)
        assert taken[0].is_contiguous()
        # The next texts get a mask of their own, and a call without one has none of theirs.
        encoder(input_ids=torch.ones(2, 9, dtype=torch.long))
        assert taken[-1].shape == (1, 2, 9, 9)


@pytest.mark.parametrize("call", [1, 2])
def test_a_gpu_that_fails_while_masks_are_prepared_is_told(
    monkeypatch: pytest.MonkeyPatch, tiny_folders: dict[str, Path], call: int
) -> None:
    """It is neither reported as a defect nor answered by using masks that are not prepared."""
    honest, calls = masking._answer, []

    def answer(encoder: Any) -> list[torch.Tensor]:
        calls.append(encoder)
        if len(calls) == call:
            raise RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            )
        return honest(encoder)

    monkeypatch.setattr(masking, "_answer", answer)
    own = tiny_folders["sentence"]
    table = BackboneConfig(adapter="transformers-text", model=str(own))
    loads: list[Callable[[], Any]] = [
        lambda: registry.load("clip_text", str(tiny_folders["sentence"]), "cpu", "float32"),
        lambda: registry.load("blip2_text", str(tiny_folders["blip2"]), "cpu", "float32"),
        lambda: declared.load("own", table, "cpu", "float32"),
    ]
    for load in loads:
        calls.clear()
        with pytest.raises(ConfigError, match=r"(?s)CUBLAS_STATUS.*Free the GPU, .*--device"):
            load()


def test_a_gpu_that_this_torch_has_no_kernels_for_is_told(
    monkeypatch: pytest.MonkeyPatch, tiny_folders: dict[str, Path]
) -> None:
    def answer(_encoder: Any) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(masking, "_answer", answer)
    with pytest.raises(ConfigError, match=r"(?s)no kernel image.*Install a torch .*--device cpu"):
        registry.load("blip2_text", str(tiny_folders["blip2"]), "cpu", "float32")


@pytest.mark.parametrize("kind", ["modernbert", "causal"])
def test_masks_of_windows_and_of_an_order_are_left_alone(kind: str) -> None:
    encoder = encoders()[kind]
    assert not prepare_masks(encoder)
    assert "forward" not in vars(encoder)
