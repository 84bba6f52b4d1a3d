"""Ray: the connection to a cluster, and one actor for each worker. The only module that imports it.

Ray starts the processes of the workers, gives each a GPU or a CPU, and starts a killed one again,
on another machine if need be. Pixels never leave the process of their worker: between processes go
a configuration, events, and the outcome.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from consumers.config import BuildConfig
from consumers.stopping import before_anything
from consumers.workers.on_ray.access import no_cluster
from consumers.workers.on_ray.actors import Board, News, Spot, Worker
from consumers.workers.on_ray.reporting import Event
from consumers.workers.transport import error_values
from featurestore.errors import ConfigError
from featurestore.system.limits import usable_cpus
from featurestore.wording import amount, first_line

# Limit of each call to another process, in seconds.
_CALL_S = 30.0
# Size of the object store of a local cluster, in bytes: about the least that Ray accepts.
_OBJECTS_BYTES = 80 << 20


class Crew:
    """The actors of a build; a context manager that ends those that are left.

    Args:
        count: number of workers.
        use_gpus: whether each of them gets a GPU.
    """

    def __init__(self, count: int, *, use_gpus: bool) -> None:
        self._needs = {"CPU": 1, "GPU": 1} if use_gpus else {"CPU": 1}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        board = ray.remote(Board).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        )
        worker = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=int(use_gpus),
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        self._board = board.remote()
        self._workers = [worker.remote() for _ in range(count)]
        self._spots = [each.spot.remote() for each in self._workers]
        self._builds: dict[Any, int] = {}

    def spots(self, timeout_s: float) -> list[Spot] | None:
        """Waits until all workers are placed; None if some are not.

        Raises:
            ConfigError: a worker cannot start where it was placed.
        """
        ready, waiting = ray.wait(self._spots, num_returns=len(self._spots), timeout=timeout_s)
        try:
            spots: list[Spot] = ray.get(ready, timeout=_CALL_S)
        except GetTimeoutError:
            return None
        except RayError as e:
            raise ConfigError(
                f"A worker cannot start on the Ray cluster: {_end_of(e)}\n"
                "Install the same version of manyviews, with its dependencies, on every machine."
            ) from e
        return None if waiting else spots

    def is_possible(self) -> bool:
        """Whether the machines of the cluster have enough for all workers, free or not."""
        has = ray.cluster_resources()
        return all(has.get(name, 0) >= len(self._workers) * n for name, n in self._needs.items())

    def not_placed(self) -> ConfigError:
        """The error that not all workers can be placed, with what the cluster has."""
        needs = " and ".join(f"{count} {name}" for name, count in self._needs.items())
        return ConfigError(
            f"Ray cannot place {amount(len(self._workers), 'worker')}, each with {needs}: the "
            f"cluster has {_resources(ray.cluster_resources())},\n"
            f"of which {_resources(ray.available_resources())} are free.\n"
            "Choose fewer with --ray-workers, or add machines to the cluster."
        )

    def start(self, index: int, config: BuildConfig) -> None:
        """Lets a worker build its share."""
        folder = str(Path.cwd())
        post = partial(_post, self._board)
        self._builds[self._workers[index].build.remote(post, config, folder)] = index

    def ended(self, timeout_s: float) -> list[tuple[int, dict[str, Any]]]:
        """Waits until a build ends; returns the workers whose builds did, with the results."""
        ready, _ = ray.wait(list(self._builds), num_returns=1, timeout=timeout_s)
        return [(self._builds.pop(build), _result(build)) for build in ready]

    @property
    def building(self) -> set[int]:
        """The workers whose builds have not ended."""
        return set(self._builds.values())

    def news(self, *, stops: bool) -> dict[int, News]:
        """What each worker has reported since the last call; says whether they are to stop.

        Empty while the actor that keeps the events cannot be reached.
        """
        with suppress(RayError):
            news: dict[int, News] = ray.get(self._board.read.remote(stops), timeout=_CALL_S)
            return news
        return {}

    def end(self) -> None:
        """Ends all workers at once, whatever they do."""
        for actor in (*self._workers, self._board):
            with suppress(RayError):
                ray.kill(actor, no_restart=True)
        self._builds.clear()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


def _post(board: Any, worker: int, number: int, events: Sequence[Event]) -> bool:
    """Sends events of a worker to the board; called in the worker's process.

    Returns whether the build is to stop.
    """
    answer = board.post.remote(worker, os.getpid(), number, list(events))
    return bool(ray.get(answer, timeout=_CALL_S))


def _result(build: Any) -> dict[str, Any]:
    try:
        result: dict[str, Any] = ray.get(build, timeout=_CALL_S)
    except RayError as e:
        return {"error": error_values(e)}
    return result


def _end_of(error: RayError) -> str:
    """The last line of an error, which names its cause; the lines before are a traceback."""
    return str(error).strip().splitlines()[-1].strip()


def _resources(found: Mapping[str, float]) -> str:
    return " and ".join(f"{found.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


class _WithoutRay(io.TextIOBase):
    """Standard output without what Ray's threads print: a command's result may go there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what other threads print."""
        is_ray = threading.current_thread().name.startswith("ray_")
        return len(text) if is_ray else self._stream.write(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()


class Connection:
    """A connection to a cluster; a context manager that ends it.

    Args:
        address: address of the cluster; None starts one on this machine, which ends with it.
        folder: folder for the files of such a cluster.

    Raises:
        ConfigError: the cluster does not answer, or refuses this process.
        InterruptedBuildError: SIGTERM arrived meanwhile.
    """

    def __init__(self, address: str | None, folder: Path | None) -> None:
        if ray.is_initialized():
            raise ConfigError("This process is connected to Ray already: ray.shutdown() ends that.")
        own = {
            "num_cpus": usable_cpus(),
            "include_dashboard": False,
            "object_store_memory": _OBJECTS_BYTES,
            "_temp_dir": str(folder),
        }
        self._quiet = redirect_stdout(_WithoutRay(sys.stdout))
        where: dict[str, Any] = own if address is None else {"address": address}
        handler = signal.getsignal(signal.SIGTERM)
        self._quiet.__enter__()
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as e:
            self.close()
            if isinstance(e, SystemExit):  # of the handler that Ray sets
                raise before_anything(signal.SIGTERM) from None
            if isinstance(e, (OSError, RuntimeError, ValueError, RayError)):
                raise _no_connection(address, e) from e
            raise
        finally:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, handler)

    @property
    def has_gpus(self) -> bool:
        """Whether a machine of the cluster has a GPU."""
        return bool(ray.cluster_resources().get("GPU", 0))

    @property
    def host(self) -> str:
        """Address of the machine with the head of the cluster."""
        return str(ray.get_runtime_context().gcs_address).rpartition(":")[0]

    def close(self) -> None:
        """Ends the connection, and a cluster that it started."""
        try:
            ray.shutdown()
        finally:
            self._quiet.__exit__(None, None, None)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _no_connection(address: str | None, error: Exception) -> ConfigError:
    if address is not None:
        return no_cluster(address, error)
    return ConfigError(
        f"Ray could not be started on this machine: {first_line(error)}\n"
        "Without Ray, --devices builds with several devices of one machine."
    )
