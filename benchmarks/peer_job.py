"""The parts of a compared job, the environments of all jobs, and running a job.

Each run has a separate folder. The program's permanent files are in its ``out``; the rest is
scratch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.environments import environment
from benchmarks.observing import Blow, Marks, Observed, file_marks, observe

Rows = dict[str, npt.NDArray[np.float32]]

TORCH = ["torch==2.13.0", "torchvision==0.28.0", "transformers==5.23.0"]
PIXELS = ["numpy==2.4.6", "pillow==12.3.0"]
ENVIRONMENTS = {
    "pytorch": [*TORCH, *PIXELS],
    "ray": ["ray[data]==2.60.0", *TORCH, *PIXELS],
    "sentence-transformers": [
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
        "numpy==2.4.6",
    ],
    # With its own requirements as it states them; only what could move on is held.
    "clip-retrieval": [
        "clip-retrieval==2.45.0",
        "torch==2.13.0",
        "torchvision==0.28.0",
        "numpy==1.26.4",
        "pillow==12.3.0",
        "open-clip-torch==2.32.0",
        "transformers==4.57.6",
        "sentence-transformers==2.7.0",
        "webdataset==0.2.111",
        "pyarrow==15.0.2",
        "pandas==2.3.3",
    ],
}


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done.

    Attributes:
        data: folder of posters and synopses.
        models: folder with the checkpoints ``clip``, ``sentence`` and ``open_clip``.
        shards: folder of tar files with the rendered views; for clip-retrieval alone.
        views: per sample.
        damaged: keys of the rows whose inputs were cut.
    """

    data: Path
    models: Path
    shards: Path
    views: int
    damaged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Job:
    """A contender.

    Attributes:
        name: as tables have it.
        modality: ``image`` or ``text``.
        environment: a key of ``ENVIRONMENTS``; empty for this interpreter.
        command: of a work and the run's folder, without the interpreter.
        rows: what it left in that folder, by key: ``[rows, D]``.
        worker: whether a command line below the first process is a worker's.
        marks: of the run's folder.
        logs: parts of paths below ``out`` that name what is no result.
        speed: samples it does while a single process does one, about; sets the length of runs.
    """

    name: str
    modality: str
    environment: str
    command: Callable[[Work, Path], list[str]]
    rows: Callable[[Work, Path], Rows]
    worker: Callable[[str], bool] | None
    marks: Callable[[Path], Marks] = lambda run: file_marks(run / "marks")
    logs: tuple[str, ...] = ()
    speed: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether it is manyviews."""
        return not self.environment

    def interpreter(self) -> str:
        """The Python of its environment, which is made if need be."""
        if self.is_ours:
            return sys.executable
        return str(environment(self.environment, ENVIRONMENTS[self.environment]))


def run(
    job: Job, work: Work, folder: Path, blow: Blow | None = None, limit_s: float = 600
) -> Observed:
    """Runs a job once; an existing folder is resumed, if the job can."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "marks").unlink(missing_ok=True)
    command = [job.interpreter(), *job.command(work, folder)]
    return observe(command, job.marks(folder), limit_s, blow)
