"""The driver of ``--ray``: it places the workers on a Ray cluster, and watches them.

The driver computes nothing, and hands out no work: the workers find their chunks like all others
(``walk``), and Ray starts those again that were killed. The driver passes events and stop signals
on, and ends when the store is complete, whatever its workers say.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import featurestore
from consumers.build_report import BuildReport
from consumers.config import BuildConfig
from consumers.plan import default_slots
from consumers.resume.checks import check_intent
from consumers.stopping import Notifier, stop_signals
from consumers.workers.outcome import Outcome, first_failure
from consumers.workers.places import Tally, divided
from consumers.workers.share import Share
from consumers.workers.transport import error_of
from featurestore.errors import ConfigError, InterruptedBuildError, WorkerError
from featurestore.storage.creation import state_of
from featurestore.storage.soundness import require_place
from featurestore.wording import first_line

if TYPE_CHECKING:
    from consumers.workers.ray_cluster import Crew, News, Spot

LOCAL = "local"
# Time that Ray has to place the workers, and that workers may be silent, in seconds.
PLACE_S = 60.0
_SILENT_S = 60.0
# Time that workers have to end by themselves once the store is complete, in seconds; and a silent
# one once the build is to stop.
_END_S = 15.0
# Time between two looks: at the workers, and at the store, in seconds.
_POLL_S = 0.5
_LOOK_S = 2.0
# Variables of the environment that are set while the driver runs.
_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED")
# Longest path of the folder for temporary files that Ray's folder may be in, in characters: the
# paths of sockets are limited.
_LONGEST = 20
# Removes the folder when the driver has ended, in whatever way; Ray's processes end soon after it.
_JANITOR = (
    'cat; for i in 1 2 3 4 5; do rm -rf -- "$1"; [ -e "$1" ] || [ "$i" = 1 ] || exit; sleep 1; done'
)


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
        stack.enter_context(_authentication(config.ray or LOCAL))
        is_local = config.ray == LOCAL
        folder = stack.enter_context(_own_folder()) if is_local else None
        notify("connecting", address=config.ray)
        try:
            from consumers.workers import ray_cluster
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] != "ray":
                raise
            raise ConfigError(
                "--ray needs Ray, which is not installed: pip install 'manyviews[ray]'"
            ) from None
        connection = stack.enter_context(
            ray_cluster.Connection(None if is_local else config.ray, folder)
        )
        _require_private(connection.host)
        use_gpus = config.device == "cuda" or (config.device == "auto" and connection.has_gpus)
        crew = stack.enter_context(ray_cluster.Crew(config.ray_workers, use_gpus=use_gpus))
        return _Driver(config, crew, Notifier(notify), use_gpus=use_gpus).execute()


@contextmanager
def _authentication(address: str) -> Iterator[None]:
    """Sets how this process and a cluster that it starts prove who they are.

    Without a token, everybody who can reach the cluster could run programs on it. Ray itself would
    write a token to the home folder.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _require_private(host: str) -> None:
    """Refuses a cluster without authentication that other machines can reach."""
    is_private = host.startswith("127.") or host in ("localhost", "::1", "[::1]")
    if os.environ["RAY_AUTH_MODE"].lower() == "disabled" and not is_private:
        raise ConfigError(
            f"RAY_AUTH_MODE=disabled lets everybody who reaches {host} run programs on the "
            "cluster.\nUnset it: --ray local then uses a random token. Start another cluster with "
            "RAY_AUTH_MODE=token\nand RAY_AUTH_TOKEN on each machine, and set both here."
        )


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for the files of a local cluster, which is removed even if this process is killed.

    Raises:
        ConfigError: it cannot be created.
    """
    base = tempfile.gettempdir()
    if len(base) > _LONGEST:
        base = "/tmp"  # noqa: S108  its folder has a random name, and belongs to this user alone
    try:
        folder = tempfile.mkdtemp(prefix="mv-ray-", dir=base)
    except OSError as e:
        raise ConfigError(f"No folder for Ray's files could be created: {e.strerror}.") from e
    janitor = subprocess.Popen(
        ["sh", "-c", _JANITOR, "sh", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        janitor.kill()
        janitor.communicate()


class _Driver:
    """The workers of a build on Ray, and what they reported."""

    def __init__(
        self, config: BuildConfig, crew: Crew, notify: Notifier, *, use_gpus: bool
    ) -> None:
        self._config, self._crew, self._notify = config, crew, notify
        self._device = "cuda" if use_gpus else "cpu"
        self._outcome = Outcome(config.store)
        self._errors: list[tuple[int, Exception]] = []
        self._labels: list[str] = []
        self._configs: list[BuildConfig] = []
        self._pids: dict[int, int] = {}
        self._tallies: dict[tuple[int, int], Tally] = {}
        self._once: set[str] = set()
        self._chunks: dict[int, int] = {}
        self._times: list[float] = []

    def execute(self) -> BuildReport:
        """Places the workers, waits until the store is complete, and returns the report."""
        with stop_signals(self._acknowledge) as stopped:
            spots = self._placed(stopped)
            if spots is not None:
                self._start(spots)
                self._wait(stopped)
        self._crew.end()
        store = self._outcome.settled(_END_S)
        if store is None:
            raise self._failure(stopped)
        report = self._report(BuildReport(store.path, store.spec.samples, store.spec.views))
        self._outcome.describe(report, store)
        self._notify("finished", **report.facts())
        return report

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
        self._notify("workers", labels=self._labels)
        for index, each in enumerate(self._configs):
            self._crew.start(index, each)

    def _wait(self, stopped: Sequence[int]) -> None:
        """Waits until all builds have ended, or the store is complete."""
        looked_s = ended_s = heard_s = time.monotonic()
        while self._crew.building:
            ended = self._crew.ended(_POLL_S)
            news = self._crew.news(stops=bool(stopped) or self._outcome.is_complete)
            self._read(news)
            for index, result in ended:
                self._ended(index, result, stopping=bool(stopped))
            now = time.monotonic()
            building = self._crew.building
            age_s = min((n.age_s for i, n in news.items() if i in building), default=now - heard_s)
            heard_s = now - age_s
            if "started" in self._once and (ended or now - looked_s >= _LOOK_S):
                looked_s = now
                self._notify("committed", **self._outcome.look())
            if not self._outcome.is_complete:
                ended_s = now
            elif now - ended_s >= _END_S:
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
                self._tell(index, "restarted", {"cause": "killed or lost"})
            for event, facts in each.events:
                self._happened(index, event, facts)

    def _happened(self, index: int, event: str, facts: Mapping[str, Any]) -> None:
        """Passes an event of a worker on: for all workers once, and for its own line."""
        if event in ("scanned", "chosen", "started") and event not in self._once:
            self._once.add(event)
            self._notify(event, **facts)
        if event == "started":
            self._times.append(time.monotonic())
        elif event in ("chunk", "finished"):
            tally = self._tallies.setdefault((index, self._pids[index]), Tally())
            tally.read(facts)
        if event == "chunk":
            self._times.append(time.monotonic())
            if facts["chunk"] not in self._chunks:
                self._chunks[facts["chunk"]] = facts["samples"]
                self._notify("chunk", **{**facts, "built": sum(self._chunks.values())})
        self._tell(index, event, facts)

    def _tell(self, index: int, event: str, facts: Mapping[str, Any]) -> None:
        self._notify("worker", place=index, label=self._labels[index], what=event, facts=facts)

    def _ended(self, index: int, result: Mapping[str, Any], *, stopping: bool) -> None:
        """Notes how a build ended; one that was stopped by somebody else is started again."""
        if "error" not in result:
            return
        error = error_of(result["error"], f"The worker on {self._labels[index]}")
        if isinstance(error, InterruptedBuildError):
            if not stopping and not self._outcome.is_complete:
                self._crew.start(index, self._configs[index])
            return
        self._errors.append((index, error))
        self._tell(index, "ended", {"error": str(error)})

    def _failure(self, stopped: Sequence[int]) -> Exception:
        """The error of a build whose store is not complete."""
        if stopped:
            return self._outcome.interrupted(stopped[0])
        return first_failure([(self._labels[index], error) for index, error in self._errors])

    def _report(self, report: BuildReport) -> BuildReport:
        report.built = sum(self._chunks.values())
        report.seconds = max(self._times, default=0.0) - min(self._times, default=0.0)
        for tally in self._tallies.values():
            report.waited_s += tally.waited_s / len(self._labels)
            report.truncated += tally.truncated
            report.replaced += tally.replaced
        return report


def _require_same_version(spot: Spot) -> None:
    if spot.version != featurestore.__version__:
        raise ConfigError(
            f"{spot.host} has manyviews {spot.version}, and this machine "
            f"{featurestore.__version__}.\nInstall the same version on every machine."
        )


def worker_configs(config: BuildConfig, spots: Sequence[Spot], device: str) -> list[BuildConfig]:
    """The configuration of each worker: workers on one machine divide its CPUs.

    Args:
        config: the configuration of the build.
        spots: where each worker is.
        device: ``cpu`` or ``cuda``.
    """
    shared = replace(config, ray=None, ray_workers=0)
    hosts = [spot.host for spot in spots]
    configs = []
    for index, spot in enumerate(spots):
        count, place = hosts.count(spot.host), hosts[:index].count(spot.host)
        producers = divided(config.producers or max(1, spot.cpus - 1), count)[place]
        threads = divided(config.threads or spot.cpus, count)[place] if device == "cpu" else 0
        slots = divided(config.slots, count)[place] if config.slots else default_slots(producers)
        share = Share(index, len(spots))
        own: dict[str, Any] = {
            "worker": share,
            "producers": producers,
            "threads": threads,
            "slots": max(2, slots),
        }
        configs.append(replace(shared, **own, device=device))
    return configs
