"""Lazy rows of one split, which the published training code reads from ``domain_data``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from featurestore.errors import InputError
from featurestore.published.lazy_rows import LazyRows
from featurestore.reading.rows import FeatureRows
from featurestore.storage.moments import Moments, Scale, merge, moments_of
from featurestore.training.collate import Batch


class DomainRows(LazyRows):
    """One domain of one split, like a ``float32 [n, D]`` tensor that is read when it is used.

    See :class:`LazyRows` for the supported interface, and for the uses that read all rows.
    """

    def __init__(
        self,
        rows: FeatureRows | npt.NDArray[np.float32],
        samples: npt.NDArray[np.int64],
        mode: str | int,
        scale: Scale | None = None,
        repeats: int = 1,
    ) -> None:
        """Selects the rows of some samples.

        Args:
            rows: a feature's rows, or float32 ``[N, D]`` with one row for each sample (labels).
            samples: int64 indices of the split's samples.
            mode: a view's number, ``mean``, or ``all``: V rows for each sample, sample-major.
            scale: the scale applied to rows after reading, or None.
            repeats: the number of consecutive copies of a sample's row, to align it with ``all``.
        """
        self._rows, self._samples, self._scale = rows, samples, scale
        self._mode = mode
        self._each = rows.views if isinstance(rows, FeatureRows) and mode == "all" else repeats
        dim = rows.dim if isinstance(rows, FeatureRows) else rows.shape[1]
        self.shape = torch.Size((len(samples) * self._each, int(dim)))

    def take(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 ``[k, D]``, a copy of the rows at ``positions`` (``[k]``, from 0)."""
        samples = self._samples[positions // self._each]
        if not isinstance(self._rows, FeatureRows):
            out = self._rows[samples]
        elif self._mode == "all":
            out = self._rows.take(samples, positions % self._each)
        else:
            out = self._rows.take(samples, self._mode)
        return torch.from_numpy(out if self._scale is None else self._scale.apply(out))

    def moments(self) -> Moments:
        """The moments of all rows, computed block by block."""
        return merge(moments_of(self.take(positions).numpy()) for positions in self.blocks())


class DomainDataset(Dataset[dict[str, torch.Tensor]]):
    """Aligned rows of several domains.

    Attributes:
        domain_data: rows by domain name, :class:`DomainRows` or tensors ``[n, D]``.
    """

    def __init__(self, domain_data: Mapping[str, LazyRows | torch.Tensor]) -> None:
        """Takes domains of equal length.

        Raises:
            InputError: there are no domains, or their lengths differ.
        """
        self.domain_data = dict(domain_data)
        lengths = {name: len(rows) for name, rows in self.domain_data.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"Domains are one or more of one length, found {lengths}.")

    def __len__(self) -> int:
        return len(next(iter(self.domain_data.values())))

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """One row of every domain, float32 ``[D]`` each."""
        return {name: rows[item] for name, rows in self.domain_data.items()}

    def __getitems__(self, items: list[int]) -> Sequence[Any]:
        """Reads a whole batch at once; torch's collation gives float32 ``[B, D]`` per domain."""
        if type(self).__getitem__ is not DomainDataset.__getitem__:
            return [self[item] for item in items]  # a subclass changes each item
        positions = torch.tensor(items, dtype=torch.int64)
        return Batch({name: rows[positions] for name, rows in self.domain_data.items()})
