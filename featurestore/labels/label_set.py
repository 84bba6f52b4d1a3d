"""The labels of a collection's samples: several classes each, one class each, or a number each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["multi-label", "class", "value"]

KINDS: tuple[str, ...] = get_args(Kind)
MULTI_LABEL: Kind = "multi-label"
ONE_CLASS: Kind = "class"
VALUE: Kind = "value"
NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of all samples.

    Attributes:
        kind: ``multi-label``, any number of classes for each sample; ``class``, one class; or
            ``value``, a number.
        classes: the name of each column; of values, the one name of what they measure.
        rows: float32 ``[N, C]``: multi-hot, one-hot, or ``[N, 1]`` of values. The row of a sample
            without a label is NaN.
    """

    kind: Kind
    classes: tuple[str, ...]
    rows: npt.NDArray[np.float32]

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Whether each sample has a label, bool ``[N]``; a multi-label row of zeros is one."""
        return ~np.isnan(self.rows[:, 0])

    def targets(self) -> npt.NDArray[Any]:
        """What a loss is computed with, of all samples.

        Returns:
            float32 ``[N, C]`` of multi-label; int64 ``[N]`` with the number of the class, or -1
            for none; or float32 ``[N]`` of values. Samples without a label are NaN in floats.
        """
        if self.kind == MULTI_LABEL:
            return self.rows
        if self.kind == VALUE:
            return self.rows[:, 0].copy()
        numbers: npt.NDArray[np.int64] = np.where(
            self.known, np.nan_to_num(self.rows).argmax(axis=1), NO_CLASS
        )
        return numbers.astype(np.int64, copy=False)

    def counts(self) -> npt.NDArray[np.int64]:
        """The number of samples of each class, int64 ``[C]``; of values, of those with one."""
        if self.kind == VALUE:
            return np.array([self.known.sum()], np.int64)
        return np.asarray(np.nansum(self.rows, axis=0, dtype=np.float64).round(), np.int64)
