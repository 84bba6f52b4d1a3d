"""Batches: every item once, the same on every rank, and the same again after a resume."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from featurestore import FeatureBatchSampler, FeatureDataset, Shard, Shuffle
from featurestore.errors import ConfigError
from featurestore.sampling import ordering
from tests.featurestore.stores import make_store

SAMPLES, CHUNK = 101, 4
SHUFFLES = [None, Shuffle(seed=1), Shuffle(seed=1, window=3), Shuffle(1, 3, readahead=True)]

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samplers") / "store"
    make_store(path, samples=SAMPLES, views=4, chunk=CHUNK)
    return path


@pytest.fixture
def dataset(store: Path) -> FeatureDataset:
    return FeatureDataset(store, ["clip_image"], views="random", seed=3)


T = TypeVar("T")


class Items:
    """A dataset with only a length, which is enough for most samplers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def flat(batches: Iterable[Iterable[T]]) -> list[T]:
    return [item for batch in batches for item in batch]


# Random orders ----------------------------------------------------------------------------------


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10 as in its paper: four 64-bit numbers."""
    low, (x, y) = 2**64 - 1, key
    a, b, c, d = counter
    for _ in range(10):
        first, third = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (third >> 64) ^ b ^ x, third & low, (first >> 64) ^ d ^ y, first & low
        x, y = (x + 0x9E3779B97F4A7C15) & low, (y + 0xBB67AE8584CAA73B) & low
    return [a, b, c, d]


@pytest.mark.parametrize(("number", "purpose"), [(0, "items"), (3, "other views")])
def test_draws_are_philox_and_never_change(number: int, purpose: ordering.Purpose) -> None:
    # NumPy counts up before it draws, so the first block is number 1.
    wanted = [n for block in (1, 2, 3) for n in philox((2**64 - 5, 7), (block, 0, 0, number))]
    assert ordering.draws(-5, 7, purpose, 12).tolist() == wanted
    keys = [n for block in (1, 2, 3) for n in philox((5, 7), (block, 0, 0, 0))]
    assert ordering.permutation(12, 5, 7).tolist() == sorted(range(12), key=keys.__getitem__)


def test_draws_differ_by_seed_epoch_and_purpose_and_a_longer_one_begins_with_a_shorter() -> None:
    drawn = [
        ordering.draws(seed, epoch, purpose, 8).tobytes()
        for seed in (0, 1, -1, 2**63)
        for epoch in (0, 1)
        for purpose in ("items", "chunks", "views", "other views")
    ]
    assert len(set(drawn)) == len(drawn)
    assert np.array_equal(ordering.draws(5, 2, "items", 100)[:7], ordering.draws(5, 2, "items", 7))


def test_every_order_is_equally_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for epoch in range(3000):
        key = tuple(ordering.permutation(4, 0, epoch).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 24
    expected = 3000 / 24
    chi_square = sum((n - expected) ** 2 / expected for n in seen.values())
    assert chi_square < 49.7  # 23 degrees of freedom, one in a thousand


def test_a_window_reads_its_chunks_alone_and_mixes_them(dataset: FeatureDataset) -> None:
    window = 5
    sampler = FeatureBatchSampler(dataset, 7, shuffle=Shuffle(seed=2, window=window))
    order = sampler.order()
    chunk = dataset.indices[order] // CHUNK
    sizes = np.bincount(dataset.indices // CHUNK)
    place, windows = 0, []
    while place < len(order):
        held = list(dict.fromkeys(chunk[place:]))[:window]
        stop = place + int(sizes[held].sum())
        assert set(chunk[place:stop]) == set(held)  # nothing else until they are done
        windows.append(chunk[place:stop])
        place = stop
    assert len(windows) == 6
    changes = [np.count_nonzero(np.diff(w)) / len(w) for w in windows[:-1]]
    assert min(changes) > 0.5  # grouped by chunk it would be 0.2
    sampler.set_epoch(1)
    assert not np.array_equal(sampler.order(), order)


# Shards -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    count=st.integers(1, 200),
    ranks=st.integers(1, 6),
    size=st.integers(1, 60),
    even=st.sampled_from(["keep", "pad", "drop"]),
    shuffled=st.booleans(),
    drop_last=st.booleans(),
)
def test_ranks_share_an_epoch(
    count: int, ranks: int, size: int, even: str, shuffled: bool, drop_last: bool
) -> None:
    try:
        samplers = [
            FeatureBatchSampler(
                Items(count),
                size,
                shuffle=Shuffle() if shuffled else None,
                shard=Shard(rank, ranks, even),
                drop_last=drop_last,
            )
            for rank in range(ranks)
        ]
    except ConfigError:
        least = count // ranks if even != "pad" else -(-count // ranks)
        most = -(-count // ranks) if even != "drop" else count // ranks
        assert least == 0 or (drop_last and least < size) or (size == 1 and most > least)
        return
    epochs = [list(sampler) for sampler in samplers]
    assert len({len(sampler) for sampler in samplers}) == 1
    for sampler, epoch in zip(samplers, epochs, strict=True):
        assert [len(batch) for batch in epoch] == [sampler.size(k) for k in range(len(sampler))]
        assert all(0 < len(batch) <= size for batch in epoch)
        assert sampler.items == len(flat(epoch))
        if drop_last:
            assert all(len(batch) == size for batch in epoch)
    seen = sorted(flat(flat(epochs)))
    if drop_last:
        assert even == "pad" or len(set(seen)) == len(seen)
    elif even == "keep":
        assert seen == list(range(count))
    elif even == "pad":
        assert set(seen) == set(range(count))
        assert len(seen) == -(-count // ranks) * ranks
    else:
        assert len(set(seen)) == len(seen) == count // ranks * ranks
    for step in range(len(samplers[0])):
        weighted = sum(s.weight(step) * 1.0 for s in samplers)
        assert weighted == pytest.approx(ranks)
        whole = sum(len(epoch[step]) for epoch in epochs)
        for sampler, epoch in zip(samplers, epochs, strict=True):
            assert sampler.weight(step) == pytest.approx(len(epoch[step]) * ranks / whole)


def test_a_rank_with_one_item_less_has_as_many_batches() -> None:
    sizes = []
    for rank in range(2):
        sampler = FeatureBatchSampler(Items(23), 11, shard=Shard(rank, 2))
        sizes.append([len(batch) for batch in sampler])
    assert sizes == [[11, 1], [10, 1]]


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_windows_are_shared_without_loss_and_near_the_disk(
    dataset: FeatureDataset, shuffle: Shuffle | None
) -> None:
    epochs = []
    for rank in range(3):
        sampler = FeatureBatchSampler(dataset, 8, shuffle=shuffle, shard=Shard(rank, 3))
        epochs.append(flat(sampler))
    assert sorted(flat(epochs)) == list(range(SAMPLES))
    if shuffle is not None and shuffle.window:
        chunks = [set(dataset.indices[epoch] // CHUNK) for epoch in epochs]
        assert all(len(c) <= 26 // 3 + 2 for c in chunks)  # of 26; the rest belongs to other ranks


@pytest.mark.parametrize("arguments", [(2, 2), (-1, 2), (0, 0), (0, 1, "some")])
def test_invalid_shards_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        Shard(*arguments)


def test_impossible_settings_are_refused_with_advice(dataset: FeatureDataset) -> None:
    wrong: list[dict[str, Any]] = [{"batch_size": 0}, {"batch_size": 30, "drop_last": True}]
    for keywords in wrong:
        with pytest.raises(ConfigError):
            FeatureBatchSampler(Items(20), **keywords)
    with pytest.raises(ConfigError, match="even='pad'"):
        FeatureBatchSampler(Items(3), 1, shard=Shard(0, 2))
    with pytest.raises(ConfigError, match="needs a FeatureDataset, found a Items"):
        FeatureBatchSampler(Items(20), 2, shuffle=Shuffle(window=2))
    with pytest.raises(ConfigError, match="1 chunk or more"):
        Shuffle(window=0)
    with pytest.raises(ConfigError, match="needs a window"):
        Shuffle(readahead=True)
    sampler = FeatureBatchSampler(dataset, 10)
    for step in (-1, len(sampler)):
        with pytest.raises(IndexError):
            sampler.size(step)


# Epochs; more of them in test_epochs.py ---------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_loader_reads_an_epoch(dataset: FeatureDataset, workers: int) -> None:
    sampler = FeatureBatchSampler(dataset, 10, shuffle=Shuffle(window=4))
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == 11
    rows = torch.cat([batch["clip_image"] for batch in loader])
    actual = flat(FeatureBatchSampler(dataset, 10, shuffle=Shuffle(window=4)))
    dataset.set_epoch(0)
    assert torch.equal(rows, dataset.batch(actual)["clip_image"])


# Resuming in an epoch ---------------------------------------------------------------------------


def make_loader(
    store: Path, workers: int, shuffle: Shuffle | None = SHUFFLES[2]
) -> StatefulDataLoader:
    dataset = FeatureDataset(store, ["clip_image"], views="random", seed=3)
    sampler = FeatureBatchSampler(dataset, 17, shuffle=shuffle, shard=Shard(1, 2))
    return StatefulDataLoader(dataset, batch_sampler=sampler, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes_after_every_step(store: Path, workers: int) -> None:
    """The rest of the second epoch and the third, random views included."""
    loader = make_loader(store, workers)
    for _ in loader:
        pass
    states, rows = [loader.state_dict()], []
    for batch in loader:
        states.append(loader.state_dict())
        rows.append(batch)
    states.append(loader.state_dict())
    following = list(loader)
    assert len(rows) == 3
    for step, state in enumerate(states):
        if workers and step not in (1, len(states) - 1):
            continue  # each loader starts its workers again
        wanted = rows[step:] if step <= len(rows) else following
        resumed = make_loader(store, workers)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        tail = list(resumed)
        assert len(tail) == len(wanted)
        for actual, row in zip(tail, wanted, strict=True):
            assert torch.equal(actual["index"], row["index"])
            assert torch.equal(actual["clip_image"], row["clip_image"])


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_sampler_alone_resumes_after_every_step(
    dataset: FeatureDataset, shuffle: Shuffle | None
) -> None:
    sampler = FeatureBatchSampler(dataset, 10, shuffle=shuffle)
    states, batches = [sampler.state_dict()], []
    for batch in sampler:
        states.append(sampler.state_dict())
        batches.append(batch)
    for step, state in enumerate(states):
        resumed = FeatureBatchSampler(dataset, 10, shuffle=shuffle)
        resumed.load_state_dict(state)
        iter(resumed)  # loaders create one that they never start
        assert list(resumed) == batches[step:]
        assert resumed.epoch == 1


def test_the_state_of_one_rank_is_enough_for_all(dataset: FeatureDataset) -> None:
    ranks = [FeatureBatchSampler(dataset, 10, shard=Shard(rank, 2)) for rank in range(2)]
    walks = [iter(rank) for rank in ranks]
    for walk in walks:
        next(walk)
    state = ranks[0].state_dict()
    resumed = FeatureBatchSampler(dataset, 10, shard=Shard(1, 2))
    resumed.load_state_dict(state)
    assert list(resumed) == list(walks[1])


def test_setting_the_epoch_that_was_loaded_keeps_the_place(dataset: FeatureDataset) -> None:
    sampler = FeatureBatchSampler(dataset, 10)
    whole = list(sampler)
    sampler.load_state_dict(sampler.state_dict() | {"epoch": 0, "batch": 4})
    sampler.set_epoch(0)
    assert list(sampler) == whole[4:]
    sampler.load_state_dict(sampler.state_dict() | {"epoch": 0, "batch": 4})
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(whole)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("seed", {"shuffle": Shuffle(seed=9, window=3)}),
        ("window", {"shuffle": Shuffle(seed=1, window=4)}),
        ("seed", {"shuffle": None}),
        ("world size", {"shard": Shard(0, 3)}),
        ("even", {"shard": Shard(0, 2, "pad")}),
        ("batch size", {"batch_size": 11}),
        ("drop last", {"drop_last": True}),
    ],
)
def test_a_state_of_something_else_is_refused(
    dataset: FeatureDataset, field: str, changes: dict[str, Any]
) -> None:
    same: dict[str, Any] = {
        "batch_size": 10,
        "shuffle": Shuffle(1, 3),
        "shard": Shard(0, 2),
        "drop_last": False,
    }
    state = FeatureBatchSampler(dataset, **same).state_dict()
    with pytest.raises(ConfigError, match=f"another {field}") as error:
        FeatureBatchSampler(dataset, **same | changes).load_state_dict(state)
    assert "stored" in str(error.value)
    FeatureBatchSampler(dataset, **same).load_state_dict(state)


def test_a_state_of_other_samples_is_refused(
    dataset: FeatureDataset, store: Path, tmp_path: Path
) -> None:
    state = FeatureBatchSampler(dataset, 10).state_dict()
    stems = dataset.stems
    split = {"train": stems[:50], "dev": stems[50:51], "test": stems[51:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    parts = [
        FeatureDataset(store, split=part, split_json=tmp_path / "split.json")
        for part in ("train", "test")
    ]
    assert [len(part) for part in parts] == [50, 50]
    with pytest.raises(ConfigError, match="another dataset length"):
        FeatureBatchSampler(parts[0], 10).load_state_dict(state)
    state = FeatureBatchSampler(parts[0], 10).state_dict()
    with pytest.raises(ConfigError, match="another samples sha256"):
        FeatureBatchSampler(parts[1], 10).load_state_dict(state)


@pytest.mark.parametrize("damage", [{"batch": 12}, {"batch": -1}, {"epoch": "1"}, {"version": 2}])
def test_an_invalid_state_is_refused(dataset: FeatureDataset, damage: dict[str, Any]) -> None:
    sampler = FeatureBatchSampler(dataset, 10)
    with pytest.raises(ConfigError):
        sampler.load_state_dict(sampler.state_dict() | damage)
    with pytest.raises(ConfigError):
        sampler.load_state_dict({})


# Reading ahead ----------------------------------------------------------------------------------


def test_chunks_are_requested_before_their_window_and_once(
    dataset: FeatureDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.reading import readahead

    asked = []
    monkeypatch.setattr(readahead, "_will_need", lambda path: asked.append(path))
    sampler = FeatureBatchSampler(dataset, 10, shuffle=Shuffle(window=3, readahead=True))
    for batch in sampler:
        files = {path.name for path in asked}
        for chunk in dataset.indices[batch] // CHUNK:
            assert f"c.{chunk}.0.0" in files
        read = 10 * sampler.state_dict()["batch"]
        assert len(files) <= read // CHUNK + 2 * 3  # this window and the next
    assert len(asked) == len(set(asked)) == dataset.store.spec.chunks
    assert all(path.is_file() for path in asked)
    asked.clear()
    sampler.load_state_dict(sampler.state_dict() | {"epoch": 0, "batch": 10})
    list(sampler)
    assert 0 < len(asked) < 8  # chunks that are done are skipped


def test_shuffle_is_no_boolean(dataset: FeatureDataset) -> None:
    wrong: Any
    for wrong in (True, False, 3):
        with pytest.raises(ConfigError, match="shuffle is a Shuffle or None"):
            FeatureBatchSampler(dataset, 4, shuffle=wrong)
    seed: Any = np.int64(3)
    numpys = FeatureBatchSampler(dataset, 4, shuffle=Shuffle(seed=seed))
    assert list(numpys) == list(FeatureBatchSampler(dataset, 4, shuffle=Shuffle(seed=3)))
