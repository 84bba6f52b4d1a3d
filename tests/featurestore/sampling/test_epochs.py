"""The epoch of an iterator: that of a state, that of set_epoch, or the next."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from featurestore import DeviceBatches, FeatureBatchSampler, FeatureDataset, Shuffle
from tests.featurestore.stores import make_store

SAMPLES, SIZE, STEPS = 37, 8, 5
Reference = Callable[..., torch.Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("epochs") / "store"
    make_store(path, samples=SAMPLES, views=8, chunk=4)
    return path


@pytest.fixture
def dataset(store: Path) -> FeatureDataset:
    return FeatureDataset(store, ["clip_image"], views="random", seed=3)


@pytest.fixture
def reference(store: Path) -> Reference:
    """Rows of an epoch, by the dataset's own draw and the order of a sampler never iterated."""
    dataset = FeatureDataset(store, ["clip_image"], views="random", seed=3)

    def rows(epoch: int, start: int = 0, stop: int = STEPS) -> torch.Tensor:
        sampler = FeatureBatchSampler(dataset, SIZE)
        sampler.set_epoch(epoch)
        dataset.set_epoch(epoch)
        order = sampler.order()
        return dataset.batch(order[start * SIZE : stop * SIZE])["clip_image"]

    return rows


def loaders(
    dataset: FeatureDataset, kinds: Sequence[str] = ("plain", "stateful", "device", "workers")
) -> list[tuple[str, Any]]:
    factories: dict[str, Callable[[], Any]] = {
        "plain": lambda: DataLoader(dataset, batch_sampler=FeatureBatchSampler(dataset, SIZE)),
        "stateful": lambda: StatefulDataLoader(
            dataset, batch_sampler=FeatureBatchSampler(dataset, SIZE)
        ),
        "device": lambda: DeviceBatches(dataset, FeatureBatchSampler(dataset, SIZE), "cpu"),
        "producers": lambda: DataLoader(
            dataset, batch_sampler=FeatureBatchSampler(dataset, SIZE), num_workers=1
        ),
    }
    return [(kind, factories[kind]()) for kind in kinds]


def read(batches: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([batch["clip_image"] for batch in batches])


# Iterating the sampler itself -------------------------------------------------------------------


def epochs_of(*walks: Iterable[list[int]]) -> list[int]:
    """The epoch of each list of batches, recognized by its order."""
    orders = []
    for epoch in range(12):
        sampler = FeatureBatchSampler(range(SAMPLES), SIZE)
        sampler.set_epoch(epoch)
        orders.append(sampler.order().tolist())
    epochs = []
    for walk in walks:
        items = [item for batch in walk for item in batch]
        matches = [e for e, order in enumerate(orders) if order[: len(items)] == items]
        assert len(matches) == 1, items
        epochs += matches
    return epochs


def test_an_iterator_takes_the_next_epoch_however_the_last_one_was_left(
    dataset: FeatureDataset,
) -> None:
    sampler = FeatureBatchSampler(dataset, SIZE)
    whole = list(sampler)
    assert (sampler.epoch, dataset.epoch) == (1, 0)  # workers may still be reading for epoch 0
    counted = [batch for batch, _ in zip(sampler, range(STEPS), strict=False)]
    it = iter(sampler)
    exactly = [next(it) for _ in range(STEPS)]  # a sixth batch is never requested
    sliced = list(itertools.islice(sampler, 2))
    broken = []
    for batch in sampler:
        broken.append(batch)
        break
    assert epochs_of(whole, counted, exactly, sliced, broken) == [0, 1, 2, 3, 4]
    assert dataset.epoch == 4
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batch"]) == (4, 1)


def test_iterators_that_never_start_change_nothing(dataset: FeatureDataset) -> None:
    sampler = FeatureBatchSampler(dataset, SIZE)
    first, second, third = iter(sampler), iter(sampler), iter(sampler)
    iter(sampler)
    assert epochs_of(list(third), list(first), list(second)) == [0, 1, 2]


def test_set_epoch_chooses_the_next_iterators_epoch_and_no_later_one(
    dataset: FeatureDataset,
) -> None:
    sampler = FeatureBatchSampler(dataset, SIZE)
    list(sampler)
    sampler.set_epoch(7)
    assert (sampler.epoch, dataset.epoch) == (7, 7)
    assert epochs_of(list(sampler), list(sampler)) == [7, 8]
    sampler.set_epoch(2)
    for _ in range(3):  # the same epoch each time
        walk = itertools.islice(sampler, 2)
        assert epochs_of(list(walk)) == [2]
        sampler.set_epoch(2)
    early = iter(sampler)  # Lightning creates the iterator, then sets the epoch
    sampler.set_epoch(5)
    assert epochs_of(list(early), list(sampler)) == [5, 6]


def test_set_epoch_in_an_epoch_that_has_started(dataset: FeatureDataset) -> None:
    """Workers have read ahead when Lightning sets the epoch that they are reading."""
    sampler = FeatureBatchSampler(dataset, SIZE)
    walk = iter(sampler)
    head = [next(walk), next(walk)]
    sampler.set_epoch(0)
    assert sampler.state_dict()["batch"] == 2
    assert epochs_of(head + list(walk)) == [0]
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batch"]) == (1, 0)
    resumed = FeatureBatchSampler(dataset, SIZE)
    resumed.load_state_dict(sampler.state_dict())
    assert epochs_of(list(resumed), list(sampler)) == [1, 0]


def test_a_loaded_state_is_continued_once(dataset: FeatureDataset) -> None:
    sampler = FeatureBatchSampler(dataset, SIZE)
    whole = list(sampler)
    state = sampler.state_dict() | {"epoch": 0, "batch": 3}
    sampler.load_state_dict(state)
    iter(sampler)
    assert list(sampler) == whole[3:]
    assert epochs_of(list(sampler)) == [1]
    sampler.load_state_dict(state)
    sampler.set_epoch(0)  # as Lightning does for the epoch that it resumes
    walk = iter(sampler)
    sampler.set_epoch(0)
    assert list(walk) == whole[3:]
    sampler.load_state_dict(state)
    assert list(itertools.islice(sampler, 1)) == whole[3:4]
    assert epochs_of(list(sampler)) == [1]
    sampler.load_state_dict(state)
    sampler.set_epoch(4)
    assert epochs_of(list(sampler)) == [4]
    sampler.load_state_dict(state | {"batch": STEPS})  # nothing of the epoch remains
    assert list(sampler) == []
    assert epochs_of(list(sampler)) == [1]


def test_the_state_is_of_the_iterator_used_last(dataset: FeatureDataset) -> None:
    sampler = FeatureBatchSampler(dataset, SIZE)
    first, second = iter(sampler), iter(sampler)
    next(first), next(second), next(second), next(first)
    assert [sampler.state_dict()[name] for name in ("epoch", "batch")] == [0, 2]
    next(second)
    resumed = FeatureBatchSampler(dataset, SIZE)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == list(second)


# Loaders, with the rows that they give ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "stateful", "device", "producers"])
def test_each_way_to_leave_an_epoch_gives_other_rows_next(
    dataset: FeatureDataset, reference: Reference, kind: str
) -> None:
    [(_, loader)] = loaders(dataset, [kind])
    for epoch in range(2):
        it = iter(loader)
        rows = read([next(it) for _ in range(len(loader))])  # no further batch is requested
        assert torch.equal(rows, reference(epoch))
    assert torch.equal(read(itertools.islice(loader, 2)), reference(2, stop=2))
    for batch in loader:
        assert torch.equal(batch["clip_image"], reference(3, stop=1))
        break
    assert torch.equal(read(loader), reference(4))


@pytest.mark.parametrize("first", ["plain", "device"])
@pytest.mark.parametrize("second", ["plain", "stateful", "device"])
def test_two_loaders_of_a_zip_advance_together(
    store: Path, reference: Reference, first: str, second: str
) -> None:
    sides = [FeatureDataset(store, ["clip_image"], views="random", seed=3) for _ in range(2)]
    [(_, left)], [(_, right)] = loaders(sides[0], [first]), loaders(sides[1], [second])
    for epoch in range(3):
        pairs = list(zip(left, right, strict=False))
        assert len(pairs) == STEPS
        for side in zip(*pairs, strict=True):
            assert torch.equal(read(side), reference(epoch))


def test_two_iterators_at_different_epochs_each_have_their_views(
    dataset: FeatureDataset, reference: Reference
) -> None:
    for kind, loader in loaders(dataset, ["plain", "device"]):
        pairs = list(zip(loader, loader, strict=True))
        left, right = zip(*pairs, strict=True)
        assert torch.equal(read(left), reference(0)), kind
        assert torch.equal(read(right), reference(1)), kind
        dataset.set_epoch(0)


@pytest.mark.parametrize("step", [0, 2, STEPS])
@pytest.mark.parametrize("kind", ["plain", "stateful", "device"])
def test_a_resumed_run_reads_what_the_first_would_have(
    dataset: FeatureDataset, store: Path, reference: Reference, kind: str, step: int
) -> None:
    """After epochs that were left in the middle."""
    [(_, loader)] = loaders(dataset, [kind])
    read(itertools.islice(loader, 3))
    it = iter(loader)
    for _ in range(step):
        next(it)
    state = (loader.batch_sampler if kind == "plain" else loader).state_dict()
    fresh = FeatureDataset(store, ["clip_image"], views="random", seed=3)
    [(_, resumed)] = loaders(fresh, [kind])
    (resumed.batch_sampler if kind == "plain" else resumed).load_state_dict(state)
    tail = list(resumed)
    assert len(tail) == STEPS - step
    if tail:
        assert torch.equal(read(tail), reference(1, start=step))
    assert torch.equal(read(resumed), reference(2))


def test_windows_advance_too(dataset: FeatureDataset) -> None:
    sampler = FeatureBatchSampler(dataset, SIZE, shuffle=Shuffle(seed=1, window=2))
    left = [list(itertools.islice(sampler, STEPS - 1)) for _ in range(3)]
    assert left[0] != left[1] != left[2]
