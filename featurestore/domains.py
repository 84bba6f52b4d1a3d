"""Lazy rows of one split: what the published training code finds in ``domain_data``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from featurestore.moments import Moments, Scale, merge, moments_of
from featurestore.rows import FeatureRows

# Rows read at once where all of them are wanted: a few MB, whatever the split's size.
_BLOCK = 4096


class DomainRows:
    """One domain of one split: rows that are read when they are asked for.

    Behaves like a ``float32 [n, D]`` tensor for ``len``, ``shape`` and indexing by number, slice,
    list or integer array; ``numpy.asarray`` reads all of it.

    Attributes:
        shape: (n, D).
    """

    def __init__(
        self,
        rows: FeatureRows | npt.NDArray[np.float32],
        samples: npt.NDArray[np.int64],
        mode: str | int,
        scale: Scale | None = None,
        repeats: int = 1,
    ) -> None:
        """Makes a view of ``rows``.

        Args:
            rows: a feature's rows, or float32 ``[N, D]`` with one row for each sample (labels).
            samples: int64 indices of the split's samples.
            mode: a view's number, ``mean``, or ``all``: V rows for each sample, sample-major.
            scale: applied to what is read, or None.
            repeats: how often a sample's row stands in a row, to line up with ``all``.
        """
        self._rows, self._samples, self._scale = rows, samples, scale
        self._mode = mode
        self._each = rows.views if isinstance(rows, FeatureRows) and mode == "all" else repeats
        dim = rows.dim if isinstance(rows, FeatureRows) else rows.shape[1]
        self.shape = (len(samples) * self._each, int(dim))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, item: Any) -> torch.Tensor:
        """Row ``item`` as ``[D]``, or ``[k, D]`` for a slice, list or array; as a tensor would."""
        if isinstance(item, torch.Tensor):
            item = item.numpy()
        positions = np.arange(len(self))[item]
        found = self.take(np.atleast_1d(positions))
        return found if np.ndim(positions) else found[0]

    def take(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 ``[k, D]``, a copy."""
        samples = self._samples[positions // self._each]
        if not isinstance(self._rows, FeatureRows):
            out = self._rows[samples]
        elif self._mode == "all":
            out = self._rows.take(samples, positions % self._each)
        else:
            out = self._rows.take(samples, self._mode)
        return torch.from_numpy(out if self._scale is None else self._scale.apply(out))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("rows are read from disk: there is no array without a copy")
        return self.take(np.arange(len(self))).numpy().astype(dtype or np.float32, copy=False)

    def moments(self) -> Moments:
        """Moments over all rows, block by block."""
        starts = range(0, len(self), _BLOCK)
        blocks = (np.arange(s, min(s + _BLOCK, len(self))) for s in starts)
        return merge(moments_of(self.take(block).numpy()) for block in blocks)


class DomainDataset(Dataset[dict[str, torch.Tensor]]):
    """Aligned rows of several domains.

    Attributes:
        domain_data: per name its :class:`DomainRows`.
    """

    def __init__(self, domain_data: Mapping[str, DomainRows]) -> None:
        self.domain_data = dict(domain_data)

    def __len__(self) -> int:
        return len(next(iter(self.domain_data.values())))

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """One row of every domain, float32 ``[D]`` each."""
        return {name: rows[item] for name, rows in self.domain_data.items()}

    def __getitems__(self, items: list[int]) -> dict[str, torch.Tensor]:
        """A whole batch, float32 ``[B, D]`` each; :func:`as_it_is` collates it."""
        positions = np.asarray(items, np.int64)
        return {name: rows.take(positions) for name, rows in self.domain_data.items()}


def as_it_is(batch: Any) -> Any:
    """Collates what is a batch already."""
    return batch
