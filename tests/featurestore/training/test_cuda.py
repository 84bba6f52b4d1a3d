"""Batches on a real GPU; skipped without one."""

from pathlib import Path

import pytest
import torch

from featurestore import (
    DeviceBatches,
    FeatureBatchSampler,
    FeatureDataset,
    Residency,
    ResidentFeatures,
)
from tests.featurestore.stores import make_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SAMPLES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "store"
    make_store(folder, samples=SAMPLES, views=4, chunk=8)
    return folder


def busy(milliseconds: float) -> None:
    """Work that occupies the current stream for a while."""
    torch.cuda._sleep(int(1e6 * milliseconds))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("resident", [False, True])
def test_batches_are_those_of_the_host(folder: Path, resident: bool) -> None:
    dataset = FeatureDataset(folder, views="all")
    source = ResidentFeatures(dataset, "cuda") if resident else dataset
    loader = DeviceBatches(source, FeatureBatchSampler(dataset, 16), "cuda")
    for _ in range(3):
        kept = []
        for batch in loader:
            busy(2)  # the host is far ahead: buffers and memory are used again early
            kept.append({name: rows + 0 for name, rows in batch.items()})
        for batch in kept:
            wanted = dataset.batch(batch["index"].cpu().numpy())
            for name, rows in wanted.items():
                assert torch.equal(batch[name].cpu(), rows)
        assert sum(len(batch["index"]) for batch in kept) == SAMPLES


def test_a_batch_may_be_used_on_another_stream(folder: Path) -> None:
    dataset = FeatureDataset(folder, views="all")
    resident = ResidentFeatures(dataset, "cuda", Residency(draw="pair"))
    expected = [
        {name: rows.cpu() for name, rows in batch.items()}
        for batch in DeviceBatches(resident, FeatureBatchSampler(resident, 16), "cuda")
    ]
    loader = DeviceBatches(resident, FeatureBatchSampler(resident, 16), "cuda")
    streams = [torch.cuda.Stream() for _ in range(3)]  # type: ignore[no-untyped-call]
    walk, actual = iter(loader), []
    for number in range(len(loader)):
        with torch.cuda.stream(streams[number % 3]):
            batch = next(walk)
            actual.append({name: rows + 0 for name, rows in batch.items()})
            busy(2)
    torch.cuda.synchronize()
    for batch, wanted in zip(actual, expected, strict=True):
        assert all(torch.equal(batch[name].cpu(), rows) for name, rows in wanted.items())


def test_batches_read_in_inference_mode_can_be_trained_from(folder: Path) -> None:
    dataset = FeatureDataset(folder)
    loader = DeviceBatches(dataset, FeatureBatchSampler(dataset, 16), "cuda")
    with torch.inference_mode():
        assert sum(len(batch["index"]) for batch in loader) == SAMPLES
    weight = torch.ones(64, device="cuda", requires_grad=True)
    for batch in loader:
        (batch["clip_image"] @ weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
