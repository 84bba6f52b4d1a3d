"""Members of tar files: where the inputs of each sample are, and how one is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import BadSampleError
from featurestore.records import Modality, Sample
from featurestore.system.refusals import is_absent, refusal
from producers.sources import files
from producers.sources.collection import CollectionConfig
from producers.sources.container_files import Container, states
from producers.sources.folder import json_texts, text_list, text_of
from producers.sources.readers import TextList
from producers.sources.scan import InputStats

# Forms of an input: it is absent, a member, or a key of the JSON member.
NONE, FILE, KEY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class TarPlaces:
    """Members of tar files.

    Attributes:
        collection: the collection.
        shards: the tar files.
        shard_of: the number of each sample's tar file.
        texts: the members or keys of the texts.
        table: int64 ``[N, 1 + len(texts), 3]``: for the image, then each text, whether it is absent
            (0), a member (1) or a key of a JSON member (2), and the member's offset and size.
    """

    collection: CollectionConfig
    shards: Sequence[Container]
    shard_of: npt.NDArray[np.int64]
    texts: Sequence[str]
    table: npt.NDArray[np.int64]

    @property
    def source(self) -> Mapping[str, Any]:
        """See :class:`producers.sources.scan.Places`."""
        return {
            "kind": "tar",
            "shards": [shard.values() for shard in self.shards],
            "texts": list(self.texts),
            "rule": self.collection.clean_rule,
        }

    def where(self, sample: Sample) -> list[Any]:
        """The tar file, and (form, offset, size) of the image and each text."""
        return [int(self.shard_of[sample.index]), *self.table[sample.index].tolist()]

    def names(self, sample: Sample) -> tuple[str, str]:
        """The key and the name of the tar file, twice."""
        shard = Path(self.shards[self.shard_of[sample.index]].path).name
        return f"{sample.stem} in {shard}", f"{sample.stem} in {shard}"

    def sizes(self, modality: Modality) -> list[int]:
        """The sizes of the members; -1 where there is none."""
        part = self.table[:, :1] if modality == "image" else self.table[:, 1:]
        present = (part[:, :, 0] != NONE).any(1)
        sizes: list[int] = np.where(present, part[:, :, 2].sum(1), -1).tolist()
        return sizes

    def gone(self) -> bool:
        """Whether a tar file is gone or has changed."""
        return not all(shard.unchanged for shard in self.shards)

    def stats(self) -> InputStats:
        """The offsets of the members and the states of the tar files."""
        stats = np.empty((len(self.table), 4), np.int64)
        stats[:, 0] = self.table[:, 0, 1]
        stats[:, 2] = self.table[:, 1, 1]
        stats[:, 1] = stats[:, 3] = states(self.shards, self.shard_of)
        return stats


class TarReader:
    """Reads members of tar files at their offsets.

    Args:
        values: ``TarPlaces.source``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._shards = [Container(*shard) for shard in values["shards"]]
        self._texts: list[str] = values["texts"]
        self._rule: str = values["rule"]

    def image(self, sample: Sample, where: Any) -> bytes | None:  # noqa: ARG002
        """The bytes of the image's member; see :class:`Reader`."""
        form, offset, size = where[1]
        if form == NONE:
            return None
        return read_member(self._shards[where[0]], offset, size, files.MAX_IMAGE_BYTES)

    def texts(self, sample: Sample, where: Any) -> TextList | None:  # noqa: ARG002
        """The texts of the members, in order; see :class:`Reader`."""
        found: list[str] = []
        for name, (form, offset, size) in zip(self._texts, where[2:], strict=True):
            if form == NONE:
                continue
            data = read_member(self._shards[where[0]], offset, size, files.MAX_TEXT_BYTES)
            if form == FILE:
                found.append(text_of(data))
            else:
                texts = json_texts(data, [name], self._rule)
                found += texts.texts if texts is not None else []
        return text_list(found, self._rule)


def read_member(shard: Container, offset: int, size: int, cap_bytes: int) -> bytes:
    """The bytes of one member of a tar file that has not changed since it was scanned.

    Raises:
        BadSampleError: ``missing``, ``too-large`` or ``unreadable``.
        StorageError: this process or machine has no memory or descriptor left.
    """
    if size > cap_bytes:
        raise BadSampleError("too-large", f"{size:,} bytes; at most {cap_bytes:,}")
    try:
        descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            data = os.pread(descriptor, size, offset)
            now = files.stat_file(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if is_absent(error):
            raise shard.changed() from None
        if error.errno in files.EXHAUSTED:
            raise refusal(Path(shard.path), error) from error
        raise BadSampleError("unreadable", error.strerror or str(error)) from error
    # Checked after reading: a change before it would have changed the modification time.
    if now != (shard.size, shard.mtime) or len(data) != size:
        raise shard.changed()
    return data
