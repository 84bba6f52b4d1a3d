"""Lightning, Accelerate and Transformers' Trainer in two processes: every sample once an epoch.

Each library runs once, with all its scenarios; the tests compare the batches of its steps with the
views that the dataset draws and the order of a sampler that no library has wrapped.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from featurestore import FeatureBatchSampler, FeatureDataset, Shard, Shuffle
from featurestore.reading.views import view_policy
from tests import warm
from tests.conftest import ROOT
from tests.featurestore.stores import make_store
from tests.training.test_distributed import free_port

SAMPLES, VIEWS = 47, 8
Epoch = list[list[list[int]]]  # batches of pairs of a sample and a view
Log = dict[str, Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loops") / "store"
    make_store(path, samples=SAMPLES, views=VIEWS, chunk=8)
    return path


def run(
    program: str,
    store: Path,
    folder: Path,
    ranks: list[dict[str, int]],
) -> list[Log]:
    """The log of each rank; ``ranks`` are the environments of the processes to start."""
    variables = {"PYTHONPATH": ROOT, "GLOO_SOCKET_IFNAME": "lo"}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in ranks:
        chosen = {name: str(value) for name, value in (variables | rank).items()}
        started.append(
            warm.Popen(
                [sys.executable, "-m", f"tests.training.{program}", store, folder],
                env=os.environ | chosen,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    try:
        errors = [process.communicate(timeout=280)[1] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert not any(process.returncode for process in started), "\n".join(errors)[-8000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def lightning(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Log]:
    # Lightning starts the second process itself, by the first one's command line.
    folder = tmp_path_factory.mktemp("lightning")
    return run("lightning_loops", store, folder, [{}])


@pytest.fixture(scope="module")
def huggingface(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Log]:
    ranks = [{"RANK": r, "LOCAL_RANK": r, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2} for r in range(2)]
    folder = tmp_path_factory.mktemp("huggingface")
    return run("huggingface_loops", store, folder, ranks)


def samples(epoch: Epoch) -> list[int]:
    return [sample for batch in epoch for sample, _ in batch]


def views(epoch: Epoch) -> list[int]:
    return [view for batch in epoch for _, view in batch]


def drawn(epoch: int, of: Sequence[int]) -> list[int]:
    """The views that a dataset with views="random" and seed 1 draws in an epoch."""
    import numpy as np

    chosen = view_policy("random", VIEWS, 1).choose(np.asarray(of, np.int64), epoch)
    assert isinstance(chosen, np.ndarray)
    numbers: list[int] = chosen.tolist()
    return numbers


def each_once(
    ranks: list[Log],
    name: str,
    epochs: Sequence[int] = (0, 1, 2),
    of: Sequence[int] = range(SAMPLES),
) -> list[list[int]]:
    """Checks that all ranks together read every sample once an epoch, with its epoch's view."""
    logged = [rank[name] for rank in ranks]
    assert [len(rank) for rank in logged] == [len(epochs)] * len(ranks), name
    orders = []
    for number, epoch in enumerate(epochs):
        seen = []
        for rank in logged:
            found = samples(rank[number])
            assert found, name
            assert views(rank[number]) == drawn(epoch, found), name
            seen += found
        assert sorted(seen) == list(of), name
        orders.append(seen)
    return orders


def order_of(
    epoch: int, size: int, dataset: Any = range(SAMPLES), **keywords: Any
) -> list[list[int]]:
    sampler = FeatureBatchSampler(dataset, size, **keywords)
    sampler.set_epoch(epoch)
    return list(sampler)


def batches(epoch: Epoch) -> list[list[int]]:
    return [samples([batch]) for batch in epoch]


# Lightning ----------------------------------------------------------------------------------------


def test_lightning_shares_training_and_validation_among_processes(lightning: list[Log]) -> None:
    orders = each_once(lightning, "ddp")
    assert len({tuple(order) for order in orders}) == 3
    for rank, logged in enumerate(lightning):
        sanity, *validated = logged["ddp/val"]
        assert len(sanity) == 1
        part = Shard(rank, 2).part(SAMPLES)
        for epoch, found in enumerate(validated):
            assert samples(found) == list(part)  # shuffle=None
            assert views(found) == drawn(epoch, part)


def test_lightning_keeps_every_setting(lightning: list[Log], store: Path) -> None:
    data = FeatureDataset(store)
    for rank, logged in enumerate(lightning):
        for epoch, found in enumerate(logged["window"]):
            wanted = order_of(
                epoch,
                5,
                data,
                shuffle=Shuffle(seed=5, window=2),
                shard=Shard(rank, 2),
                drop_last=True,
            )
            assert batches(found) == wanted
        for epoch, found in enumerate(logged["shard DataLoader"]):
            assert batches(found) == order_of(epoch, 4, shard=Shard(rank, 2))
    each_once(lightning, "shard DataLoader")
    each_once(lightning, "shard DeviceBatches")


def test_lightning_is_refused_batches_that_every_process_would_read(lightning: list[Log]) -> None:
    for rank in lightning:
        for name in ("no shard", "left alone"):
            assert rank[name].startswith("ConfigError: Each of the 2 processes")
            assert "shard=Shard.current()" in rank[name]


def test_lightning_predicts_in_order(lightning: list[Log]) -> None:
    alone = lightning[0]
    everything = list(range(SAMPLES))
    for name in ("predict DataLoader kept", "predict DataLoader shuffled"):
        assert samples(alone[name][0]) == everything  # drop_last=True, which Lightning undoes
    assert (
        samples(alone["predict DeviceBatches kept"][0]) == everything[:44]
    )  # without Lightning it stays
    for name in ("predict", "predict shuffled"):
        assert [sample for rank in lightning for sample in samples(rank[name][0])] == everything


def test_lightning_in_one_process(lightning: list[Log]) -> None:
    alone = lightning[:1]
    each_once(alone, "one")
    each_once(alone, "subset", of=range(0, SAMPLES, 2))
    each_once(alone, "pair a")
    for kind in ("DataLoader", "DeviceBatches"):
        each_once(alone, f"{kind}/val", epochs=[0])
        each_once(alone, f"{kind}/test", epochs=[0])
    # The shorter loader is iterated twice an epoch; the second time is the next epoch.
    for epoch, found in enumerate(lightning[0]["pair b"]):
        for half, number in ((found[:6], epoch), (found[6:], epoch + 1)):
            assert batches(half) == order_of(number, 8)
            assert views(half) == drawn(number, samples(half))


def test_lightning_overfits_the_same_batches(lightning: list[Log]) -> None:
    names = ["overfit DataLoader", "overfit DeviceBatches"]
    logs = [(lightning[0][name + side]) for name in names for side in ("", "/val")]
    logs += [rank["overfit" + side] for rank in lightning for side in ("", "/val")]
    for log in logs:
        assert len(log) == 4
        assert log == [log[0]] * 4  # samples, order and views
        assert [len(batch) for batch in log[0]] == [4, 4]
    first = [samples(rank["overfit"][0]) for rank in lightning]
    assert not set(first[0]) & set(first[1])


@pytest.mark.parametrize("kind", ["DeviceBatches", "StatefulDataLoader"])
def test_lightning_resumes_exactly(lightning: list[Log], kind: str) -> None:
    [alone] = lightning[:1]
    each_once([alone], f"resumed {kind} whole")
    whole = [batch for epoch in alone[f"resumed {kind} whole"] for batch in epoch]
    assert len(whole) == 18
    for step in (3, 6, 8, 13):
        resumed = [batch for epoch in alone[f"resumed {kind} {step}"] for batch in epoch]
        assert resumed == whole[step:]


# Accelerate and plain torch -----------------------------------------------------------------------


def test_accelerate_shares_a_sampler_without_a_shard(huggingface: list[Log]) -> None:
    for name in ("uneven", "window", "split"):
        orders = each_once(huggingface, name)
        assert len({tuple(order) for order in orders}) == 3
    each_once(huggingface, "subset", of=range(0, SAMPLES, 2))
    for name in ("even", "dispatch"):  # Accelerate repeats samples to fill the last batch
        for epoch in range(3):
            found = [rank[name][epoch] for rank in huggingface]
            seen = samples(found[0]) + samples(found[1])
            assert set(seen) == set(range(SAMPLES))
            assert len(seen) == 48
            assert views(found[0]) + views(found[1]) == drawn(epoch, seen)


def test_accelerate_is_refused_a_sampler_with_a_shard(huggingface: list[Log]) -> None:
    for rank in huggingface:
        for name in ("twice", "dispatch twice"):
            assert rank[name].startswith("ConfigError: Accelerate")
            assert "prepare()" in rank[name]


def test_accelerate_skips_to_the_middle_of_an_epoch_and_gathers_in_order(
    huggingface: list[Log],
) -> None:
    for rank, logged in enumerate(huggingface):
        assert logged["gathered"] == list(range(SAMPLES))
        for epoch, found in enumerate(logged["skipped"]):
            wanted = order_of(epoch, 4)[rank::2]
            assert batches(found) == (wanted[2:] if epoch == 1 else wanted)
            assert views(found) == drawn(epoch, samples(found))


def test_plain_loops_of_several_processes(huggingface: list[Log]) -> None:
    for kind in ("plain", "device"):
        each_once(huggingface, f"{kind} own")
        for rank in huggingface:
            each_once([rank], f"{kind} everything")
            assert rank[f"{kind} nobody's"].startswith("ConfigError: Each of the 2 processes")


# Transformers' Trainer ----------------------------------------------------------------------------


def test_the_trainer_with_our_batches(huggingface: list[Log]) -> None:
    orders = each_once(huggingface, "trainer own")
    assert len({tuple(order) for order in orders}) == 3
    for rank in huggingface:
        whole = [batch for epoch in rank["trainer own"] for batch in epoch]
        for step in (6, 8):
            resumed = [batch for epoch in rank[f"trainer resumed {step}"] for batch in epoch]
            assert resumed == whole[step:]


@pytest.mark.parametrize("name", ["trainer bare", "trainer workers", "torch's"])
def test_batches_of_the_libraries_own_samplers(huggingface: list[Log], name: str) -> None:
    """Transformers and Accelerate repeat a sample if the batches are not equally distributed."""
    for epoch in range(3):
        found = [rank[name][epoch] for rank in huggingface]
        seen = samples(found[0]) + samples(found[1])
        assert set(seen) == set(range(SAMPLES))
        assert len(seen) in (SAMPLES, 48)
        assert views(found[0]) + views(found[1]) == drawn(epoch, seen)


def test_the_trainer_predicts_in_order(huggingface: list[Log]) -> None:
    for rank in huggingface:
        assert rank["trainer predict"] == list(range(SAMPLES))
