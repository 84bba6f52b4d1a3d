"""What a process that starts workers makes of their reports; the driver of Ray with a fake crew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import featurestore
from consumers.config import BuildConfig
from consumers.stopping import Notifier
from consumers.workers.on_ray.driver import _Driver
from consumers.workers.outcome import Reports
from consumers.workers.transport import error_values
from featurestore.errors import BackboneError, ConfigError, InterruptedBuildError, WorkerError
from tests.consumers.workers import ray_runs as runs
from tests.faults.fakes import make_data

SAMPLES = 8
LABELS = ("one", "two", "three")
CHUNK = {"samples": 4, "waited_s": 1.5, "truncated": {"clip_text": 2}, "replaced": {}}
Event = tuple[str, Mapping[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A complete store of two chunks."""
    runs.golden(make_data(tmp_path / "data", SAMPLES), tmp_path / "store")
    return tmp_path / "store"


def reports(path: Path, events: list[Event] | None = None) -> Reports:
    heard: list[Event] = [] if events is None else events
    made = Reports(path, Notifier(lambda event, **facts: heard.append((event, facts))))
    made.name(LABELS)
    return made


def test_a_chunk_that_two_workers_built_is_counted_once(store: Path) -> None:
    events: list[Event] = []
    made = reports(store, events)
    for worker, chunks in ((0, (0, 1)), (1, (1,))):
        made.event(worker, 100 + worker, "started", {"done": 0})
        for chunk in chunks:
            made.event(worker, 100 + worker, "chunk", {**CHUNK, "chunk": chunk})
    report = made.result([])
    assert report.built == SAMPLES
    assert report.truncated == {"clip_text": 4}
    assert report.waited_s == pytest.approx(2 * 1.5 / 3)
    built = [facts["built"] for event, facts in events if event == "chunk"]
    assert built == [4, 8]


def test_a_chunk_that_a_killed_worker_did_not_report_is_counted(store: Path) -> None:
    made = reports(store)
    made.event(0, 100, "started", {"done": 0})
    made.event(0, 100, "chunk", {**CHUNK, "chunk": 0})
    made.restarted(0, "SIGKILL")
    made.event(0, 101, "started", {"done": SAMPLES})
    report = made.result([])
    assert (report.built, report.restarted) == (SAMPLES, {"SIGKILL": 1})


def test_a_complete_store_is_no_result_before_a_worker_has_started_to_build(store: Path) -> None:
    """The workers may have been about to add to it."""
    made = reports(store)
    made.failed(0, ConfigError("no such model"))
    with pytest.raises(ConfigError, match="no such model"):
        made.result([])


def test_a_refusal_comes_after_other_errors_and_one_of_another_kind_is_noted(
    tmp_path: Path,
) -> None:
    made = reports(tmp_path / "none")
    made.failed(0, ConfigError("another version\nand more"))
    made.failed(1, BackboneError("not finite"))
    made.failed(2, BackboneError("not finite either"))
    with pytest.raises(BackboneError, match="not finite") as caught:
        made.result([])
    assert caught.value.__notes__ == ["one: another version"]


def test_workers_that_end_without_an_error_have_failed_too(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="the store is not complete"):
        reports(tmp_path / "none").result([])


def test_a_stop_signal_is_the_error_of_an_incomplete_store(tmp_path: Path) -> None:
    made = reports(tmp_path / "none")
    made.failed(0, BackboneError("not finite"))
    with pytest.raises(InterruptedBuildError):
        made.result([15])


@dataclass
class FakeCrew:
    """Workers whose builds end at once with the given results."""

    results: Sequence[Mapping[str, Any]]
    building: set[int] = field(default_factory=set)

    def is_possible(self) -> bool:
        return True

    def spots(self, _timeout_s: float) -> list[Any]:
        version = featurestore.__version__
        spot = SimpleNamespace(host="here", cpus=2, version=version, free_bytes=1 << 40)
        return [spot for _ in self.results]

    def start(self, index: int, _config: BuildConfig) -> None:
        self.building.add(index)

    def ended(self, _timeout_s: float) -> Iterator[tuple[int, Mapping[str, Any]]]:
        ready, self.building = self.building, set()
        return iter([(index, self.results[index]) for index in sorted(ready)])

    def news(self, *, stops: bool) -> dict[int, Any]:
        return {}

    def end(self) -> None:
        self.building = set()


def test_a_driver_fails_if_no_worker_could_extend_a_complete_store(store: Path) -> None:
    refused = {"error": error_values(ConfigError("no such model"))}
    config = BuildConfig(
        data_dir=store.parent / "data", store=store, resume=True, ray="local", ray_workers=2
    )
    crew = cast("Any", FakeCrew([refused, refused]))
    notify = Notifier(lambda *_, **__: None)
    with pytest.raises(ConfigError, match="no such model"):
        _Driver(config, crew, notify, use_gpus=False).execute()
