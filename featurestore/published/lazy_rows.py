"""Rows that are read when they are asked for, with the interface of a ``float32 [n, D]`` tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.errors import ConfigError
from featurestore.system.limits import available_bytes

# Rows read at once where all of them are wanted: a few MB, whatever their number.
BLOCK = 4096

# Below this, whether a tensor fits is not worth the question.
_SMALL_BYTES = 64 << 20
# What follows from shape and dtype alone; torch answers it for a tensor without memory.
_FACTS = frozenset(
    {
        *("dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "is_leaf"),
        *("is_sparse", "itemsize", "layout", "nbytes", "ndim", "ndimension", "nelement", "numel"),
        *("requires_grad", "size", "storage_offset", "stride"),
    }
)
# Found on the object itself; a tensor's must not replace them where they are not set yet.
_OWN = frozenset({"shape", "dtype", "device"})
_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow", "rmatmul"),
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs"),
)


class LazyRows(ABC):
    """A base for rows on disk that code written for tensors can use.

    Three kinds of use, by what they read:

    - nothing: ``shape``, ``dtype``, ``device``, ``ndim``, ``size()``, ``numel()``, ``len`` and the
      other facts of a tensor;
    - only the rows in question: indexing of every kind that names rows (``x[3]``, ``x[5:9]``,
      ``x[:8, :3]``, ``x[0, 0]``, lists, arrays, masks), ``index_select(0, ...)``, iteration, and
      with them ``TensorDataset`` and ``DataLoader``;
    - **all of them, into memory, each time**: every other attribute of a tensor (``to``, ``float``,
      ``numpy``, ``contiguous``, ``clone``, ``mean``, ``x[None]`` ...), arithmetic, and functions of
      torch and NumPy (``torch.cat``, ``torch.as_tensor``, ``numpy.asarray``), see :meth:`tensor`.

    The rows cannot be changed: there are no methods that work in place. They are no instance of
    ``torch.Tensor`` either; :meth:`tensor` gives one.

    Attributes:
        shape: ``torch.Size((n, D))``.
        dtype: ``torch.float32``.
        device: the CPU, where rows are read to.
    """

    shape: torch.Size
    dtype = torch.float32
    device = torch.device("cpu")
    is_cpu, is_cuda, is_meta = True, False, False

    @abstractmethod
    def take(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 ``[k, D]``, a copy of the rows at ``positions`` (``[k]``, from 0)."""

    def tensor(self) -> torch.Tensor:
        """All rows as one tensor, ``n * D * 4`` bytes of memory.

        Clean views of one MM-IMDb feature take 0.1 GB or less; all 70 views of ``blip2_text``,
        14.9 GB. What does not fit is refused before it is read.

        Raises:
            ConfigError: it takes more memory than there is.
        """
        wanted = self.shape.numel() * self.dtype.itemsize
        if wanted > _SMALL_BYTES and wanted > (free := available_bytes()):
            raise ConfigError(
                f"A tensor of all rows takes {wanted:,} bytes, and {free:,} are available.\n"
                "Index the rows, or give them to a TensorDataset as they are: both read what a "
                "batch needs."
            )
        out = torch.empty(self.shape, dtype=self.dtype)
        for positions in self.blocks():
            out[int(positions[0]) : int(positions[-1]) + 1] = self.take(positions)
        return out

    def blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """The positions of all rows in order, some at a time."""
        for start in range(0, len(self), BLOCK):
            yield np.arange(start, min(start + BLOCK, len(self)))

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """As a tensor's; reads all rows for the columns (``dim=1``) only."""
        return self[index] if dim in (0, -2) else self.tensor().index_select(dim, index)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        for positions in self.blocks():
            yield from self.take(positions)

    def __getitem__(self, item: Any) -> torch.Tensor:
        """As a tensor's, reading the rows that ``item`` names."""
        key, columns = (item[0], item[1:]) if isinstance(item, tuple) and item else (item, ())
        rows = _named_rows(key, len(self))
        if rows is None:
            return self.tensor()[item]
        positions, within = rows
        return self.take(positions)[(within, *columns)]

    def __getattr__(self, name: str) -> Any:
        """An attribute of tensors: a fact, or something of :meth:`tensor`, which is read then.

        Methods read when they are called, not when they are looked up.
        """
        if name.startswith("_") or name in _OWN or not hasattr(torch.Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name.endswith("_"):
            raise AttributeError(
                f"{name} would change rows that are on disk; clone() gives a tensor to change."
            )
        if name in _FACTS:
            return getattr(torch.empty(self.shape, dtype=self.dtype, device="meta"), name)
        if callable(getattr(torch.Tensor, name)):
            return partial(_call, self, name)
        return getattr(self.tensor(), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("rows are read from disk: there is no array without a copy")
        return self.tensor().numpy().astype(dtype or np.float32, copy=False)

    def __array_function__(self, func: Any, _types: Any, args: Any, kwargs: Any) -> Any:
        return func(*_with_rows_read(args, np.asarray), **_with_rows_read(kwargs, np.asarray))

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(kwargs.get("out"), LazyRows):
            raise TypeError("out= must be a tensor: rows on disk cannot be changed.")
        if args and isinstance(args[0], LazyRows) and _changes_its_argument(func):
            raise TypeError(f"{func.__name__} would change rows that are on disk; clone() them.")
        return func(
            *_with_rows_read(args, LazyRows.tensor), **_with_rows_read(kwargs, LazyRows.tensor)
        )

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.tensor().__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return torch.empty(0).__dlpack_device__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype}, read when used)"


def _call(rows: LazyRows, name: str, *args: Any, **kwargs: Any) -> Any:
    """A method of tensors, on the rows read as one."""
    return getattr(rows.tensor(), name)(*args, **kwargs)


def _changes_its_argument(func: Any) -> bool:
    name: str = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _with_rows_read(value: Any, read: Callable[[LazyRows], Any]) -> Any:
    """Arguments with everything lazy in them read, in lists, tuples and dictionaries too."""
    if isinstance(value, LazyRows):
        return read(value)
    if type(value) in (list, tuple):
        return type(value)(_with_rows_read(each, read) for each in value)
    if type(value) is dict:
        return {name: _with_rows_read(each, read) for name, each in value.items()}
    return value


def _named_rows(key: Any, rows: int) -> tuple[npt.NDArray[np.int64], Any] | None:
    """The rows that the first part of an index names, and the index of the same among them.

    None where all rows are needed, or where torch has to decide what it means.

    Raises:
        IndexError: a row that there is not, or something that names no row.
    """
    if key is None or key is Ellipsis or isinstance(key, bool | np.bool_):
        return None
    if isinstance(key, tuple) and not key:  # x[()] is all of x
        return None
    if isinstance(key, slice):
        return np.arange(*key.indices(rows)), slice(None)
    found = np.asarray(key.detach().cpu() if isinstance(key, torch.Tensor) else key)
    if found.dtype == np.uint8:  # to torch a mask
        return None
    if found.dtype == bool:
        if found.shape != (rows,):
            return None
        found = np.flatnonzero(found)
    if found.size == 0:
        found = found.astype(np.int64)
    if found.dtype.kind not in "iu":
        raise IndexError(f"rows are named by numbers, slices and masks, found {found.dtype}")
    outside = (found < -rows) | (found >= rows)
    if outside.any():
        raise IndexError(f"row {found[outside].flat[0]} is out of range for {rows} rows")
    positions = np.where(found < 0, found + rows, found).astype(np.int64).reshape(-1)
    within = torch.arange(positions.size).reshape(found.shape)
    return positions, within if found.ndim else 0


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: LazyRows, *others: Any) -> Any:
        return getattr(self.tensor(), name)(*_with_rows_read(others, LazyRows.tensor))

    apply.__name__ = name
    return apply


# Set, not defined: Python looks operators up on the class and never asks __getattr__.
for _name in _OPERATORS:
    setattr(LazyRows, f"__{_name}__", _operator(f"__{_name}__"))
