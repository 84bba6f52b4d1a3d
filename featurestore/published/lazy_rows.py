"""Rows that are read when they are used, with the interface of a ``float32 [n, D]`` tensor."""

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

# Rows per read when all rows are read: a few MB, independent of the number of rows.
BLOCK = 4096

# Tensors below this size are created without checking the available memory.
_SMALL_BYTES = 64 << 20
# Attributes that depend on shape and dtype alone; a tensor without memory provides them.
_FACTS = frozenset(
    {
        *("dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "is_leaf"),
        *("is_sparse", "itemsize", "layout", "nbytes", "ndim", "ndimension", "nelement", "numel"),
        *("requires_grad", "size", "storage_offset", "stride"),
    }
)
# Attributes of the object itself, which a tensor's must not replace before they are set.
_OWN = frozenset({"shape", "dtype", "device"})
_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow", "rmatmul"),
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs"),
)


class LazyRows(ABC):
    """A base class for rows on disk that code written for tensors can use.

    Three kinds of use read different amounts:

    - no rows: ``shape``, ``dtype``, ``device``, ``ndim``, ``size()``, ``numel()``, ``len`` and the
      other properties that depend on shape and dtype alone;
    - only the selected rows: every kind of indexing that selects rows (``x[3]``, ``x[5:9]``,
      ``x[:8, :3]``, ``x[0, 0]``, lists, arrays, masks), ``index_select(0, ...)``, iteration, and
      therefore ``TensorDataset`` and ``DataLoader``;
    - **all rows, into memory, each time**: every other attribute of a tensor (``to``, ``float``,
      ``numpy``, ``contiguous``, ``clone``, ``mean``, ``x[None]`` ...), arithmetic, and functions of
      torch and NumPy (``torch.cat``, ``torch.as_tensor``, ``numpy.asarray``), see :meth:`tensor`.

    The rows are read-only: there are no in-place methods. The object is not an instance of
    ``torch.Tensor``; :meth:`tensor` returns one.

    Attributes:
        shape: the shape, ``torch.Size((n, D))``.
        dtype: the data type, ``torch.float32``.
        device: the device of the rows after reading, the CPU.
    """

    shape: torch.Size
    dtype = torch.float32
    device = torch.device("cpu")
    is_cpu, is_cuda, is_meta = True, False, False

    @abstractmethod
    def take(self, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 ``[k, D]``, a copy of the rows at ``positions`` (``[k]``, from 0)."""

    def tensor(self) -> torch.Tensor:
        """All rows as one tensor of ``n * D * 4`` bytes.

        The clean views of one MM-IMDb feature take 0.1 GB or less; all 70 views of ``blip2_text``
        take 14.9 GB. A tensor that does not fit into memory is refused before rows are read.

        Raises:
            ConfigError: the tensor takes more memory than is available.
        """
        wanted = self.shape.numel() * self.dtype.itemsize
        if wanted > _SMALL_BYTES and wanted > (free := available_bytes()):
            raise ConfigError(
                f"A tensor of all rows takes {wanted:,} bytes, and {free:,} are available.\n"
                "Index the rows, or pass them to a TensorDataset unchanged: both read only rows "
                "of a batch."
            )
        out = torch.empty(self.shape, dtype=self.dtype)
        for positions in self.blocks():
            out[int(positions[0]) : int(positions[-1]) + 1] = self.take(positions)
        return out

    def blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yields the positions of all rows in order, ``BLOCK`` at a time."""
        for start in range(0, len(self), BLOCK):
            yield np.arange(start, min(start + BLOCK, len(self)))

    def index_select(self, dim: int, index: torch.Tensor) -> torch.Tensor:
        """As ``torch.Tensor.index_select``; only ``dim=1`` reads all rows."""
        return self[index] if dim in (0, -2) else self.tensor().index_select(dim, index)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        for positions in self.blocks():
            yield from self.take(positions)

    def __getitem__(self, item: Any) -> torch.Tensor:
        """As a tensor's indexing; reads only the rows that ``item`` selects."""
        key, columns = (item[0], item[1:]) if isinstance(item, tuple) and item else (item, ())
        rows = _named_rows(key, len(self))
        if rows is None:
            return self.tensor()[item]
        positions, within = rows
        return self.take(positions)[(within, *columns)]

    def __getattr__(self, name: str) -> Any:
        """An attribute of ``torch.Tensor``; all rows are read if it needs their values.

        Methods read rows when they are called, not when they are looked up.
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
    """Calls a method of ``torch.Tensor`` on all rows."""
    return getattr(rows.tensor(), name)(*args, **kwargs)


def _changes_its_argument(func: Any) -> bool:
    name: str = getattr(func, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _with_rows_read(value: Any, read: Callable[[LazyRows], Any]) -> Any:
    """Replaces every ``LazyRows`` in arguments, lists, tuples and dictionaries by its rows."""
    if isinstance(value, LazyRows):
        return read(value)
    if type(value) in (list, tuple):
        return type(value)(_with_rows_read(each, read) for each in value)
    if type(value) is dict:
        return {name: _with_rows_read(each, read) for name, each in value.items()}
    return value


def _named_rows(key: Any, rows: int) -> tuple[npt.NDArray[np.int64], Any] | None:
    """The rows that the first part of an index selects, and the index that selects them from these.

    None if all rows are needed, or if only torch can interpret the index.

    Raises:
        IndexError: a row is out of range, or the index does not select rows.
    """
    if key is None or key is Ellipsis or isinstance(key, bool | np.bool_):
        return None
    if isinstance(key, tuple) and not key:  # x[()] is all of x
        return None
    if isinstance(key, slice):
        return np.arange(*key.indices(rows)), slice(None)
    numbers = np.asarray(key.detach().cpu() if isinstance(key, torch.Tensor) else key)
    if numbers.dtype == np.uint8:  # torch interprets it as a mask
        return None
    if numbers.dtype == bool:
        if numbers.shape != (rows,):
            return None
        numbers = np.flatnonzero(numbers)
    if numbers.size == 0:
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu":
        raise IndexError(f"rows are named by numbers, slices and masks, found {numbers.dtype}")
    outside = (numbers < -rows) | (numbers >= rows)
    if outside.any():
        raise IndexError(f"row {numbers[outside].flat[0]} is out of range for {rows} rows")
    positions = np.where(numbers < 0, numbers + rows, numbers).astype(np.int64).reshape(-1)
    within = torch.arange(positions.size).reshape(numbers.shape)
    return positions, within if numbers.ndim else 0


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: LazyRows, *others: Any) -> Any:
        return getattr(self.tensor(), name)(*_with_rows_read(others, LazyRows.tensor))

    apply.__name__ = name
    return apply


# Set on the class, because Python does not look up operators through __getattr__.
for _name in _OPERATORS:
    setattr(LazyRows, f"__{_name}__", _operator(f"__{_name}__"))
