"""torch's wrappers: random views keep changing, windows stay near the disk, states are exact."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, StackDataset, Subset, random_split

from featurestore import (
    DeviceBatches,
    FeatureBatchSampler,
    FeatureDataset,
    Residency,
    ResidentFeatures,
    Shard,
    Shuffle,
)
from featurestore.errors import ConfigError
from tests.featurestore.stores import make_store

SAMPLES, CHUNK, SIZE = 61, 4, 8
Opener = Callable[..., FeatureDataset]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wrappers")
    for number, samples in enumerate((SAMPLES, 19)):
        make_store(root / str(number), samples=samples, views=8, chunk=CHUNK)
    return root


@pytest.fixture
def opened(stores: Path) -> Opener:
    def dataset(number: int = 0, views: str = "random") -> FeatureDataset:
        return FeatureDataset(stores / str(number), ["clip_image"], views=views, seed=number)

    return dataset


PICKED = list(range(0, SAMPLES, 2))


class Doubled(Dataset[dict[str, torch.Tensor]]):
    """A typical custom wrapper."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        inner = self.dataset[item]
        return {**inner, "clip_image": inner["clip_image"] * 2}


def wrapped(opened: Opener, kind: str) -> tuple[Any, list[tuple[int, int]], int]:
    """A wrapper, and for each item the dataset and the item beneath, and the factor."""
    one, two = opened(0), opened(1)
    if kind == "subset":
        return Subset(one, PICKED), [(0, item) for item in PICKED], 1
    if kind == "tensor":
        picked: Any = torch.tensor(PICKED)
        return Subset(one, picked), [(0, item) for item in PICKED], 1
    if kind == "split":
        part, _ = random_split(one, [40, 21], torch.Generator().manual_seed(0))
        return part, [(0, item) for item in part.indices], 1
    if kind == "concat":
        joined: ConcatDataset[Any] = ConcatDataset([Subset(one, PICKED), two])
        return joined, [(0, item) for item in PICKED] + [(1, item) for item in range(19)], 1
    if kind == "nested":
        places = [(0, item) for item in range(SAMPLES)] + [(1, item) for item in range(19)]
        return Subset(ConcatDataset([one, two]), range(0, 80, 3)), places[::3], 1
    return Doubled(Subset(one, PICKED)), [(0, item) for item in PICKED], 2


KINDS = ["subset", "tensor", "split", "concat", "nested", "own"]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        *((how, kind) for how in ("loader", "device") for kind in KINDS),
        *(pytest.param("workers", kind, marks=pytest.mark.nightly) for kind in KINDS[:-2]),
        *(("workers", kind) for kind in KINDS[-2:]),
    ],
)
def test_random_views_change_every_epoch(opened: Opener, how: str, kind: str) -> None:
    dataset, places, factor = wrapped(opened, kind)
    sampler = FeatureBatchSampler(dataset, SIZE)
    loader: Iterable[dict[str, torch.Tensor]]
    if how == "device":
        loader = DeviceBatches(dataset, sampler, "cpu")
    else:
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=int(how == "workers"))
    reference, epochs = [opened(0), opened(1)], []
    for epoch in range(3):
        batches = list(loader)
        rows = torch.cat([batch["clip_image"] for batch in batches])
        index = torch.cat([batch["index"] for batch in batches])
        asked = FeatureBatchSampler(dataset, SIZE)
        asked.set_epoch(epoch)
        order = asked.order().tolist()
        assert sorted(order) == list(range(len(places)))
        for number in (0, 1):
            reference[number].set_epoch(epoch)
        for place, row, sample in zip(order, rows, index, strict=True):
            of, item = places[place]
            wanted = reference[of].batch([item])
            assert torch.equal(row, wanted["clip_image"][0] * factor)
            assert sample == wanted["index"][0]
        epochs.append({p: row.numpy().tobytes() for p, row in zip(order, rows, strict=True)})
    assert sum(epochs[0][p] != epochs[1][p] for p in epochs[0]) > len(places) / 2
    assert sum(epochs[1][p] != epochs[2][p] for p in epochs[0]) > len(places) / 2


def test_a_stack_and_a_wrapper_that_knows_epochs(opened: Opener) -> None:
    one, two = opened(0), Subset(opened(0), range(SAMPLES))
    list(FeatureBatchSampler(StackDataset(a=one, b=two), SIZE))
    sampler = FeatureBatchSampler(StackDataset(one, two), SIZE)
    sampler.set_epoch(3)
    beneath: Any = two.dataset
    assert one.epoch == beneath.epoch == 3

    class Deciding(Doubled):
        def set_epoch(self, epoch: int) -> None:
            self.dataset.set_epoch(epoch % 2)

    FeatureBatchSampler(Deciding(one), SIZE).set_epoch(3)
    assert one.epoch == 1


@pytest.mark.parametrize("kind", ["subset", "split", "concat", "nested"])
def test_windows_stay_near_the_disk(opened: Opener, kind: str) -> None:
    dataset, places, _ = wrapped(opened, kind)
    window = 3
    order = FeatureBatchSampler(dataset, SIZE, shuffle=Shuffle(window=window)).order()
    assert sorted(order.tolist()) == list(range(len(places)))
    chunk = [(of, item // CHUNK) for of, item in (places[item] for item in order)]
    counts = {key: chunk.count(key) for key in chunk}
    place = 0
    while place < len(chunk):
        held = list(dict.fromkeys(chunk[place:]))[:window]
        stop = place + sum(counts[key] for key in held)
        assert set(chunk[place:stop]) == set(held)
        place = stop


def test_reading_ahead_works_through_a_subset_and_is_refused_for_several_stores(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.reading import readahead

    asked = []
    monkeypatch.setattr(readahead, "_will_need", lambda path: asked.append(path.name))
    ahead = Shuffle(window=3, readahead=True)
    part = Subset(opened(0), range(10, 30))
    list(FeatureBatchSampler(part, SIZE, shuffle=ahead))
    assert sorted(asked) == sorted(f"c.{chunk}.0.0" for chunk in range(2, 8))
    joined = FeatureBatchSampler(ConcatDataset([opened(0), opened(1)]), SIZE, shuffle=ahead)
    with pytest.raises(ConfigError, match="readahead=False"):
        list(joined)
    numbers: Any = list(range(9))
    with pytest.raises(ConfigError, match="needs a FeatureDataset, found a list"):
        FeatureBatchSampler(Subset(numbers, [1, 2]), 1, shuffle=Shuffle(window=2))


def test_states_are_of_the_samples_beneath(opened: Opener) -> None:
    part, other = Subset(opened(0), PICKED), Subset(opened(0), [*PICKED[:-1], 1])
    sampler = FeatureBatchSampler(part, SIZE)
    walk = iter(sampler)
    next(walk)
    state = sampler.state_dict()
    with pytest.raises(ConfigError, match="another samples sha256"):
        FeatureBatchSampler(other, SIZE).load_state_dict(state)
    picked: Any = np.array(PICKED)
    again = FeatureBatchSampler(Subset(opened(0), picked), SIZE)
    again.load_state_dict(state)
    assert list(again) == list(walk)
    # Which of a dataset's items a subset has says nothing without the dataset's samples.
    one = FeatureBatchSampler(Subset(Subset(opened(0), range(10)), range(5)), 2).state_dict()
    with pytest.raises(ConfigError, match="another samples sha256"):
        FeatureBatchSampler(Subset(Subset(opened(0), range(5, 15)), range(5)), 2).load_state_dict(
            one
        )


def test_parts_of_a_subset_are_the_subset(opened: Opener) -> None:
    part = Subset(opened(0), PICKED)
    ranks = [list(FeatureBatchSampler(part, SIZE, shard=Shard(rank, 2))) for rank in range(2)]
    assert sorted(item for rank in ranks for batch in rank for item in batch) == list(
        range(len(PICKED))
    )


def test_resident_features_in_a_subset(opened: Opener) -> None:
    held = ResidentFeatures(opened(0, views="all"), "cpu", Residency(draw="random", spare_bytes=0))
    source: Any = held
    part: Subset[dict[str, torch.Tensor]] = Subset(source, PICKED)
    loader = DeviceBatches(part, FeatureBatchSampler(part, SIZE, shuffle=None), "cpu")
    first, second = (torch.cat([b["clip_image"] for b in loader]) for _ in range(2))
    held.set_epoch(1)
    assert torch.equal(second, held.batch(PICKED)["clip_image"])
    assert not torch.equal(first, second)
