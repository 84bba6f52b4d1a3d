"""How the build of a worker ended, as plain values that can be sent between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consumers.build_report import BuildReport
from featurestore.errors import InterruptedBuildError, ManyViewsError, WorkerError
from featurestore.system.refusals import explained
from featurestore.wording import first_line

_USAGE = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a worker's build.

    Attributes:
        error: the class name of the error that ended it; empty if the store is complete.
        message: the error's message.
        exit_code: exit status of the command line for the error; 0 without one.
        truncated: see :class:`consumers.build_report.BuildReport`.
        replaced: see :class:`consumers.build_report.BuildReport`.
        scanned: the facts of the event ``scanned``.
    """

    error: str = ""
    message: str = ""
    exit_code: int = 0
    truncated: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, int] = field(default_factory=dict)
    scanned: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, report: BuildReport, scanned: Mapping[str, Any]) -> Outcome:
        """The outcome of a build that saw the store complete."""
        truncated, replaced = dict(report.truncated), dict(report.replaced)
        return cls(truncated=truncated, replaced=replaced, scanned=scanned)

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """The outcome of a build that raised ``error``."""
        known = error if isinstance(error, ManyViewsError) else explained(error)
        if known is not None:
            return cls(type(known).__name__, str(known), known.exit_code)
        message = f"{type(error).__name__}: {first_line(error)}\nThis is a defect."
        return cls(type(error).__name__, message, 1)

    @property
    def was_stopped(self) -> bool:
        """Whether a signal ended the build."""
        return self.error == InterruptedBuildError.__name__


def first_failure(failures: Sequence[tuple[str, Outcome]]) -> WorkerError:
    """The error of a build all of whose workers failed.

    Args:
        failures: each worker in words, and its outcome; at least one.
    """
    # A worker that was refused says less than one that started, and met an error.
    who, outcome = min(failures, key=lambda failure: failure[1].exit_code == _USAGE)
    return WorkerError(who, outcome.error, outcome.message, outcome.exit_code)
