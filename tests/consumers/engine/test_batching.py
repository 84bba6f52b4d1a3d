from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consumers.device.computing import ComputePool
from consumers.engine import batching
from consumers.engine.batch_plan import image_plan, text_plan
from featurestore.errors import BackboneError
from producers.recipes.images.geometry import ImageSpec
from producers.recipes.texts.tokens import TextSpec

CPU = torch.device("cpu")
SIDE, LIMIT = 4, 12


POOLS: list[ComputePool] = []


def pool() -> ComputePool:
    """One thread, so that batches are computed in the order of the plan."""
    if not POOLS or POOLS[-1]._failure is not None:  # after an error it takes no more
        POOLS.append(ComputePool(1, CPU).__enter__())
    return POOLS[-1]


@pytest.fixture(autouse=True, scope="module")
def _end_of_pools() -> Iterator[None]:
    yield
    for each in POOLS:
        each.__exit__(None, None, None)


def ImageBatcher(backbone: Any, batch: int, rows: int) -> batching.ImageBatcher:
    return batching.ImageBatcher(backbone, batch, rows, pool())


def TextBatcher(backbone: Any, batch: int, rows: int) -> batching.TextBatcher:
    return batching.TextBatcher(backbone, batch, rows, pool())


@dataclass
class FakeImages:
    """Features that depend on every pixel and on the batch."""

    feature: str = "clip_image"
    dim: int = 3
    image: ImageSpec = field(default_factory=lambda: ImageSpec(SIDE, None))
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    batches: list[np.ndarray] = field(default_factory=list)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(pixels.numpy().copy())
        return pixels.float().sum(dim=(1, 2)) + pixels.float().sum() / 1024


@dataclass
class FakeTexts:
    """Features that depend on every id and on the batch."""

    feature: str = "blip2_text"
    dim: int = 2
    text: TextSpec = field(default_factory=lambda: TextSpec("{}", LIMIT, 99))
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    batches: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert input_ids.dtype == attention_mask.dtype == torch.int64
        self.batches.append((input_ids.numpy().copy(), attention_mask.numpy().copy()))
        total = (input_ids * attention_mask).sum(dim=1)
        return torch.stack([total, input_ids.sum().expand(len(total))], dim=1).float()


def fake(base: Any, answer: Any) -> Any:
    """A backbone whose ``embed`` returns or raises something else."""

    def embed(*inputs: torch.Tensor) -> Any:
        return answer(*inputs)

    model = base()
    model.embed = embed
    return model


def image_rows(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)


def text_rows(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, 50, (rows, LIMIT), dtype=np.int32)
    return ids, rng.integers(1, LIMIT + 1, rows, dtype=np.int32)


@given(rows=st.integers(0, 300), batch=st.integers(1, 70))
def test_image_plan_holds_each_row_once_in_order(rows: int, batch: int) -> None:
    plan = image_plan(rows, batch)
    assert [row for part in plan for row in range(rows)[part]] == list(range(rows))
    assert all(part.stop - part.start == batch for part in plan[:-1])
    assert all(0 < part.stop - part.start <= batch for part in plan)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200),
    tokens=st.integers(42, 900),
    most=st.integers(1, 70),
    limit=st.integers(40, 42),
    multiple=st.sampled_from([1, 8, 16]),
)
def test_text_plan_holds_each_row_once_longest_first(
    lengths: list[int], tokens: int, most: int, limit: int, multiple: int
) -> None:
    array = np.array(lengths, np.int32)
    plan = text_plan(array, tokens, most, limit, multiple)
    rows = [row for part in plan for row in part.rows]
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    longest = [max(lengths[row] for row in part.rows) for part in plan]
    allowed = [*range(multiple, limit, multiple), limit]
    assert [part.length for part in plan] == [
        min(n for n in allowed if n >= length) for length in longest
    ]
    # Every batch is as large as it may be: within both limits, and one more text is beyond one.
    sizes = [(len(part.rows), part.length) for part in plan]
    assert all(size <= most and size * length <= tokens for size, length in sizes)
    assert all(size == most or (size + 1) * length > tokens for size, length in sizes[:-1])
    # Pure: the same again, whatever came between, and the input untouched.
    text_plan(array[::-1], tokens, most, limit, multiple)
    assert text_plan(array.copy(), tokens, most, limit, multiple) == plan
    assert array.tolist() == lengths


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=99), seed=st.integers(0, 99))
def test_text_plan_does_not_depend_on_row_order(lengths: list[int], seed: int) -> None:
    shuffled = random.Random(seed).sample(lengths, len(lengths))
    shapes = [
        [(p.length, len(p.rows)) for p in text_plan(np.array(order, np.int32), 99, 7, 40)]
        for order in (lengths, shuffled)
    ]
    assert shapes[0] == shapes[1]


@given(samples=st.integers(1, 6), views=st.integers(1, 9), batch=st.integers(1, 20))
def test_image_batches_follow_the_plan(samples: int, views: int, batch: int) -> None:
    pixels, model = image_rows(samples * views), FakeImages()
    batcher = ImageBatcher(model, batch, samples * views + 5)
    for sample in pixels.reshape(samples, views, SIDE, SIDE, 3):
        scratch = sample.copy()
        batcher.add(scratch[0], scratch[1:])
        scratch[:] = 77  # a slot of the ring is refilled at once
    features = batcher.launch().take()
    padded = [np.zeros((batch, SIDE, SIDE, 3), np.uint8) for _ in image_plan(len(pixels), batch)]
    for stage, part in zip(padded, image_plan(len(pixels), batch), strict=True):
        stage[: part.stop - part.start] = pixels[part]
    np.testing.assert_array_equal(model.batches, padded)
    own = pixels.sum(axis=(1, 2))
    context = np.repeat([stage.sum() / 1024 for stage in padded], batch)[: len(pixels)]
    np.testing.assert_array_equal(features, (own + context[:, None]).astype(np.float32))


@given(samples=st.integers(1, 6), views=st.integers(1, 9), batch=st.integers(1, 20))
def test_text_batches_follow_the_plan(samples: int, views: int, batch: int) -> None:
    (ids, lengths), model = text_rows(samples * views), FakeTexts()
    batcher = TextBatcher(model, batch, samples * views + 5)
    for start in range(0, len(ids), views):
        scratch = ids[start : start + views].copy()
        batcher.add(scratch, lengths[start : start + views])
        scratch[:] = 77
    features = batcher.launch().take()
    plan = text_plan(lengths, batch * LIMIT, batch * 8, LIMIT)
    assert len(model.batches) == len(plan)
    for (got, mask), part in zip(model.batches, plan, strict=True):
        rows = list(part.rows)
        inside = np.arange(part.length) < lengths[rows][:, None]
        np.testing.assert_array_equal(mask, inside)
        np.testing.assert_array_equal(got, np.where(inside, ids[rows, : part.length], 99))
    own = [row[:n].sum() for row, n in zip(ids, lengths, strict=True)]
    np.testing.assert_array_equal(features[:, 0], own)


def test_any_split_of_a_real_chunk_gives_the_same_bytes(backbone: Any) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (12, 224, 224, 3), dtype=np.uint8)
    ids = np.random.default_rng(4).integers(5, 90, (12, 128), dtype=np.int32)
    lengths = np.arange(1, 13, dtype=np.int32)
    results = []
    for views in (1, 2, 6, 12):
        images = ImageBatcher(backbone("clip_image"), 5, 12)
        texts = TextBatcher(backbone("clip_text"), 5, 40)
        for _ in range(2):  # the second chunk reuses the first one's buffers
            for start in range(0, 12, views):
                rows = slice(start, start + views)
                images.add(pixels[start], pixels[rows][1:])
                texts.add(ids[rows], lengths[rows])
            results.append(images.launch().take().tobytes() + texts.launch().take().tobytes())
    assert len(set(results)) == 1


def test_discard_forgets_the_chunk() -> None:
    pixels, (ids, lengths) = image_rows(8), text_rows(8)
    images, texts = ImageBatcher(FakeImages(), 3, 8), TextBatcher(FakeTexts(), 3, 8)
    images.add(pixels[5], pixels[:4])
    texts.add(ids[2:7], lengths[2:7])
    for batcher in (images, texts):
        batcher.discard()
    images.add(pixels[0], pixels[1:])
    texts.add(ids, lengths)
    fresh_images, fresh_texts = ImageBatcher(FakeImages(), 3, 8), TextBatcher(FakeTexts(), 3, 8)
    fresh_images.add(pixels[0], pixels[1:])
    fresh_texts.add(ids, lengths)
    np.testing.assert_array_equal(images.launch().take(), fresh_images.launch().take())
    np.testing.assert_array_equal(texts.launch().take(), fresh_texts.launch().take())


def test_discard_cancels_what_is_queued() -> None:
    """A discarded chunk is not computed, and its buffers can be filled again."""
    started, go = threading.Event(), threading.Event()

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        computed.append(pixels.clone())
        started.set()
        assert go.wait(60)
        return torch.ones(len(pixels), 3)

    computed: list[torch.Tensor] = []
    batcher, pixels = ImageBatcher(fake(FakeImages, answer), 2, 8), image_rows(4)
    batcher.add(pixels[0], pixels[1:])  # the second batch waits behind the first
    assert started.wait(60)
    batcher.discard()
    go.set()
    batcher.add(pixels[0], pixels[1:])
    assert batcher.launch().take().shape == (4, 3)
    np.testing.assert_array_equal(
        np.stack(computed), pixels.reshape(2, 2, SIDE, SIDE, 3)[[0, 0, 1]]
    )


@pytest.mark.parametrize("buffers", [1, 2])
def test_a_chunk_that_is_not_taken_is_not_overwritten(buffers: int) -> None:
    """Images have two buffers, a set of texts has one; a chunk that needs one again is refused."""
    images, texts = ImageBatcher(FakeImages(), 3, 8), TextBatcher(FakeTexts(), 3, 8)

    def make(seed: int) -> Any:
        if buffers == 1:
            texts.add(*text_rows(8, seed))
            return texts.launch()
        pixels = image_rows(8, seed)
        images.add(pixels[0], pixels[1:])
        return images.launch()

    alone = [make(seed).take() for seed in range(3)]
    assert not np.array_equal(alone[0], alone[1])
    waiting = [make(seed) for seed in range(buffers)]
    with pytest.raises(RuntimeError, match="not taken"):
        make(buffers)
    for ended, expected in zip(waiting, alone, strict=False):
        np.testing.assert_array_equal(ended.take(), expected)
    np.testing.assert_array_equal(make(buffers).take(), alone[buffers])


def run(model: Any, views: int = 4, samples: int = 2, batch: int = 3) -> np.ndarray:
    """Two samples through the batcher that fits the model."""
    if isinstance(model, FakeImages):
        images = ImageBatcher(model, batch, samples * views)
        for sample in range(samples):
            pixels = image_rows(views, sample)
            images.add(pixels[0], pixels[1:])
        return images.launch().take(range(100, 200))
    texts = TextBatcher(model, batch, samples * views)
    for sample in range(samples):
        texts.add(*text_rows(views, sample))
    return texts.launch().take(range(100, 200))


@pytest.mark.parametrize("base", [FakeImages, FakeTexts])
@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda x, *_: torch.zeros(len(x), 7), "torch.float32 [3, 7]"),
        (lambda x, *_: torch.zeros(len(x) - 1, 2), "torch.float32 [2, 2]"),
        (lambda x, *_: torch.zeros(len(x), 2, dtype=torch.bfloat16), "torch.bfloat16"),
        (lambda x, *_: torch.zeros(len(x), 2, device="meta"), "on meta"),
        (lambda *_: SimpleNamespace(), "a SimpleNamespace"),
    ],
)
def test_what_is_no_feature_is_refused(base: Any, answer: Any, found: str) -> None:
    with pytest.raises(BackboneError) as error:
        run(fake(base, answer))
    assert found in str(error.value)
    assert f"{base().feature} returned" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_sample_view_and_count(value: float) -> None:
    def answer(pixels: torch.Tensor) -> torch.Tensor:
        features = torch.ones(len(pixels), 3)
        features[1, 2] = value
        return features

    # Row 1 of each of the three batches, the last of them filled up.
    with pytest.raises(BackboneError, match="3 of 8 rows, first for sample 100, view 1"):
        run(fake(FakeImages, answer))


@pytest.mark.parametrize("base", [FakeImages, FakeTexts])
def test_a_failing_backbone_is_named_and_chained(base: Any) -> None:
    def answer(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device-side assert")

    with pytest.raises(BackboneError, match=r"failed on rows 0 to 2.*\n.*device-side") as error:
        run(fake(base, answer))
    assert isinstance(error.value.__cause__, RuntimeError)


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_is_tried_again_at_the_same_size(error: Exception) -> None:
    sizes: list[int] = []

    def answer(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(sizes) == 2:
            raise error
        return torch.ones(len(pixels), 3)

    assert run(fake(FakeImages, answer)).shape == (8, 3)
    assert sizes == [3, 3, 3, 3]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_twice_names_the_batch_size_to_try(error: Exception) -> None:
    def answer(*_: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(BackboneError) as caught:
        run(fake(FakeTexts, answer), batch=8)
    message = str(caught.value)
    assert "batch size 8 of blip2_text" in message
    assert "--batch-size blip2_text=4" in message
    assert message.count("\n") <= 3


def test_arguments_that_do_not_fit_are_refused() -> None:
    pixels, (ids, lengths) = image_rows(5), text_rows(5)
    images, texts = ImageBatcher(FakeImages(), 3, 8), TextBatcher(FakeTexts(), 3, 8)
    with pytest.raises(ValueError, match="expected uint8"):
        images.add(pixels[0, :2], pixels)
    with pytest.raises(ValueError, match="expected uint8"):
        images.add(pixels[0], pixels.astype(np.float32))
    with pytest.raises(ValueError, match="expected int32"):
        texts.add(ids[:, :3], lengths)
    with pytest.raises(ValueError, match=r"not in 1\.\.12"):
        texts.add(ids, lengths * 0)
    for nothing in (images.launch().take(), texts.launch().take()):  # as if all inputs are absent
        assert len(nothing) == 0
        assert nothing.dtype == np.dtype(np.float32)
    images.add(pixels[0], pixels[1:])
    with pytest.raises(ValueError, match="full at 5"):
        images.add(pixels[0], pixels[1:])
    with pytest.raises(ValueError, match="4 views in a chunk of 5"):
        images.add(pixels[0], pixels[:3])
    with pytest.raises(ValueError, match="batch size"):
        ImageBatcher(FakeImages(), 0, 8)
