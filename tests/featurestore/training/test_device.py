"""Batches on a device: in step with the sampler, and resident ones equal to what the store gives.

CUDA itself is not used here. The lane's use of buffers, streams and events is tested with a fake
torch.cuda that keeps the order of its commands, and copies late, as a GPU may.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore import (
    DeviceBatches,
    FeatureBatchSampler,
    FeatureDataset,
    Residency,
    ResidentFeatures,
    Shuffle,
)
from featurestore.errors import ConfigError
from featurestore.imdb.labels import write_labels
from featurestore.training import device, resident
from tests.featurestore.stores import make_store

SAMPLES, VIEWS = 37, 4
Opener = Callable[..., FeatureDataset]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("device")
    make_store(root / "store", samples=SAMPLES, views=VIEWS, chunk=8)
    stems = [f"{i:07d}" for i in range(SAMPLES)]
    genres = ["Drama", "Comedy", "Horror"]
    write_labels(stems, [{"genres": [genres[i % 3]]} for i in range(SAMPLES)], root / "labels")
    return root


@pytest.fixture
def open_dataset(folders: Path) -> Opener:
    def opened(views: int | str = "clean", **keywords: Any) -> FeatureDataset:
        return FeatureDataset(
            folders / "store", views=views, labels_dir=folders / "labels", **keywords
        )

    return opened


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# Batches ----------------------------------------------------------------------------------------


def test_batches_are_the_samplers(open_dataset: Opener) -> None:
    dataset = open_dataset("random")
    loader = DeviceBatches(dataset, FeatureBatchSampler(dataset, 8), "cpu")
    for epoch in range(2):
        wanted = list(FeatureBatchSampler(range(SAMPLES), 8))
        if epoch:
            sampler = FeatureBatchSampler(range(SAMPLES), 8)
            sampler.set_epoch(1)
            wanted = list(sampler)
        actual = list(loader)
        assert len(actual) == len(loader) == 5
        reference = open_dataset("random")
        reference.set_epoch(epoch)
        for batch, items in zip(actual, wanted, strict=True):
            assert equal(batch, reference.batch(items))


def test_it_resumes_after_the_batch_in_use_and_not_the_one_ahead(open_dataset: Opener) -> None:
    def new_loader() -> DeviceBatches:
        dataset = open_dataset("random")
        return DeviceBatches(dataset, FeatureBatchSampler(dataset, 8, shuffle=Shuffle(4)), "cpu")

    loader = new_loader()
    list(loader)
    states, batches = [loader.state_dict()], []
    for batch in loader:
        states.append(loader.state_dict())
        batches.append(batch)
    for step, state in enumerate(states):
        resumed = new_loader()
        resumed.load_state_dict(state)
        tail = list(resumed)
        assert len(tail) == len(batches) - step
        for actual, wanted in zip(tail, batches[step:], strict=True):
            assert equal(actual, wanted)
    assert loader.state_dict()["epoch"] == 2
    loader.set_epoch(1)
    assert equal(next(iter(loader)), batches[0])
    with pytest.raises(ConfigError):
        new_loader().load_state_dict(states[0] | {"seed": 5})


@pytest.mark.parametrize("name", ["cuda:99", "meta", "gpu", "cpu0"])
def test_devices_that_are_not_there(open_dataset: Opener, name: str) -> None:
    dataset = open_dataset()
    with pytest.raises(ConfigError):
        DeviceBatches(dataset, FeatureBatchSampler(dataset, 8), name)
    with pytest.raises(ConfigError):
        ResidentFeatures(dataset, name)


class FakeGpu:
    """A fake GPU that does a stream's work only when the host waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.queue: list[Callable[[], object]] = []
        self.current = "compute"
        fake = types.SimpleNamespace(
            Stream=lambda _: "copier",
            Event=lambda **_: Event(self),
            stream=self.on,
            current_stream=lambda _: self,
        )
        monkeypatch.setattr(device, "torch", types.SimpleNamespace(cuda=fake, empty=self.empty))

    def on(self, stream: str) -> AbstractContextManager[None]:
        gpu = self

        class On:
            def __enter__(self) -> None:
                gpu.current = stream

            def __exit__(self, *_: object) -> None:
                gpu.current = "compute"

        return On()

    def empty(self, count: int, dtype: torch.dtype, pin_memory: bool) -> HostBuffer:
        assert pin_memory
        self.log.append("buffer")
        return HostBuffer(torch.empty(count, dtype=dtype), self)

    def wait_event(self, event: Event) -> None:
        self.log.append("compute waits")
        event.done()

    def run(self, until: int) -> None:
        for work in self.queue[:until]:
            work()
        self.queue[:until] = [lambda: None] * until


class Event:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.place: int | None = None

    def record(self, stream: object) -> None:
        assert stream in ("copier", self.gpu)
        self.place = len(self.gpu.queue)

    def done(self) -> None:
        assert self.place is not None
        self.gpu.run(self.place)

    def synchronize(self) -> None:
        self.gpu.log.append("host waits")
        self.done()


class HostBuffer:
    """A page-locked tensor whose copies to the device happen late."""

    def __init__(self, rows: torch.Tensor, gpu: FakeGpu) -> None:
        self.rows, self.gpu, self.dtype = rows, gpu, rows.dtype

    def numel(self) -> int:
        return self.rows.numel()

    def __getitem__(self, part: slice) -> HostBuffer:
        return HostBuffer(self.rows[part], self.gpu)

    def view(self, shape: torch.Size) -> HostBuffer:
        return HostBuffer(self.rows.view(shape), self.gpu)

    def copy_(self, rows: torch.Tensor) -> HostBuffer:
        self.rows.copy_(rows)
        return self

    def to(self, _: object, non_blocking: bool) -> OnDevice:
        assert non_blocking
        assert self.gpu.current == "copier"
        sent = OnDevice(torch.full_like(self.rows, -1))
        self.gpu.queue.append(lambda: sent.rows.copy_(self.rows))
        return sent


class OnDevice:
    device: Any = "cuda:0"

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows, self.recorded = rows, False

    def record_stream(self, _: object) -> None:
        self.recorded = True


def test_a_buffer_is_filled_again_only_after_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the late copy would carry another batch's rows, or none."""
    gpu = FakeGpu(monkeypatch)
    lane: Any = device._Lane(OnDevice.device)
    batches = [{"x": torch.full((size, 3), float(size))} for size in (4, 4, 4, 6, 2, 4)]
    sent = [lane.send(batch) for batch in batches[:2]]  # one in use, one ahead
    assert gpu.log == ["buffer", "buffer"]
    for number, batch in enumerate(batches):
        ready = lane.ready(sent[number])["x"]
        assert torch.equal(ready.rows, batch["x"])
        assert ready.recorded
        if number + 2 < len(batches):
            sent.append(lane.send(batches[number + 2]))
            assert "host waits" in gpu.log[-2:]
    assert gpu.log.count("buffer") == 3  # the larger batch took a larger one, once


def test_batches_that_were_never_waited_for_still_arrive_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeGpu(monkeypatch)
    lane: Any = device._Lane(OnDevice.device)
    batches = [{"x": torch.full((4,), float(n)), "y": torch.tensor([n])} for n in range(7)]
    sent = [lane.send(batch) for batch in batches]
    for batch, sending in zip(batches, sent, strict=True):
        ready = lane.ready(sending)
        assert torch.equal(ready["x"].rows, batch["x"])
        assert torch.equal(ready["y"].rows, batch["y"])


def test_what_is_on_the_device_already_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    lane: Any = device._Lane(OnDevice.device)
    rows = OnDevice(torch.zeros(3))
    gpu.queue.append(lambda: rows.rows.fill_(7))  # the gather, on another stream perhaps
    batch = {"x": rows}
    assert lane.ready(lane.send(batch)) is batch
    assert gpu.log == ["compute waits"]
    assert rows.recorded
    assert (rows.rows == 7).all()


def test_what_is_read_in_inference_mode_can_be_trained_from(open_dataset: Opener) -> None:
    """The batch that was read ahead is used when the mode is over."""
    dataset = open_dataset("random")
    walk = iter(DeviceBatches(dataset, FeatureBatchSampler(dataset, 8), "cpu"))
    with torch.inference_mode():
        first = next(walk)
    for batch in (first, next(walk)):
        rows = batch["clip_image"]
        assert not rows.is_inference()
        weight = torch.ones(rows.shape[1], requires_grad=True)
        (rows @ weight).sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(weight.grad, rows.sum(0))


def test_the_epoch_reaches_the_source_if_the_sampler_has_another_dataset(
    open_dataset: Opener,
) -> None:
    source, other = open_dataset("random"), open_dataset("random")
    loader = DeviceBatches(source, FeatureBatchSampler(other, 8), "cpu")
    reference = open_dataset("random")
    for epoch in range(3):
        reference.set_epoch(epoch)
        for batch in loader:
            # The rows belong to the samples that the index names.
            assert equal(batch, reference.batch(batch["index"].numpy()))
    loader.set_epoch(7)
    assert source.epoch == other.epoch == 7


# Resident ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", ["clean", 3, "mean", "all"])
def test_resident_features_are_the_datasets(
    open_dataset: Opener, views: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_BLOCK_BYTES", 40_000)  # several blocks
    dataset = open_dataset(views)
    held = ResidentFeatures(dataset, "cpu")
    assert len(held) == len(dataset)
    assert held.nbytes == sum(t.nbytes for t in dataset.batch(range(len(dataset))).values())
    for items in ([5], [36, 0, 5, 5], list(range(SAMPLES)), [-1, 2]):
        assert equal(held.batch(items), dataset.batch(items))
        assert equal(held.batch(torch.tensor(items)), dataset.batch(items))
    for items in ([SAMPLES], [0, -SAMPLES - 1]):
        with pytest.raises(IndexError):
            held.batch(items)


def test_some_views_in_another_dtype(open_dataset: Opener) -> None:
    dataset = open_dataset("all")
    held = ResidentFeatures(dataset, "cpu", Residency(views=[3, 1], dtype=torch.bfloat16))
    wanted = dataset.batch([7, 2])
    batch = held.batch([7, 2])
    for name in dataset.features:
        assert torch.equal(batch[name], wanted[name][:, [3, 1]].bfloat16())
    assert torch.equal(batch["labels"], wanted["labels"])
    bytes_of_features = SAMPLES * 2 * 192 * 2
    assert held.nbytes == bytes_of_features + SAMPLES * (8 + 23 * 4)


def test_what_is_kept_twice_or_read_ahead_is_refused(open_dataset: Opener) -> None:
    dataset = open_dataset("all")
    for keep in (Residency([3, 3], draw="pair"), Residency([1], draw="pair"), Residency([2, 2])):
        with pytest.raises(ConfigError, match="views are different ones"):
            ResidentFeatures(dataset, "cpu", keep)
    held = ResidentFeatures(dataset, "cpu")
    batches = FeatureBatchSampler(held, 4, shuffle=Shuffle(window=2, readahead=True))
    with pytest.raises(ConfigError, match="ResidentFeatures reads no chunks"):
        list(batches)


def views_of(
    dataset: FeatureDataset, batch: dict[str, torch.Tensor], items: list[int]
) -> torch.Tensor:
    """The view of each row, int64 like the rows without D; the same for every feature."""
    wanted = dataset.batch(items)
    number = None
    for name in dataset.features:
        rows = batch[name].reshape(len(items), -1, 1, batch[name].shape[-1])
        same = (rows == wanted[name][:, None]).all(-1)  # [B, rows, V]
        assert torch.equal(same.sum(-1), torch.ones(same.shape[:2], dtype=torch.int64))
        assert number is None or torch.equal(number, same.int().argmax(-1))
        number = same.int().argmax(-1)
    assert number is not None
    return number


@pytest.mark.parametrize(("draw", "each"), [("random", 1), ("pair", 2)])
def test_draws_belong_to_seed_epoch_and_sample(open_dataset: Opener, draw: str, each: int) -> None:
    dataset = open_dataset("all")
    held = ResidentFeatures(dataset, "cpu", Residency(draw=draw))
    items = list(range(SAMPLES))
    shape = (SAMPLES, 64) if draw == "random" else (SAMPLES, 2, 64)
    epochs = []
    for epoch in range(40):
        held.set_epoch(epoch)
        batch = held.batch(items)
        assert batch["clip_image"].shape == shape
        epochs.append(views_of(dataset, batch, items))
        backwards = views_of(dataset, held.batch(items[::-1]), items[::-1])
        assert torch.equal(backwards.flip(0), epochs[-1])
    drawn = torch.stack(epochs)  # [epochs, N, each]
    counts = torch.bincount(drawn.flatten(), minlength=VIEWS).double()
    expected = drawn.numel() / VIEWS
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom, 1 in 1000
    if each == 2:
        assert (drawn[..., 0] != drawn[..., 1]).all()
    other = ResidentFeatures(dataset, "cpu", Residency(draw=draw, seed=1))
    assert not torch.equal(views_of(dataset, other.batch(items), items), epochs[0])


@pytest.mark.parametrize("keep", [Residency(), Residency([3, 1]), Residency(draw="random")])
def test_labels_of_views_are_those_of_the_rows(open_dataset: Opener, keep: Residency) -> None:
    dataset = open_dataset("all", labels="augmented")
    held = ResidentFeatures(dataset, "cpu", keep)
    held.set_epoch(3)
    items = list(range(SAMPLES))
    batch, wanted = held.batch(items), dataset.batch(items)["labels"]
    number = views_of(dataset, batch, items)  # [N, views]
    assert torch.equal(
        batch["labels"].reshape(SAMPLES, -1, 23), wanted[torch.arange(SAMPLES)[:, None], number]
    )
    assert batch["labels"].shape[:-1] == batch["clip_image"].shape[:-1]
    assert batch["labels"].dtype == torch.float32


def test_a_sample_draws_the_same_in_every_split(
    open_dataset: Opener, folders: Path, tmp_path: Path
) -> None:
    dataset = open_dataset("all")
    stems = dataset.stems
    (tmp_path / "split.json").write_text(
        f'{{"train": {stems[:9]}, "dev": {stems[9:20]}, "test": {stems[20:]}}}'.replace("'", '"')
    )
    keep = Residency(draw="random")
    whole = ResidentFeatures(dataset, "cpu", keep).batch(range(20, SAMPLES))
    part = open_dataset("all", split="test", split_json=tmp_path / "split.json")
    assert equal(ResidentFeatures(part, "cpu", keep).batch(range(len(part))), whole)


def test_epochs_over_resident_features(open_dataset: Opener) -> None:
    held = ResidentFeatures(open_dataset("all"), "cpu", Residency(draw="random"))
    loader = DeviceBatches(held, FeatureBatchSampler(held, 8, shuffle=Shuffle(window=2)), "cpu")
    first, second = (list(loader) for _ in range(2))
    for epoch, batches in enumerate((first, second)):
        held.set_epoch(epoch)
        index = torch.cat([batch["index"] for batch in batches])
        assert sorted(index.tolist()) == list(range(SAMPLES))
        rows = torch.cat([batch["clip_text"] for batch in batches])
        assert torch.equal(rows, held.batch(index)["clip_text"])


def test_what_does_not_fit_is_refused_with_both_numbers(
    open_dataset: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("all")
    wanted = SAMPLES * (VIEWS * 192 * 4 + 8 + 23 * 4)
    monkeypatch.setattr(resident, "available_bytes", lambda: wanted + 999)
    with pytest.raises(ConfigError, match=f"{wanted:,} bytes") as error:
        ResidentFeatures(dataset, "cpu", Residency(spare_bytes=1000))
    assert f"{wanted + 999:,} are free" in str(error.value)
    assert ResidentFeatures(dataset, "cpu", Residency(spare_bytes=999)).nbytes == wanted


@pytest.mark.parametrize(
    ("views", "keep"),
    [
        ("random", Residency()),
        ("clean", Residency(draw="random")),
        ("mean", Residency(views=[0])),
        ("all", Residency(draw="some")),
        ("all", Residency(views=[VIEWS])),
        ("all", Residency(views=[])),
        ("all", Residency(views=[2], draw="pair")),
    ],
)
def test_what_does_not_go_together_is_refused(
    open_dataset: Opener, views: str, keep: Residency
) -> None:
    with pytest.raises(ConfigError):
        ResidentFeatures(open_dataset(views), "cpu", keep)


def test_indices_stay_with_the_rows(open_dataset: Opener) -> None:
    dataset = open_dataset("clean")
    held = ResidentFeatures(dataset, "cpu")
    assert np.array_equal(held.indices, dataset.indices)
    assert np.array_equal(held.batch(range(5))["index"].numpy(), dataset.indices[:5])
