"""The memory that ``check`` estimates for batches, compared with the batchers' allocations."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from consumers.device.computing import ComputePool
from consumers.engine.batching import ImageBatcher, TextBatcher
from consumers.engine.embedding import Embedder
from manyviews.operations.check.models import FoundModel, batch_bytes

CHUNK, VIEWS = 5, 7
CPU = torch.device("cpu")
BATCHES = {"picture": 4, "words": 3}


def backbones() -> dict[str, Any]:
    """Backbones with only the attributes that a batcher reads."""
    picture = {"image": SimpleNamespace(size=12), "dim": 24}
    words = {"text": SimpleNamespace(max_length=10, pad_id=0), "dim": 16}
    return {
        name: SimpleNamespace(feature=name, device=CPU, dtype=torch.float32, **own)
        for name, own in (("picture", picture), ("words", words))
    }


def arrays_of(thing: Any, seen: set[int]) -> Iterator[tuple[int, int]]:
    """Yields address and size of each tensor and array in an object, at any depth."""
    if id(thing) in seen or isinstance(thing, ComputePool | SimpleNamespace):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing.data_ptr(), thing.numel() * thing.element_size()
    elif isinstance(thing, np.ndarray):
        yield thing.__array_interface__["data"][0], thing.nbytes
    elif isinstance(thing, SimpleQueue):
        for _ in range(thing.qsize()):
            item = thing.get()
            yield from arrays_of(item, seen)
            thing.put(item)
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from arrays_of(item, seen)
    elif hasattr(thing, "__dict__"):
        for item in vars(thing).values():
            yield from arrays_of(item, seen)


def allocated(embedder: Embedder, feature: str) -> int:
    """Bytes of all batchers of a feature; shared memory counts once."""
    sets: list[list[ImageBatcher] | list[TextBatcher]]
    sets = [*embedder._images, *embedder._texts, *embedder._launched]
    batchers = [b for parts in sets for b in parts if b.backbone.feature == feature]
    assert batchers
    sizes: dict[int, int] = {}
    for address, size in arrays_of(batchers, set()):
        sizes[address] = max(size, sizes.get(address, 0))
    return sum(sizes.values())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parts", [[range(VIEWS)], [range(3), range(3, VIEWS)]])
def test_host_memory_equals_the_batchers_allocations(threads: int, parts: list[range]) -> None:
    made = backbones()
    pool = ComputePool(threads, CPU)
    embedder = Embedder(made, BATCHES, parts, CHUNK, 1, pool)
    rows = [CHUNK * len(part) for part in parts]
    for name, backbone in made.items():
        model = FoundModel(name, None, None, "float32")
        device, _, host = batch_bytes(model, backbone, BATCHES[name], rows, threads)
        assert device == 0
        # A chunk is copied out of the batchers to be written.
        copied = CHUNK * VIEWS * backbone.dim * 4
        assert host == allocated(embedder, name) + copied


def test_the_count_sees_every_buffer() -> None:
    """Two buffers of pixels for one thread and two chunks of features, computed by hand."""
    made = backbones()
    embedder = Embedder(made, BATCHES, [range(VIEWS)], CHUNK, 1, ComputePool(1, CPU))
    assert isinstance(embedder._images[0][0], ImageBatcher)
    pixels, filled = 4 * 12 * 12 * 3, 36  # 35 rows in batches of 4
    assert allocated(embedder, "picture") == 2 * pixels + 2 * filled * 24 * 4
    ids, filled = 3 * (10 + 8) * 4, 36
    kept = 35 * (10 + 1) * 4
    assert allocated(embedder, "words") == 2 * (2 * ids + kept + filled * 16 * 4)
