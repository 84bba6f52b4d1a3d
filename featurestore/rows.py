"""All rows of one feature as they are trained from, out of a store or out of materialized files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import InputError
from featurestore.moments import Scale
from featurestore.npy import map_npy
from featurestore.reader import map_chunks
from featurestore.store import FeatureStore

View = int | str | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """The rows of a feature, mapped from disk and scaled when they are read.

    Attributes:
        flat: float32 ``[N * V or more, D]``, read-only; row of (sample, view) is
            ``sample * V + view``.
        samples: N.
        views: V.
        scale: applied to what is read, or None.
        reopen: a function and its arguments that give these rows again, in another process.
    """

    flat: npt.NDArray[np.float32]
    samples: int
    views: int
    scale: Scale | None
    reopen: tuple[Callable[..., FeatureRows], tuple[Any, ...]]

    def __reduce__(self) -> tuple[Callable[..., FeatureRows], tuple[Any, ...]]:
        # A pickle must carry where the rows are, not gigabytes of them.
        return self.reopen

    @property
    def dim(self) -> int:
        """D."""
        return int(self.flat.shape[1])

    def take(self, samples: npt.NDArray[np.int64], view: View) -> npt.NDArray[np.float32]:
        """Reads rows; the result is a copy of its own.

        Args:
            samples: int64 ``[B]``.
            view: a view's number for all, int64 ``[B]`` numbers, ``all``, or ``mean`` over all
                views, taken after scaling.

        Returns:
            float32 ``[B, D]``; ``[B, V, D]`` for ``all``.
        """
        if isinstance(view, str):
            whole = self.flat[: self.samples * self.views].reshape(self.samples, self.views, -1)
            out = whole.take(samples, axis=0)
        else:
            out = self.flat.take(samples * self.views + view, axis=0)
        if self.scale is not None:
            self.scale.apply(out)
        return out.mean(axis=1) if isinstance(view, str) and view == "mean" else out


def store_rows(store: FeatureStore, feature: str, scale: Scale | None) -> FeatureRows:
    """The rows of one feature of a complete store.

    Raises:
        InputError: the store is not complete.
        CorruptStoreError: a chunk's file is missing or not of its size.
    """
    store.require_complete()
    spec = store.spec
    mapped = map_chunks(store.path, spec.feature(feature), range(spec.chunks))
    flat = mapped.reshape(-1, spec.dims[feature])
    reopen = (_reopen_store_rows, (store.path, feature, scale))
    return FeatureRows(flat, spec.samples, spec.views, scale, reopen)


def _reopen_store_rows(path: Path, feature: str, scale: Scale | None) -> FeatureRows:
    return store_rows(FeatureStore(path), feature, scale)


def read_manifest(folder: Path, prefix: str) -> dict[str, Any]:
    """The manifest of materialized files, which is written when all of them are there.

    Raises:
        InputError: it is missing or not one.
    """
    path = folder / f"{prefix}_manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {path.name}, so its files may be half written.\n"
            "Run `materialize` again; the manifest is written last."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"Could not read {path}: {str(e)[:200]}") from e
    if not isinstance(manifest, dict) or not {"original_rows", "views_per_sample"} <= set(manifest):
        raise InputError(f"{path} is not a manifest of materialized files.")
    return manifest


def npy_rows(folder: Path, prefix: str, feature: str) -> FeatureRows:
    """The rows of one materialized feature, as they are: the z-score is in the file.

    Raises:
        InputError: file or manifest is missing, or they do not fit each other.
    """
    manifest = read_manifest(folder, prefix)
    samples, views = manifest["original_rows"], manifest["views_per_sample"]
    path = folder / f"{prefix}_{feature}.npy"
    flat = map_npy(path)
    if flat.ndim != 2 or flat.dtype != np.float32 or len(flat) != samples * views:
        raise InputError(
            f"{path} holds {flat.dtype} {flat.shape}; its manifest speaks of {samples} samples "
            f"with {views} views.\nRun `materialize` again."
        )
    return FeatureRows(flat, samples, views, None, (npy_rows, (folder, prefix, feature)))
