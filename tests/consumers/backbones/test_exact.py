"""Every feature against a naive call of the same model class: one input at a time, float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consumers.backbones.protocol import ImageBackbone, TextBackbone
from consumers.device.computing import ComputePool
from consumers.engine.batching import ImageBatcher, TextBatcher
from consumers.preprocessing.pixels import Normalizer, read_preprocessing
from producers.recipes.texts.tokens import TokenEncoder

Load = Callable[[str], Any]  # a feature is of images or of texts, as its name says


def assert_exact(ours: np.ndarray, theirs: np.ndarray) -> None:
    spread = theirs.std(axis=0)
    # Nearly constant features would prove nothing.
    assert (spread > 0.05 * np.abs(theirs).mean()).all()
    assert ours.shape == theirs.shape
    assert (np.abs(ours - theirs) / spread).max() <= 2e-5


def embed_pictures(backbone: ImageBackbone, pictures: np.ndarray, batch: int = 24) -> np.ndarray:
    with ComputePool(2, backbone.device) as pool:
        batcher = ImageBatcher(backbone, batch, len(pictures), pool)
        for start in range(0, len(pictures), 8):
            batcher.add(pictures[start], pictures[start + 1 : start + 8])
        return batcher.launch().take()


def embed_sentences(backbone: TextBackbone, sentences: list[str], batch: int = 7) -> np.ndarray:
    spec = backbone.text
    ids = np.full((len(sentences), spec.max_length), spec.pad_id, np.int32)
    lengths = np.zeros(len(sentences), np.int32)
    TokenEncoder(spec).encode(sentences, ids, lengths)
    with ComputePool(2, backbone.device) as pool:
        batcher = TextBatcher(backbone, batch, len(sentences), pool)
        for start in range(0, len(sentences), 8):
            batcher.add(ids[start : start + 8], lengths[start : start + 8])
        return batcher.launch().take()


def test_clip_image(backbone: Load, tiny_folders: dict[str, Path], pictures: np.ndarray) -> None:
    from transformers import AutoImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(tiny_folders["clip"], dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_folders["clip"], backend="pil")
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            inputs = processor(images=Image.fromarray(picture), return_tensors="pt")
            rows.append(model.get_image_features(**inputs).pooler_output[0].numpy())
    assert_exact(embed_pictures(backbone("clip_image"), pictures), np.stack(rows))


def test_blip2_image(backbone: Load, tiny_folders: dict[str, Path], pictures: np.ndarray) -> None:
    from transformers import AutoImageProcessor, Blip2Model

    model = Blip2Model.from_pretrained(tiny_folders["blip2"], dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(tiny_folders["blip2"], backend="pil")
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            inputs = processor(images=Image.fromarray(picture), return_tensors="pt")
            rows.append(model.get_qformer_features(**inputs).mean(dim=1)[0].numpy())
    assert_exact(embed_pictures(backbone("blip2_image"), pictures), np.stack(rows))


def test_clip_text(backbone: Load, tiny_folders: dict[str, Path], sentences: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_folders["sentence"]), device="cpu")
    rows = [
        model.encode([text], normalize_embeddings=False, show_progress_bar=False)[0]
        for text in sentences
    ]
    assert_exact(embed_sentences(backbone("clip_text"), sentences), np.stack(rows))


def test_blip2_text(backbone: Load, tiny_folders: dict[str, Path], sentences: list[str]) -> None:
    from transformers import AutoTokenizer, Blip2Model

    model = Blip2Model.from_pretrained(tiny_folders["blip2"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["blip2"])
    rows = []
    with torch.inference_mode():
        for text in sentences:
            inputs = tokenizer(
                [text], padding=True, truncation=True, max_length=512, return_tensors="pt"
            )
            states = model.language_model.encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            rows.append(((states * mask).sum(1) / mask.sum(1))[0].numpy())
    assert_exact(embed_sentences(backbone("blip2_text"), sentences), np.stack(rows))


@pytest.mark.parametrize("kind", ["clip", "blip2"])
def test_normalizer_equals_the_processor_bit_for_bit(
    tiny_folders: dict[str, Path], kind: str
) -> None:
    from transformers import AutoImageProcessor

    from consumers.checkpoints import checkpoints

    processor = AutoImageProcessor.from_pretrained(tiny_folders[kind], backend="pil")
    spec = read_preprocessing(checkpoints.resolve(str(tiny_folders[kind])), 224)
    # Every value of every channel, and then some.
    pixels = np.random.default_rng(0).permutation(224 * 224 * 3).astype(np.uint8)
    pixels = pixels.reshape(1, 224, 224, 3)
    expected = processor(images=Image.fromarray(pixels[0]), return_tensors="np")["pixel_values"]
    ours = Normalizer(spec, torch.device("cpu"), torch.float32)(torch.from_numpy(pixels))
    np.testing.assert_array_equal(ours.numpy(), expected)
    half = Normalizer(spec, torch.device("cpu"), torch.bfloat16)(torch.from_numpy(pixels))
    assert torch.equal(half, torch.from_numpy(expected).to(torch.bfloat16))


@pytest.mark.parametrize("feature", ["clip_image", "blip2_image"])
def test_dropout_is_off_for_images(backbone: Load, feature: str, pictures: np.ndarray) -> None:
    pixels = torch.from_numpy(pictures[:4])
    first = backbone(feature).embed(pixels)
    assert torch.equal(first, backbone(feature).embed(pixels))
    assert first.dtype == torch.float32
    assert not first.requires_grad


@pytest.mark.parametrize("feature", ["clip_text", "blip2_text"])
def test_dropout_is_off_for_texts(backbone: Load, feature: str) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = (ids > 0).long()
    first = backbone(feature).embed(ids, mask)
    assert torch.equal(first, backbone(feature).embed(ids, mask))
    assert first.dtype == torch.float32
    assert not first.requires_grad


@pytest.mark.parametrize("feature", ["clip_image", "blip2_image", "blip2_text"])
def test_bfloat16_pools_in_float32(
    tiny_folders: dict[str, Path], feature: str, pictures: np.ndarray, sentences: list[str]
) -> None:
    from consumers.backbones import registry
    from tests.consumers.conftest import KINDS

    folder = str(tiny_folders[KINDS[feature]])
    half: Any
    full: Any
    half, full = (registry.load(feature, folder, "cpu", d) for d in ("bfloat16", "float32"))
    if feature == "blip2_text":
        ours, exact = embed_sentences(half, sentences), embed_sentences(full, sentences)
    else:
        ours, exact = embed_pictures(half, pictures[:16]), embed_pictures(full, pictures[:16])
    assert half.dtype == torch.bfloat16
    # More digits than bfloat16 has: the mean was taken in float32 (CLIP's is no mean).
    rounded = torch.from_numpy(ours).to(torch.bfloat16).float().numpy()
    assert feature == "clip_image" or not np.array_equal(rounded, ours)
    assert np.abs(ours - exact).mean() < 0.1 * exact.std()
