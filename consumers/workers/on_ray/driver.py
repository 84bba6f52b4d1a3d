"""The driver of ``--ray``: it places the workers on a Ray cluster, and watches them.

The driver computes nothing, and hands out no work: the workers find their chunks like all others
(``walk``), and Ray starts those again that were killed. The driver passes events and stop signals
on, and ends when the store is complete, whatever its workers say.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import featurestore
from consumers.build_report import BuildReport
from consumers.config import BuildConfig
from consumers.plan import default_slots
from consumers.resume.checks import check_intent
from consumers.stopping import Notifier, stop_signals
from consumers.workers.on_ray.access import (
    LOCAL,
    authentication,
    own_folder,
    require_answer,
    require_private,
)
from consumers.workers.outcome import Reports
from consumers.workers.places import divided
from consumers.workers.share import Machine, Share
from consumers.workers.transport import error_of
from featurestore.errors import ConfigError, InterruptedBuildError, WorkerError
from featurestore.storage.creation import state_of
from featurestore.storage.soundness import require_place
from featurestore.wording import first_line

if TYPE_CHECKING:
    from consumers.workers.on_ray.actors import News, Spot
    from consumers.workers.on_ray.cluster import Crew

# Time that Ray has to place the workers, and that workers may be silent, in seconds.
PLACE_S = 60.0
_SILENT_S = 60.0
# Time that workers have to end by themselves once the store is complete, in seconds; and a silent
# one once the build is to stop.
_END_S = 15.0
# Time between two looks at the workers, in seconds.
_POLL_S = 0.5


def build_on_ray(config: BuildConfig, notify: Callable[..., None]) -> BuildReport:
    """Builds a store with ``config.ray_workers`` workers on the Ray cluster ``config.ray``.

    Args:
        config: the configuration.
        notify: callback that receives an event's name and, as keywords, its facts.

    Raises:
        ConfigError: Ray is not installed, cannot be used, or has no place for the workers.
        ManyViewsError: see :func:`consumers.build.build`; the error of a worker, if the others
            could not complete the store. Only if every worker was refused, it is an error of the
            configuration.
    """
    state = state_of(config.store)
    check_intent(config, state)
    if state != "store":
        require_place(config.store, needs_locks=False)
    with ExitStack() as stack:
        stack.enter_context(authentication(config.ray or LOCAL))
        is_local = config.ray == LOCAL
        folder = stack.enter_context(own_folder()) if is_local else None
        notify("connecting", address=config.ray)
        require_answer(config.ray or LOCAL)
        try:
            from consumers.workers.on_ray import cluster
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] != "ray":
                raise
            raise ConfigError(
                "--ray needs Ray, which is not installed: pip install 'manyviews[ray]'"
            ) from None
        connection = stack.enter_context(
            cluster.Connection(None if is_local else config.ray, folder)
        )
        require_private(connection.host)
        use_gpus = config.device == "cuda" or (config.device == "auto" and connection.has_gpus)
        crew = stack.enter_context(cluster.Crew(config.ray_workers, use_gpus=use_gpus))
        return _Driver(config, crew, Notifier(notify), use_gpus=use_gpus).execute()


class _Driver:
    """The workers of a build on Ray, and what they reported."""

    def __init__(
        self, config: BuildConfig, crew: Crew, notify: Notifier, *, use_gpus: bool
    ) -> None:
        self._config, self._crew, self._notify = config, crew, notify
        self._device = "cuda" if use_gpus else "cpu"
        self._reports = Reports(config.store, notify)
        self._labels: list[str] = []
        self._configs: list[BuildConfig] = []
        self._pids: dict[int, int] = {}

    def execute(self) -> BuildReport:
        """Places the workers, waits until the store is complete, and returns the report."""
        with stop_signals(self._acknowledge) as stopped:
            spots = self._placed(stopped)
            if spots is not None:
                self._start(spots)
                self._wait(stopped)
        self._crew.end()
        return self._reports.result(stopped, _END_S)

    def _acknowledge(self, number: int) -> None:
        """Reports the first stop signal at once; called by its handler."""
        self._notify.from_handler("stopping", signal=signal.Signals(number).name)

    def _placed(self, stopped: Sequence[int]) -> Sequence[Spot] | None:
        """Where the workers are; None after a stop signal."""
        deadline = time.monotonic() + PLACE_S
        if self._config.ray == LOCAL and not self._crew.is_possible():
            raise self._crew.not_placed()
        while not stopped:
            spots = self._crew.spots(_POLL_S)
            if spots is not None:
                for spot in spots:
                    _require_same_version(spot)
                return spots
            if time.monotonic() > deadline:
                raise self._crew.not_placed()
        return None

    def _start(self, spots: Sequence[Spot]) -> None:
        """Lets all workers build."""
        self._configs = worker_configs(self._config, spots, self._device)
        self._labels = [
            f"{spot.host} {self._device} (worker {each.worker})"
            for spot, each in zip(spots, self._configs, strict=True)
        ]
        self._reports.name(self._labels)
        for index, each in enumerate(self._configs):
            self._crew.start(index, each)

    def _wait(self, stopped: Sequence[int]) -> None:
        """Waits until all builds have ended, or the store is complete."""
        heard_s = time.monotonic()
        while self._crew.building:
            ended = self._crew.ended(_POLL_S)
            news = self._crew.news(stops=bool(stopped) or self._reports.outcome.is_complete)
            self._read(news)
            for index, result in ended:
                self._ended(index, result, stopping=bool(stopped))
            now = time.monotonic()
            building = self._crew.building
            age_s = min((n.age_s for i, n in news.items() if i in building), default=now - heard_s)
            heard_s = now - age_s
            self._reports.look(at_once=bool(ended))
            if self._reports.complete_s >= _END_S:
                return  # those that still build have had the time to see it
            if age_s > _END_S and stopped:
                return  # killed ones, which Ray has not started again
            if age_s > _SILENT_S and building:
                self._silent()

    def _silent(self) -> None:
        raise WorkerError(
            f"No worker has reported for {_SILENT_S:.0f} s: their machines are lost, or have no "
            f"place for them.\n{first_line(self._crew.not_placed())}\n"
            "Everything committed is kept; continue with --resume."
        )

    def _read(self, news: Mapping[int, News]) -> None:
        """Passes the events of the workers on."""
        for index, each in news.items():
            if self._pids.setdefault(index, each.pid) != each.pid:
                self._pids[index] = each.pid
                self._reports.restarted(index, "killed or lost")
            for event, facts in each.events:
                self._reports.event(index, each.pid, event, facts)

    def _ended(self, index: int, result: Mapping[str, Any], *, stopping: bool) -> None:
        """Notes how a build ended; one that was stopped by somebody else is started again."""
        if "report" in result:
            self._reports.finished(index, self._pids.get(index, 0), result["report"])
            return
        error = error_of(result["error"], f"The worker on {self._labels[index]}")
        if isinstance(error, InterruptedBuildError):
            if not stopping and not self._reports.outcome.is_complete:
                self._crew.start(index, self._configs[index])
            return
        self._reports.failed(index, error)


def _require_same_version(spot: Spot) -> None:
    if spot.version != featurestore.__version__:
        raise ConfigError(
            f"{spot.host} has manyviews {spot.version}, and this machine "
            f"{featurestore.__version__}.\nInstall the same version on every machine."
        )


def worker_configs(config: BuildConfig, spots: Sequence[Spot], device: str) -> list[BuildConfig]:
    """The configuration of each worker: workers on one machine divide its CPUs and its memory.

    Args:
        config: the configuration of the build.
        spots: where each worker is.
        device: ``cpu`` or ``cuda``.
    """
    shared = replace(config, ray=None, ray_workers=0, device=device)
    hosts = [spot.host for spot in spots]
    resources: list[dict[str, Any]] = []
    for index, spot in enumerate(spots):
        count, place = hosts.count(spot.host), hosts[:index].count(spot.host)
        producers = divided(config.producers or max(1, spot.cpus - 1), count)[place]
        threads = divided(config.threads or spot.cpus, count)[place] if device == "cpu" else 0
        slots = divided(config.slots, count)[place] if config.slots else default_slots(producers)
        resources.append({"producers": producers, "threads": threads, "slots": max(2, slots)})
    return [
        replace(shared, **own, worker=Share(index, len(spots), _machine(host, spots, resources)))
        for index, (host, own) in enumerate(zip(hosts, resources, strict=True))
    ]


def _machine(host: str, spots: Sequence[Spot], resources: Sequence[Mapping[str, int]]) -> Machine:
    """What the workers on one machine need together."""
    there = [k for k, spot in enumerate(spots) if spot.host == host]
    slots = sum(resources[k]["slots"] for k in there)
    return Machine(slots, min(spots[k].free_bytes for k in there))
