"""A batch sampler that is recreated from a sampler and two settings, as by Lightning."""

import json
import pickle
from typing import Any

import pytest
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from featurestore import FeatureBatchSampler, FeatureDataset, Shard, Shuffle
from featurestore.errors import ConfigError
from tests.featurestore.stores import make_store

SAMPLES = 47
SETTINGS = [
    {},
    {"shuffle": None},
    {"shuffle": Shuffle(seed=3), "drop_last": True},
    {"shuffle": Shuffle(seed=4, window=2)},
    {"shuffle": Shuffle(seed=4, window=2, readahead=True), "shard": Shard(even="pad")},
    {"shard": Shard(even="drop"), "drop_last": True},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> FeatureDataset:
    path = tmp_path_factory.mktemp("recreation") / "store"
    make_store(path, samples=SAMPLES, views=4, chunk=4)
    return FeatureDataset(path, ["clip_image"], views="random")


def again(sampler: FeatureBatchSampler, asked: Any) -> FeatureBatchSampler:
    return type(sampler)(asked, batch_size=sampler.batch_size, drop_last=sampler.drop_last)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("rank", [0, 1])
def test_every_setting_survives(
    dataset: FeatureDataset, settings: dict[str, Any], rank: int
) -> None:
    first = FeatureBatchSampler(dataset, 5, **settings)
    second = again(first, DistributedSampler(dataset, 2, rank, shuffle=False, seed=9))
    even = settings.get("shard", Shard()).even
    wanted = FeatureBatchSampler(dataset, 5, **settings | {"shard": Shard(rank, 2, even)})
    assert len(second) == len(wanted)
    assert second.state_dict() == wanted.state_dict()
    for _ in range(2):
        assert list(second) == list(wanted)
    assert second.shuffle is first.shuffle
    third = again(second, DistributedSampler(dataset, 2, rank))  # for the same part, once more
    third.set_epoch(1)
    wanted.set_epoch(1)
    assert list(third) == list(wanted)
    alone = again(first, first.sampler)
    assert alone.state_dict() == first.state_dict()
    assert list(alone) == list(first)


@pytest.mark.parametrize("settings", SETTINGS)
def test_predictions_come_in_order(dataset: FeatureDataset, settings: dict[str, Any]) -> None:
    first = FeatureBatchSampler(dataset, 5, **settings)
    sampler = type(first)(SequentialSampler(dataset), batch_size=first.batch_size, drop_last=False)
    assert [item for batch in sampler for item in batch] == list(range(SAMPLES))


def test_the_position_is_copied(dataset: FeatureDataset) -> None:
    first = FeatureBatchSampler(dataset, 5)
    list(first)
    next(iter(first))
    state = json.loads(json.dumps(first.state_dict()))
    loaded = FeatureBatchSampler(dataset, 5)
    loaded.load_state_dict(state)
    rest = list(again(loaded, loaded))
    assert rest == list(loaded)
    assert len(rest) == 9
    loaded.load_state_dict(state)
    with pytest.raises(ConfigError, match="one of 1 shards, but one of 2"):
        again(loaded, DistributedSampler(dataset, 2, 0))
    part = FeatureBatchSampler(dataset, 5, shard=Shard(1, 2))
    walk = iter(part)
    next(walk)
    resumed = FeatureBatchSampler(dataset, 5, shard=Shard(1, 2))
    resumed.load_state_dict(part.state_dict())
    assert list(again(resumed, DistributedSampler(dataset, 2, 1))) == list(walk)


def test_what_cannot_survive_is_an_error(dataset: FeatureDataset) -> None:
    asked: Any
    for asked in (DistributedSampler(dataset, 2, 0), RandomSampler(dataset)):
        with pytest.raises(ConfigError, match="use_distributed_sampler=False"):
            FeatureBatchSampler(asked, batch_size=5, drop_last=False)
    part = FeatureBatchSampler(dataset, 5, shard=Shard(0, 2))
    for asked in (DistributedSampler(dataset, 2, 1), DistributedSampler(dataset, 4, 0)):
        with pytest.raises(ConfigError, match="reads shard 0 of 2, but shard"):
            again(part, asked)


def test_a_batch_size_is_a_number_everywhere_else(dataset: FeatureDataset) -> None:
    sampler = FeatureBatchSampler(dataset, 5)
    size = sampler.batch_size
    assert size == 5
    assert type(pickle.loads(pickle.dumps(size))) is int
    assert json.dumps({"size": size, "state": sampler.state_dict()["batch_size"]})
    other = FeatureBatchSampler(range(9), size, shuffle=None)  # of another dataset: a plain number
    assert list(other) == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)  # for processes by spawn
