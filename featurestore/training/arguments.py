"""How a dataset was asked for: what its copies in other processes open again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.splits import Split, read_split
from featurestore.reading.mapping import Advice
from featurestore.reading.sources import FeatureSource
from featurestore.reading.views import Views
from featurestore.storage.moments import Scale
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount

_PARTS = ("train", "val", "test")
_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of a ``FeatureDataset``, which documents them."""

    store: str
    features: tuple[str, ...] | None
    views: Views
    split: str | None
    split_json: Path | str | None
    labels_dir: Path | str | None
    labels: str
    zscore: str
    bad_samples: str
    missing: str
    seed: int
    dtype: torch.dtype
    prefix: str | None
    advice: Advice

    def __post_init__(self) -> None:
        """Raises ConfigError if the data type or ``missing`` is not supported."""
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype is torch.float32 or torch.bfloat16, found {self.dtype!r}.")
        if self.missing not in ("exclude", "zero"):
            raise ConfigError(f"missing is exclude or zero, found {self.missing!r}.")

    def read_split(self, source: FeatureSource) -> Split | None:
        """The split file's content; None without a split file."""
        return None if self.split_json is None else read_split(self.split_json, source.stems)

    def chosen_features(self, source: FeatureSource) -> tuple[str, ...]:
        """The names of the features to read.

        Raises:
            ConfigError: ``source`` does not hold one of them.
        """
        features = source.features if self.features is None else self.features
        for name in features:
            if name not in source.features:
                held = ", ".join(source.features)
                raise ConfigError(f"{source.path} holds {held}, but not {name!r}.")
        return features

    def chosen_samples(
        self,
        source: FeatureSource,
        split: Split | None,
        chunks: tuple[int, ...] | None,
        present: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.int64]:
        """The samples of the split that are committed and not excluded, int64 ``[n]``.

        Args:
            source: the store or folder.
            split: the split file's content, or None.
            chunks: the committed chunks to read, see ``sources.chosen_chunks``.
            present: whether each sample has the input of each feature, bool ``[N, F]``.

        Raises:
            ConfigError: an argument is invalid.
            InputError: no sample is left, or a chunk is not committed any more.
        """
        indices = self._part(source, split)
        bad = [b.index for b in source.bad_inputs] if self.bad_samples == "exclude" else []
        if bad:
            indices = np.setdiff1d(indices, bad).astype(np.int64)
        if chunks is not None and isinstance(source, FeatureStore):
            indices = indices[source.committed(chunks)[indices]]
        left = indices
        if self.missing == "exclude":
            left = indices[present[indices].all(axis=1)]
        if len(left) == 0:
            advice = ""
            if len(indices):
                advice = (
                    f"\n{amount(len(indices), 'sample')} without the input of a feature left out: "
                    "read fewer features, or keep them with FeatureDataset(missing='zero')."
                )
            what = f"No sample of {source.path} is left for split {self.split!r}."
            raise InputError(what + advice)
        return left

    def _part(self, source: FeatureSource, split: Split | None) -> npt.NDArray[np.int64]:
        """The samples of the requested part of the split, or all samples."""
        if self.bad_samples not in ("exclude", "include"):
            raise ConfigError(f"bad_samples is exclude or include, found {self.bad_samples!r}.")
        if self.split is None:
            return np.arange(source.spec.samples, dtype=np.int64)
        if self.split not in _PARTS:
            raise ConfigError(f"split is one of {', '.join(_PARTS)}, found {self.split!r}.")
        if split is None:
            raise ConfigError(f"split {self.split!r} needs split_json, the file that defines it.")
        return {"train": split.train, "val": split.val, "test": split.test}[self.split]


def listed(features: Iterable[str] | None) -> tuple[str, ...] | None:
    """The names of features as a tuple; raises ConfigError for a single string."""
    if isinstance(features, str):
        raise ConfigError(f"features is a list of names, found {features!r}.")
    return None if features is None else tuple(features)


@dataclass(frozen=True, slots=True)
class Opened:
    """The state of a dataset that is pickled for other processes, and checked there.

    Attributes:
        spec: the store's shape.
        content_crc32c: the checksum of the rows' recorded checksums.
        indices: the chosen samples, int64 ``[len]``. They are stored because the split file may
            have changed by then.
        scales: the scales by feature for ``zscore="train"``, so that workers need not compute them
            again; None for other scales.
    """

    spec: StoreSpec
    content_crc32c: str
    indices: npt.NDArray[np.int64]
    scales: Mapping[str, Scale | None] | None

    def require_shape(self, source: FeatureSource) -> None:
        """Raises InputError if ``source`` has another shape."""
        if source.spec != self.spec:
            raise InputError(
                f"{source.path} has changed since the dataset was created: {source.spec}.\n"
                "Create the dataset again."
            )

    def require_content(self, source: FeatureSource, content_crc32c: str) -> None:
        """Raises InputError if the checksum of ``source`` is another one."""
        if content_crc32c != self.content_crc32c:
            raise InputError(
                f"Rows of {source.path} have changed since the dataset was created.\n"
                "Create the dataset again."
            )
