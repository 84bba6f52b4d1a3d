"""Ray: the connection to a cluster, and one actor for each worker. The only module that imports it.

Ray starts the processes of the workers, gives each a GPU or a CPU, and starts a killed one again,
on another machine if need be. The pixels never leave a worker's process: between the processes go
a configuration, short reports, and the outcome.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import featurestore
from consumers.build import build
from consumers.config import BuildConfig
from consumers.progress import RunLog
from consumers.workers.outcome import Outcome
from consumers.workers.reporting import Reporter
from featurestore.errors import ConfigError, InterruptedBuildError
from featurestore.storage.store import RUNS
from featurestore.system.limits import usable_cpus
from featurestore.wording import amount, first_line

# Limit of each call to another process, in seconds.
_CALL_S = 30.0
# The store of objects of a local cluster, in bytes: the least that Ray accepts, rounded up.
_OBJECTS_BYTES = 80 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where Ray placed a worker.

    Attributes:
        host: name of the machine.
        cpus: number of CPUs that its process may use.
        version: version of this project there.
    """

    host: str
    cpus: int
    version: str


class Board:
    """An actor that holds the latest report of each worker, and whether the build is to stop."""

    def __init__(self) -> None:
        self._reports: dict[int, tuple[float, Mapping[str, Any]]] = {}
        self._stops = False

    def post(self, worker: int, report: Mapping[str, Any]) -> bool:
        """Replaces the report of a worker; returns whether the build is to stop."""
        self._reports[worker] = time.monotonic(), report
        return self._stops

    def read(self, stops: bool) -> dict[int, tuple[float, Mapping[str, Any]]]:
        """The reports, each with its age in seconds; sets whether the build is to stop."""
        self._stops = stops
        now = time.monotonic()
        return {worker: (now - at, report) for worker, (at, report) in self._reports.items()}


class Worker:
    """An actor that builds the share of one worker, in the main thread of its process."""

    def __init__(self, index: int, board: Any) -> None:
        self._index, self._board = index, board

    def place(self) -> Place:
        """Where this actor runs."""
        return Place(socket.gethostname(), usable_cpus(), featurestore.__version__)

    def build(self, config: BuildConfig) -> Outcome:
        """Builds the share ``config.worker``; an error is returned, not raised."""
        log = RunLog(config.store / RUNS)
        try:
            with Reporter(self._post) as reporter:
                return _build(config, log, reporter)
        finally:
            log.close()

    def _post(self, report: Mapping[str, Any]) -> bool:
        return bool(ray.get(self._board.post.remote(self._index, report), timeout=_CALL_S))


def _build(config: BuildConfig, log: RunLog, reporter: Reporter) -> Outcome:
    try:
        return Outcome.of(build(config, [log, reporter]), reporter.scanned)
    except SystemExit as e:  # of Ray's handler, if the signal arrived after the build
        if not reporter.has_signalled:
            raise
        return Outcome.of_error(InterruptedBuildError(signal.SIGTERM, str(e)))
    except Exception as e:  # noqa: BLE001  errors travel as plain values
        return Outcome.of_error(e)


class Crew:
    """The actors of a build; a context manager that ends those that are left.

    Args:
        count: number of workers.
        use_gpus: whether each gets a GPU.
    """

    def __init__(self, count: int, *, use_gpus: bool) -> None:
        self._needs = {"CPU": 1, "GPU": 1} if use_gpus else {"CPU": 1}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._board = (
            ray.remote(Board)
            .options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
            .remote()
        )
        kind = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=int(use_gpus),
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        self._workers = [kind.remote(index, self._board) for index in range(count)]
        self._places = [worker.place.remote() for worker in self._workers]
        self._builds: dict[Any, int] = {}

    def placed(self, timeout_s: float) -> list[Place] | None:
        """Waits until all workers have a place; None if some still have none.

        Raises:
            ConfigError: a worker cannot start there.
        """
        ready, waiting = ray.wait(
            self._places, num_returns=len(self._places), timeout=timeout_s, fetch_local=False
        )
        try:
            places: list[Place] = ray.get(ready, timeout=_CALL_S)
        except GetTimeoutError:
            return None
        except RayError as e:
            raise ConfigError(
                f"A worker cannot start on the Ray cluster: {first_line(e)}\n"
                "Install the same version of manyviews, with its dependencies, on every machine."
            ) from e
        return None if waiting else places

    def not_placed(self) -> str:
        """What the cluster has, for the error that workers have no place."""
        count = len(self._workers)
        needs = " and ".join(f"{number} {name}" for name, number in self._needs.items())
        return (
            f"Ray has no place for {amount(count, 'worker')}, each with {needs}.\n"
            f"The cluster has {_resources(ray.cluster_resources())}; free are "
            f"{_resources(ray.available_resources())}.\n"
            "Give fewer --ray-workers, or add machines."
        )

    def can_hold(self) -> bool:
        """Whether the machines of the cluster have enough for all workers, used or not."""
        has = ray.cluster_resources()
        return all(has.get(n, 0) >= len(self._workers) * k for n, k in self._needs.items())

    def start(self, index: int, config: BuildConfig) -> None:
        """Lets a worker build its share."""
        self._builds[self._workers[index].build.remote(config)] = index

    def ended(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Waits until a build ends; returns each one that has, with its outcome."""
        if not self._builds:
            return []
        ready, _ = ray.wait(list(self._builds), num_returns=1, timeout=timeout_s)
        return [(self._builds.pop(build), _outcome(build)) for build in ready]

    @property
    def building(self) -> set[int]:
        """The workers whose builds have not ended."""
        return set(self._builds.values())

    def reports(self, *, stops: bool) -> dict[int, tuple[float, Mapping[str, Any]]]:
        """The latest report of each worker, with its age in seconds; says whether to stop.

        Empty while the actor that holds them cannot be reached.
        """
        with suppress(RayError):
            reports: dict[int, tuple[float, Mapping[str, Any]]] = ray.get(
                self._board.read.remote(stops), timeout=_CALL_S
            )
            return reports
        return {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        for actor in (*self._workers, self._board):
            with suppress(RayError):
                ray.kill(actor, no_restart=True)


def _outcome(build: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(build, timeout=_CALL_S)
    except RayError as e:
        return Outcome(type(e).__name__, f"{type(e).__name__}: {first_line(e)}", 1)
    return outcome


def _resources(found: Mapping[str, float]) -> str:
    return " and ".join(f"{found.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


class Connection:
    """A connection to a cluster; a context manager that ends it.

    Args:
        address: address of the cluster; None starts one on this machine, which ends with it.
        folder: folder of the files of such a cluster.

    Raises:
        ConfigError: the cluster does not answer, or refuses this process.
        InterruptedBuildError: SIGTERM arrived meanwhile.
    """

    def __init__(self, address: str | None, folder: Path | None) -> None:
        if ray.is_initialized():
            raise ConfigError("This process is connected to Ray already: call ray.shutdown() first.")
        own: dict[str, Any] = {
            "num_cpus": usable_cpus(),
            "include_dashboard": False,
            "object_store_memory": _OBJECTS_BYTES,
            "_temp_dir": str(folder),
        }
        where = own if address is None else {"address": address}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except SystemExit:  # of the handler that Ray sets meanwhile
            self.close()
            raise InterruptedBuildError(
                signal.SIGTERM,
                "Stopped by SIGTERM before anything was built: run the same command again.",
            ) from None
        except (OSError, RuntimeError, ValueError, RayError) as e:
            self.close()
            raise ConfigError(_no_connection(address, e)) from e
        except BaseException:
            self.close()
            raise
        finally:
            with suppress(ValueError):  # another thread than the main one
                signal.signal(signal.SIGTERM, handler)

    @property
    def has_gpus(self) -> bool:
        """Whether the cluster has a GPU."""
        return bool(ray.cluster_resources().get("GPU", 0))

    @property
    def host(self) -> str:
        """Address of the cluster's head, without the port."""
        return str(ray.get_runtime_context().gcs_address).rpartition(":")[0]

    def close(self) -> None:
        """Ends the connection, and a cluster that it started."""
        ray.shutdown()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _no_connection(address: str | None, error: Exception) -> str:
    if address is None:
        return (
            f"Ray could not be started on this machine: {first_line(error)}\n"
            "`--devices` builds with several devices of one machine without Ray."
        )
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return (
        f"No Ray cluster can be used at {address}: {first_line(error)}\n"
        + ("" if has_token else "Its token is expected in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. ")
        + "`ray status` on one of its machines shows whether it runs."
    )
