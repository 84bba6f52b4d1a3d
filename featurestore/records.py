"""The small frozen records that all packages share, and the seed of each view."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Modality = Literal["image", "text"]
Salt = Literal["image", "text", "labels"]

FEATURES: tuple[str, ...] = ("clip_image", "clip_text", "blip2_image", "blip2_text")
PAPER_VIEWS = 70
GENERIC_VIEWS = 8  # of a collection other than the paper's

# Short enough to be part of a file name with any prefix.
_FEATURE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
# A store's folder, the option value that means both BLIP-2 features, and names of other files.
RESERVED_NAMES = ("records", "blip2", "labels", "presence")
# Keys other than features in an item of a data set or a row of an export. Existing stores may hold
# features of these names; new ones are refused.
TAKEN_NAMES = ("index", "stem", "view", "bad", "present")


def is_feature_name(name: str) -> bool:
    """Whether a feature may have this name; the four features of the paper satisfy the rule."""
    return bool(_FEATURE_NAME.fullmatch(name)) and name not in RESERVED_NAMES


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: at most one image, and any number of texts.

    Attributes:
        index: position in the collection; row (index, view) is ``index * V + view``.
        stem: the sample's id; of MM-IMDb the file name without its suffix, with undecodable bytes
            as surrogate escapes.
        image_name: of MM-IMDb the poster's file name, with suffix; else None.
        text_name: of MM-IMDb the synopsis' file name, with suffix; else None.
    """

    index: int
    stem: str
    image_name: str | None = None
    text_name: str | None = None

    def values(self) -> tuple[int, str, str | None, str | None]:
        """The four attributes in order, to send to a process: ``Sample(*values)`` restores them."""
        return self.index, self.stem, self.image_name, self.text_name


@dataclass(frozen=True, slots=True)
class BadInput:
    """An unusable poster or synopsis that a placeholder replaces.

    Attributes:
        index: the sample's index.
        modality: ``image`` (replaced by a black image) or ``text`` (replaced by the empty text).
        reason: a stable keyword, for example ``truncated``, ``not-an-image``, ``too-large``.
        detail: a one-line explanation for a person, at most 200 characters.
    """

    index: int
    modality: Modality
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """The facts that were recorded when a sample was read.

    Attributes:
        index: the sample's index.
        image_sha256: hex digest of the image's encoded bytes; ``""`` if they were not or could not
            be read; None if the sample has no image.
        text_sha256: hex digest of the texts (of MM-IMDb, of the synopsis' file); ``""`` if they
            were not or could not be read; None if the sample has no text.
        words: number of words of the clean text, split at white space: ``len(text.split())``.
        bad: the inputs of this sample that a placeholder replaces.
    """

    index: int
    image_sha256: str | None
    text_sha256: str | None
    words: int
    bad: tuple[BadInput, ...] = ()

    def has(self, modality: Modality) -> bool:
        """Whether the sample has an input of this modality, usable or not."""
        digest = self.image_sha256 if modality == "image" else self.text_sha256
        return digest is not None


def stems_sha256(stems: Iterable[str]) -> str:
    """Hex SHA-256 of the ids in order, joined by NUL bytes, which no id contains."""
    return hashlib.sha256(
        b"\0".join(s.encode("utf-8", "surrogateescape") for s in stems)
    ).hexdigest()


def view_seed(base: int, index: int, view: int, salt: Salt) -> int:
    """The seed of one view, computed as in the published recipe.

    Args:
        base: the run's seed; 123 in the paper.
        index: the sample's position in the sorted list of stems.
        view: the view's number; view 0 is clean and uses no random numbers.
        salt: the kind of data, so that a sample's image, text and label noise are independent.

    Returns:
        An integer in [0, 2**32).
    """
    return int(hashlib.sha256(f"{base}:{index}:{view}:{salt}".encode()).hexdigest()[:8], 16)


def view_seeds(base_seed: int, index: int, views: Iterable[int], salt: Salt) -> list[int]:
    """The seed of each of these views; see :func:`view_seed`."""
    return [view_seed(base_seed, index, view, salt) for view in views]
