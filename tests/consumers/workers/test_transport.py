"""Configurations and errors that travel between processes as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consumers.backbones.config import BackboneConfig
from consumers.config import BuildConfig
from consumers.workers.places import divided, make_places
from consumers.workers.share import Machine, Share
from consumers.workers.transport import config_of, config_values, error_of, error_values
from featurestore.errors import (
    BackboneError,
    ConfigError,
    InterruptedBuildError,
    StorageFullError,
    StoreMismatchError,
    WorkerError,
)
from producers.sources.collection import CollectionConfig

OWN = BackboneConfig(adapter="timm", model="x", size=64)
ODD = "földer \udcff"  # a name that is no UTF-8


@pytest.mark.parametrize(
    "config",
    [
        BuildConfig(store=Path("s"), data_dir=Path(ODD)),
        BuildConfig(
            store=Path("/s"),
            collection=CollectionConfig(kind="table", path="t.csv", text=("a", "b")),
            resume=True,
            features=("own", "clip_text"),
            models={"clip_text": "/m"},
            batch_sizes={"own": 3},
            backbones={"own": OWN},
            worker=Share(1, 4, Machine(8, 1 << 40)),
            sample_timeout_s=1.5,
        ),
        BuildConfig(store=Path("s"), data=Path("d"), resume=True, devices=("cpu", "cuda:1")),
    ],
    ids=["paths", "all", "devices"],
)
def test_a_configuration_comes_back(config: BuildConfig) -> None:
    back = config_of(json.loads(json.dumps(config_values(config))))
    assert back == config
    assert config.worker is None or back.worker.machine == config.worker.machine  # type: ignore[union-attr]


def test_an_error_comes_back() -> None:
    backbone = BackboneError("own failed")
    backbone.name_chunk(7)
    for error in (
        backbone,
        StoreMismatchError(Path("s"), "seed", 1, 2, "Do this."),
        InterruptedBuildError(15, "Stopped."),
        StorageFullError(Path(ODD), 12, "full"),
    ):
        back = error_of(json.loads(json.dumps(error_values(error))), "The worker")
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)


def test_an_error_of_another_library_is_a_defect_with_its_traceback() -> None:
    try:
        json.loads("{}")["gone"]
    except KeyError as e:
        values = json.loads(json.dumps(error_values(e)))
    back = error_of(values, "The worker on cpu")
    assert isinstance(back, WorkerError)
    assert "The worker on cpu failed: KeyError: 'gone'" in str(back)
    assert "This is a defect" in str(back)
    assert '["gone"]' in str(back.__cause__)


def test_the_first_name_of_a_chunk_stays() -> None:
    error = BackboneError("own failed")
    error.name_chunk(2)
    error.name_chunk(3)
    assert (error.chunk, str(error)) == (2, "Chunk 2: own failed")


def test_what_the_machine_has_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.workers.places.usable_cpus", lambda: 5)
    config = BuildConfig(
        store=Path("s"), data=Path("d"), resume=True, producers=7, worker=Share(1, 2)
    )
    places = make_places(config, ["cpu", "cuda:0", "cpu"])
    tasks = [place.task for place in places]
    assert [task["producers"] for task in tasks] == [3, 2, 2]
    assert [task["threads"] for task in tasks] == [3, 0, 2]
    assert [task["slots"] for task in tasks] == [8, 6, 6]
    assert [str(place.share) for place in places] == ["3/6", "4/6", "5/6"]
    assert {task["worker"]["machine"]["slots"] for task in tasks} == {20}
    assert divided(1, 3) == [1, 1, 1]


def test_threads_without_a_cpu_are_refused() -> None:
    config = BuildConfig(store=Path("s"), data=Path("d"), resume=True, threads=4)
    with pytest.raises(ConfigError, match="--threads 4 is for CPUs"):
        make_places(config, ["cuda:0", "cuda:1"])
