"""Detects which training library's loop is reading batches.

Accelerate and Lightning change the use of batches without a call to the sampler or the dataset:
Accelerate shares batches among processes and counts epochs, Lightning may need the same batches in
every epoch. Only the functions on the call stack hold this information, so the stack is searched
for them if the library has been imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


def _objects(*packages: str) -> Iterator[Any]:
    """The objects whose methods in ``packages`` are on the call stack, innermost first."""
    if not any(package in sys.modules for package in packages):
        return
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if any(name == package or name.startswith(f"{package}.") for package in packages):
            owner = frame.f_locals.get("self")
            if owner is not None:
                yield owner
        frame = frame.f_back  # type: ignore[assignment]


def sharing_wrapper() -> str | None:
    """The name of Accelerate's class that shares the batches among processes, or None."""
    for owner in _objects("accelerate.data_loader"):
        kind = type(owner).__name__
        processes = 1
        if kind == "BatchSamplerShard":
            processes = owner.num_processes
        elif kind == "DataLoaderDispatcher":
            processes = owner.state.num_processes
        if processes > 1:
            return kind
    return None


def counted_epoch() -> int | None:
    """The epoch counted by Accelerate's loader if it is reading; None otherwise.

    Accelerate sets a dataset's epoch with one process, but not with several.
    """
    for owner in _objects("accelerate.data_loader"):
        if type(owner).__name__ in ("DataLoaderShard", "DataLoaderDispatcher"):
            return int(owner.iteration)
    return None


def is_overfitting() -> bool:
    """Whether a Lightning ``Trainer(overfit_batches=...)`` is running."""
    for owner in _objects(*_LIGHTNING):
        trainer = getattr(owner, "__dict__", {}).get("trainer")
        if trainer is not None:
            return bool(getattr(trainer, "overfit_batches", 0))
    return False
