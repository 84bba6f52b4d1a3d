"""Labels for the views of a batch: those of the sample, or with the noise of each view."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.imdb.label_files import require_width
from featurestore.imdb.label_sets import (
    names_of,
    read_any_ids,
    read_any_labels,
    require_multi_label,
)
from featurestore.imdb.labels import augmented_label
from featurestore.imdb.labels_manifest import REDO as REDO_AUGMENTED
from featurestore.imdb.labels_manifest import (
    label_columns,
    manifest_path,
    read_labels_manifest,
    require_same_base,
    seed_of,
)
from featurestore.imdb.materialize import default_prefix
from featurestore.labels.label_set import LabelSet
from featurestore.labels.record import REDO
from featurestore.reading.npy import map_npy
from featurestore.reading.npy_folder import NpyFolder
from featurestore.reading.sources import FeatureSource
from featurestore.reading.views import View
from featurestore.records import stems_sha256
from featurestore.storage.digests import file_sha256

KINDS = ("base", "augmented")


class Labels(Protocol):
    """Labels of a batch."""

    def take(self, samples: npt.NDArray[np.int64], view: View) -> npt.NDArray[Any]:
        """Labels of ``samples``, int64 ``[B]``, for the rows that ``FeatureRows.take`` reads."""

    def check(self) -> None:
        """Reads all labels once and compares them with the recorded digest.

        Raises:
            InputError: the labels differ from what was written, or no digest was recorded.
            StorageError: the labels cannot be read.
        """


class BaseLabels:
    """One row of labels for each sample, the same for all its views."""

    def __init__(self, labels: LabelSet) -> None:
        """Takes the labels of all samples."""
        self._targets = labels.targets()

    def take(self, samples: npt.NDArray[np.int64], view: View) -> npt.NDArray[Any]:  # noqa: ARG002
        """float32 ``[B, C]``, int64 ``[B]`` or float32 ``[B]``, from ``LabelSet.targets``."""
        targets: npt.NDArray[Any] = self._targets[samples]
        return targets

    def check(self) -> None:
        """Does nothing: the labels are in memory, and were compared when they were read."""


class AugmentedLabels:
    """A row of noisy labels for each view of a sample, read from a file or computed on first use.

    Computing a row takes about 20 µs, and each row is computed once per process.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.float32],
        base: npt.NDArray[np.float32] | None = None,
        seed: int = 0,
        written: tuple[Path, str | None] | None = None,
    ) -> None:
        """Takes all rows, or the clean rows and an empty array for all.

        Args:
            rows: float32 ``[N, V, C]``.
            base: clean labels, float32 ``[N, C]``, from which to fill ``rows``, or None.
            seed: the seed of the noise.
            written: the file that ``rows`` is mapped from, and its hex SHA-256 or None.
        """
        self._rows, self._base, self._seed, self._written = rows, base, seed, written
        self._made = np.zeros(rows.shape[:2], bool) if base is not None else None

    def take(self, samples: npt.NDArray[np.int64], view: View) -> npt.NDArray[np.float32]:
        """The labels of the views that ``FeatureRows.take`` reads, a copy.

        Returns:
            float32 ``[B, C]``; ``[B, 2, C]`` for two views each, ``[B, V, C]`` for ``all``; for
            ``mean`` the mean over all views, as for the features.
        """
        which = np.arange(self._rows.shape[1]) if isinstance(view, str) else np.asarray(view)
        rows = samples[:, None] if isinstance(view, str) or which.ndim == 2 else samples
        self._make(*np.broadcast_arrays(rows, which))
        labels: npt.NDArray[np.float32] = self._rows[rows, which]
        if isinstance(view, str) and view == "mean":
            labels = labels.mean(axis=1, dtype=np.float32)
        return labels

    def check(self) -> None:
        """Compares the file, if the labels were read from one, with its digest.

        Raises:
            InputError: the file differs from what was written, or no digest was recorded.
            StorageError: the file cannot be read.
        """
        if self._written is None:
            return
        path, digest = self._written
        if digest is None:
            raise InputError(f"The manifest of {path} holds no digest to compare with.")
        actual = file_sha256(path)
        if actual != digest:
            raise InputError(
                f"{path} is not what was written: expected SHA-256 {digest[:16]}…, found "
                f"{actual[:16]}….\n{REDO_AUGMENTED} {path.parent}"
            )

    def _make(self, rows: npt.NDArray[np.int64], which: npt.NDArray[np.int64]) -> None:
        if self._made is None or self._base is None:
            return
        lacking = np.flatnonzero(~self._made[rows, which])
        for i, v in zip(rows.flat[lacking].tolist(), which.flat[lacking].tolist(), strict=True):
            self._rows[i, v] = augmented_label(self._base[i], i, v, self._seed)
            self._made[i, v] = True


def open_labels(kind: str, labels_dir: Path | None, source: FeatureSource) -> Labels | None:
    """The labels of a data set: one row per sample, or one noisy row per view.

    Args:
        kind: ``base`` for one row per sample; ``augmented`` for noisy rows of every view, from
            their file beside materialized features or in ``labels_dir``, else computed from the
            rows per sample with the seed of the views.
        labels_dir: the folder that the ``labels`` command wrote, or None.
        source: the store or folder of features that the labels must match.

    Returns:
        The labels; None if ``kind`` is ``base`` and there is no ``labels_dir``: a data set without
        labels.

    Raises:
        ConfigError: the kind is unknown, there is no source of augmented labels, or the base labels
            are not multi-label.
        InputError: labels are missing, damaged, or of other samples or views.
    """
    if kind not in KINDS:
        raise ConfigError(f"labels is one of {', '.join(KINDS)}, found {kind!r}.")
    if kind == "augmented":
        beside = source.path if isinstance(source, NpyFolder) else None
        for folder in (beside, labels_dir):
            if folder is not None and manifest_path(folder, _prefix(source)).is_file():
                return _open_augmented(folder, labels_dir, source)
    if labels_dir is None:
        if kind == "base":
            return None
        raise ConfigError(
            "labels='augmented' needs labels_dir, which `labels` wrote: the noise is added to them."
        )
    clean = read_any_labels(labels_dir, source.stems)
    if kind == "base":
        return BaseLabels(clean)
    require_multi_label(clean)
    base = clean.rows
    # Not zeros: pages that are never written take no memory.
    room = np.empty((len(base), source.spec.views, base.shape[1]), np.float32)
    return AugmentedLabels(room, base, source.seed)


def _prefix(source: FeatureSource) -> str:
    if isinstance(source, NpyFolder):
        return source.prefix
    return default_prefix(source.fingerprint.get("preset"))


def _require_same_samples(folder: Path, stated: str | None, source: FeatureSource) -> None:
    """Compares the labels' hash of stems; without one, as published, the list in ``folder``."""
    if stated is None and (folder / names_of(folder)[1]).is_file():
        stated = stems_sha256(read_any_ids(folder))
    if stated not in (None, source.stems_sha256 or stems_sha256(source.stems)):
        raise InputError(
            f"The augmented labels in {folder} are of other samples than {source.path}, or in "
            f"another order.\n{REDO}, with --augment"
        )


def _open_augmented(
    folder: Path, labels_dir: Path | None, source: FeatureSource
) -> AugmentedLabels:
    """Maps ``P_labels.npy`` if its manifest matches the features' rows, seed and clean labels."""
    prefix = _prefix(source)
    facts, spec = read_labels_manifest(folder, prefix) or {}, source.spec
    _require_same_samples(folder, facts.get("stems_sha256"), source)
    if seed_of(facts) != source.seed:
        raise InputError(
            f"The augmented labels in {folder} are of another seed than {source.path}: expected "
            f"{source.seed}, found {seed_of(facts)}.\n"
            f"{REDO_AUGMENTED} {folder} --seed {source.seed}"
        )
    require_same_base(folder, facts, labels_dir, source.stems_sha256 or stems_sha256(source.stems))
    path = folder / f"{prefix}_labels.npy"
    stated = facts.get("original_rows"), facts.get("views_per_sample")
    mapped = map_npy(path)
    columns = label_columns(facts)
    if columns is None:  # of MM-IMDb
        require_width(path, mapped.shape)
        columns = len(CLASS_NAMES)
    wanted = (spec.samples * spec.views, columns)
    if stated != (spec.samples, spec.views) or mapped.shape != wanted or mapped.dtype != np.float32:
        raise InputError(
            f"{path} holds {mapped.dtype} {mapped.shape} of {stated[0]} samples x {stated[1]} "
            f"views;\nexpected float32 {wanted} of {spec.samples} x {spec.views}.\n"
            f"{REDO_AUGMENTED} {folder}"
        )
    rows = np.asarray(mapped).reshape(spec.samples, spec.views, columns)
    return AugmentedLabels(rows, written=(path, facts.get("sha256", {}).get(path.name)))
