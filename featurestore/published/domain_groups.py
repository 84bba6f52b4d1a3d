"""The published domains of each split, and the sets of domains that form datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.splits import Split
from featurestore.published.domains import DomainDataset, DomainRows
from featurestore.published.gw_module import Domains
from featurestore.reading.rows import FeatureRows
from featurestore.storage.moments import Scale, sample_scale_of

IMAGE, TEXT = "image_latents", "caption_embeddings"
IMAGE_CLEAN, TEXT_CLEAN = "image_latents_clean", "caption_embeddings_clean"
LABELS = "labels"

# In the published order, so that loaders draw the same numbers from torch's generator.
_PAIRED = ((IMAGE, TEXT), (IMAGE_CLEAN,), (TEXT_CLEAN,), (IMAGE, IMAGE_CLEAN), (TEXT, TEXT_CLEAN))
_ALL = (IMAGE, TEXT, IMAGE_CLEAN, TEXT_CLEAN)
_TRAIN_ONLY = ((IMAGE,), (TEXT,))
_LABELLED = ((LABELS,), (IMAGE, TEXT, LABELS), (*_ALL, LABELS))
_VIEW_MODES = ("clean", "view_k", "all", "mean")

Groups = dict[Domains, DomainDataset]


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """The choice of views and of their scaling; see ``datamodule.make_datamodule``."""

    include_labels: bool
    normalize: str
    view_mode: str
    view_k: int

    def check(self, views: int) -> None:
        """Raises ConfigError for an invalid value."""
        if self.normalize not in ("none", "train_split"):
            raise ConfigError(f"normalize is none or train_split, found {self.normalize!r}.")
        if self.view_mode not in _VIEW_MODES:
            raise ConfigError(
                f"view_mode is one of {', '.join(_VIEW_MODES)}, found {self.view_mode!r}."
            )
        if not 0 <= self.view_k < views:
            raise ConfigError(f"view_k is 0 to {views - 1}, found {self.view_k}.")

    @property
    def mode(self) -> str | int:
        """The view policy of ``DomainRows``."""
        return {"clean": 0, "view_k": self.view_k}.get(self.view_mode, self.view_mode)

    @property
    def sparse(self) -> bool:
        """Whether only one view of each sample is read."""
        return isinstance(self.mode, int)


@dataclass(frozen=True, slots=True)
class DomainGroups:
    """Creates the datasets of each split.

    Attributes:
        rows: the features' rows by domain, for the image and the text domain.
        labels: clean labels, float32 ``[N, 23]``, or None.
        options: the choice of views and of their scaling.
    """

    rows: Mapping[str, FeatureRows]
    labels: npt.NDArray[np.float32] | None
    options: ViewOptions

    def of(self, split: Split) -> tuple[Groups, Groups, Groups]:
        """Training, validation and test datasets; single augmented domains in training alone.

        Samples that lack the image or the text are left out: the domains are aligned.

        Raises:
            ConfigError: an option is invalid.
            InputError: there are too few training rows for ``normalize="train_split"``.
        """
        self.options.check(self.rows[IMAGE].views)
        split = Split(*(self._with_inputs(part) for part in (split.train, split.val, split.test)))
        scales = self._scales(split)
        return (
            self._groups(split.train, scales, (*_TRAIN_ONLY, *_PAIRED, _ALL)),
            self._groups(split.val, scales, (*_PAIRED, _ALL)),
            self._groups(split.test, scales, (*_PAIRED, _ALL)),
        )

    def _with_inputs(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The samples that have the input of every domain."""
        for rows in self.rows.values():
            if rows.present is not None:
                samples = samples[rows.present[samples]]
        return samples

    def _scales(self, split: Split) -> dict[str, Scale]:
        """One scale per domain, from the training rows alone; labels are never scaled."""
        if self.options.normalize == "none":
            return {}
        train = self._domains(split.train, {})
        if min(map(len, train.values())) < 2:
            problem = "normalize='train_split' takes a deviation, so at least two training rows;"
            raise InputError(f"{problem} the training split has {len(split.train)}.")
        return {name: sample_scale_of(domain.moments()) for name, domain in train.items()}

    def _domains(
        self, samples: npt.NDArray[np.int64], scales: Mapping[str, Scale]
    ) -> dict[str, DomainRows]:
        mode = self.options.mode
        each = self.rows[IMAGE].views if mode == "all" else 1
        domains = {}
        for name, clean in ((IMAGE, IMAGE_CLEAN), (TEXT, TEXT_CLEAN)):
            domains[name] = DomainRows(self.rows[name], samples, mode, scales.get(name))
            domains[clean] = DomainRows(self.rows[name], samples, 0, scales.get(clean), each)
        return domains

    def _groups(
        self,
        samples: npt.NDArray[np.int64],
        scales: Mapping[str, Scale],
        keys: tuple[tuple[str, ...], ...],
    ) -> Groups:
        domains = self._domains(samples, scales)
        if self.labels is not None:
            each = len(domains[IMAGE]) // max(1, len(samples))
            domains[LABELS] = DomainRows(self.labels, samples, 0, repeats=each)
            keys += _LABELLED
        return {frozenset(k): DomainDataset({n: domains[n] for n in k}) for k in keys}
