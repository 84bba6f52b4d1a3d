"""The forecast for several devices and machines, compared with numbers computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestore.storage.writer import take_lock
from manyviews import main
from manyviews.operations.check.machine import Need
from manyviews.operations.check.spread import Spread
from manyviews.operations.check.trial import Trial
from tests.featurestore.stores import make_store

GPUS = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def test_devices_are_as_fast_together_as_their_producers_allow() -> None:
    # One device builds 8 samples/s although it waits a fifth of the time.
    trial = Trial(samples=30, total_s=8.0, sample_s=0.125, waited=0.2, producer_s=0.25)
    assert trial.backbones_per_s == pytest.approx(10)
    four = Spread(GPUS)
    assert trial.producers_per_s(15) == pytest.approx(60)
    assert four.rates(10, 60) == (40, "backbones")
    assert trial.producers_per_s(5) == pytest.approx(20)
    assert four.rates(10, 20) == (20, "producers")
    assert Spread(GPUS, machines=3).rates(10, 20) == (60, "producers")
    # The start takes 8 - 30 * 0.125 s.
    assert trial.seconds_at(25.6, 2560) == pytest.approx(4.25 + 100)


def test_workers_on_one_device_share_it() -> None:
    assert Spread(("cpu", "cpu")).rates(8.0, 50.0) == (8.0, "backbones")
    assert Spread(("cuda:0", "cuda:0", "cuda:1")).rates(8.0, 50.0) == (16.0, "backbones")


def test_slow_producers_are_not_faster_with_more_devices() -> None:
    trial = Trial(samples=30, total_s=8.0, sample_s=0.5, waited=0.9)
    assert Spread(GPUS).rates(trial.backbones_per_s, trial.producers_per_s(8)) == (2, "producers")
    assert Trial(30, 8.0, 0.5, 0.1).producers_per_s(8) is None
    assert Spread(GPUS).rates(1.75, None) == (7.0, "backbones")


def test_memory_is_summed_over_workers() -> None:
    one = Need(weights=100, batches=10, host=1, queue=60, producers=5, threads=6)
    assert one.of(Spread(("cpu",))) == one
    two = one.of(Spread(("cpu", "cpu")))
    assert (two.weights, two.batches, two.queue, two.producers) == (200, 10, 70, 5)
    gpus = one.of(Spread(("cuda:0", "cuda:0", "cuda:1")))
    assert (gpus.weights, gpus.batches, gpus.host) == (200, 20, 3)


def test_a_check_for_two_devices_of_two_machines(
    demo_data: Path, checkpoints: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    typed = ["check", "--data-dir", str(demo_data / "dataset"), "--views", "4", "--json"]
    typed += ["--features", "clip_text", "--model", f"clip_text={checkpoints['clip_text']}"]
    assert main.run_command([*typed, "--devices", "cpu,cpu", "--worker", "1/2"]) == 0
    facts = json.loads(capfd.readouterr().out)["forecast"]
    assert facts["devices"] == ["cpu", "cpu"]
    assert facts["machines"] == 2
    rates = [facts["device_samples_per_s"], facts["producers_samples_per_s"]]
    known = [rate for rate in rates if rate]
    assert facts["samples_per_s"] == pytest.approx(2 * min(known), rel=0.01)
    assert main.run_command([*typed, "--devices", "cpu,cpu", "--device", "cpu"]) == 2


def test_all_workers_that_write_are_named(
    demo_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from featurestore.storage.store import FeatureStore
    from manyviews.operations.check.findings import Group
    from manyviews.operations.check.target import _stored

    make_store(tmp_path / "store", chunks=[0])
    locks = [take_lock(tmp_path / "store", worker=True, shared=True) for _ in range(2)]
    group = Group("store")
    _stored(group, FeatureStore(tmp_path / "store"), None)
    for lock in locks:
        lock.release()
    assert [line.label for line in group.lines] == ["store", "lock"]
    assert "writing to it" in group.lines[1].text
