"""Many samples: a compact list of them, whose memory grows with the collection; facts of all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from featurestore.records import Modality, Sample, SampleRecord


class SampleList(Sequence[Sample]):
    """Samples in order, ``samples[i].index == i``; each ``Sample`` is created when it is accessed.

    The list keeps the lines of the store's sample list, each a JSON array of three names: about 50
    bytes per sample, where ``Sample`` objects would take 280.

    Attributes:
        lines: the bytes of all lines, each with its line feed.
    """

    def __init__(self, lines: bytes) -> None:
        self.lines = lines
        feeds = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        self._ends = feeds + 1

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> SampleList:
        """Packs ``samples``, whose positions become their indices."""
        if isinstance(samples, SampleList):
            return samples
        lines = bytearray()
        for sample in samples:
            names = [sample.stem, sample.image_name, sample.text_name]
            lines += json.dumps(names).encode("ascii") + b"\n"
        return cls(bytes(lines))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, item: int) -> Sample: ...
    @overload
    def __getitem__(self, item: slice) -> list[Sample]: ...
    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self._sample(i) for i in range(*item.indices(len(self)))]
        return self._sample(range(len(self))[item])

    def __iter__(self) -> Iterator[Sample]:
        return map(self._sample, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SampleList) and self.lines == other.lines:
            return True
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"<SampleList of {len(self):,}>"

    def _sample(self, index: int) -> Sample:
        start = int(self._ends[index - 1]) if index else 0
        return Sample(index, *json.loads(self.lines[start : int(self._ends[index])]))


def present_in(records: Sequence[SampleRecord], modality: Modality) -> npt.NDArray[np.bool_]:
    """Whether each sample has an input of a modality, usable or not: bool ``[n]``."""
    return np.fromiter((record.has(modality) for record in records), bool, len(records))
