"""How near the views of a sample stay to its clean view, and to the views of other samples.

A recipe that suits a model moves the views of one sample little, compared with the distance between
samples. Masked words are an example of one that may not: a model that was not trained on the mask
pulls all texts that contain it into one direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.records import Modality, SampleRecord

# Fewer samples say little about the distance between samples.
LEAST_SAMPLES = 8
# Share of the difference between samples below which views count as lost.
_LOST = 0.25
# Clean views of different samples that are nearer than this leave nothing to compare with: those of
# a model with random weights, for example.
_ALIKE = 0.95


@dataclass(frozen=True, slots=True)
class Nearness:
    """Means of cosines of raw rows of one feature.

    Attributes:
        samples: number of samples.
        own: of a view with its sample's clean view.
        others: of two views of the same number of different samples, without view 0.
        clean: of the clean views of different samples.
    """

    samples: int
    own: float
    others: float
    clean: float

    @property
    def kept(self) -> float:
        """The share of the difference between samples that the views keep.

        ``(own - others) / (1 - clean)``: 1 for views that equal their clean view; 0 for views that
        are as near to those of other samples as to their own clean view.
        """
        return (self.own - self.others) / max(1 - self.clean, 1e-9)

    @property
    def is_lost(self) -> bool:
        """Whether views keep so little that the recipe may not suit the model."""
        enough = self.samples >= LEAST_SAMPLES and self.clean < _ALIKE
        return enough and self.kept < _LOST

    def text(self) -> str:
        """The measurements as one line."""
        return (
            f"views keep {self.kept:.0%} of the difference between samples: cosine {self.own:.2f} "
            f"with their clean view, {self.others:.2f} among different samples, whose clean views "
            f"have {self.clean:.2f}"
        )


def advice(modality: Modality | None, recipe: str) -> str:
    """What to do about views that lost the difference between samples.

    Args:
        modality: what the recipe makes views of.
        recipe: its name, maybe with its version.
    """
    if recipe.partition("-")[0] == "mask":
        return (
            'Try name = "drop" in [recipe.text], which leaves words out: few models were trained '
            "on [MASK]."
        )
    if modality == "text":
        return "Try another recipe in [recipe.text], or one that changes less."
    return "Try a weaker recipe in [recipe.image], for example a larger scale of the crops."


class NearnessSums:
    """Collects the measurements of one feature chunk by chunk."""

    def __init__(self) -> None:
        self._samples = 0
        self._own: list[npt.NDArray[np.float64]] = []
        self._sums: npt.NDArray[np.float64] | None = None

    def add(self, block: npt.NDArray[np.float32]) -> None:
        """Adds the rows of samples that have the feature's input, float32 [n, V, D]."""
        wide = block.astype(np.float64)
        lengths = np.linalg.norm(wide, axis=2, keepdims=True)
        unit = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
        self._samples += len(unit)
        self._own.append(np.einsum("nvd,nd->nv", unit[:, 1:], unit[:, 0]))
        total = unit.sum(axis=0)
        self._sums = total if self._sums is None else self._sums + total

    def nearness(self) -> Nearness | None:
        """The measurements; None with fewer than two samples or views."""
        if self._sums is None or self._samples < 2 or len(self._sums) < 2:
            return None
        # The sum over all pairs is the square of the sum of vectors of length 1, which contains
        # each vector with itself.
        n = self._samples
        pairs = (np.einsum("vd,vd->v", self._sums, self._sums) - n) / (n * (n - 1))
        own = float(np.concatenate(self._own).mean())
        return Nearness(n, own, float(pairs[1:].mean()), float(pairs[0]))


def usable(records: Sequence[SampleRecord], modality: Modality | None) -> npt.NDArray[np.int64]:
    """Positions of the samples whose input of this modality is there and not bad, int64."""
    found = []
    for at, record in enumerate(records):
        digest = record.image_sha256 if modality == "image" else record.text_sha256
        if digest is not None and all(bad.modality != modality for bad in record.bad):
            found.append(at)
    return np.array(found, np.int64)
