"""Find, pair and order the samples of an MM-IMDb folder.

Scanning opens no file: a FIFO would block, and a poster is not read before its turn. Names that
the folder lists are used as values only; no name is ever parsed as a path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import InputError
from featurestore.records import Modality, Sample
from featurestore.samples import SampleList
from producers.sources.collection import CollectionConfig
from producers.sources.files import name_bytes, stat_file, text_path
from producers.sources.listing import list_folder
from producers.sources.readers import pair_source
from producers.sources.scan import InputStats, Scan
from producers.sources.unused import advice, alike_stems, counted_reasons, subfolder_with_both

# Suffixes in order of precedence: a sample uses the first kind that exists for its stem.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG")
TEXT_SUFFIXES = (".json", ".JSON")

_LAYOUT = (
    "Expected a flat folder of posters and synopses with the same stem, "
    "for example 0000001.jpg beside 0000001.json."
)


@dataclass(frozen=True, slots=True)
class PairPlaces:
    """The files of a folder of posters and synopses, found by the names of each sample.

    Attributes:
        data_dir: path of the folder.
        samples: the samples.
    """

    data_dir: Path
    samples: SampleList

    @property
    def source(self) -> Mapping[str, Any]:
        """See :class:`producers.sources.scan.Places`."""
        return pair_source(self.data_dir)

    def where(self, sample: Sample) -> None:
        """Nothing: the sample has the names of its files."""

    def names(self, sample: Sample) -> tuple[str, str]:
        """The names of the sample's two files."""
        return str(sample.image_name), str(sample.text_name)

    def sizes(self, modality: Modality) -> list[int]:
        """The sizes of the files; -1 for a missing one."""
        sizes: list[int] = self.stats()[:, 0 if modality == "image" else 2].tolist()
        return sizes

    def gone(self) -> bool:
        """Whether all of the samples' synopses are missing."""
        return not any(text_path(self.data_dir, sample).exists() for sample in self.samples)

    def stats(self) -> InputStats:
        """Sizes in bytes and modification times in ns of all files.

        Must be called before any input is read: the stats of a file that changes afterwards then
        differ from the cached ones.
        """
        folder = os.fsencode(self.data_dir) + b"/"
        stats = np.empty((len(self.samples), 4), np.int64)
        for sample in self.samples:
            stats[sample.index] = (
                *stat_file(folder + name_bytes(str(sample.image_name))),
                *stat_file(folder + name_bytes(str(sample.text_name))),
            )
        return stats


def scan(data_dir: Path, *, follow_links: bool = False) -> Scan:
    """Pair the posters and synopses of a folder by stem.

    Args:
        data_dir: the folder; its subfolders are not entered.
        follow_links: whether to use symlinks that leave the folder, as those of DVC, git-annex and
            the hub's cache do.

    Returns:
        The samples in their fixed order, and every entry that is not used.

    Raises:
        InputError: the folder is missing, unreadable or not a folder, or holds no pair.
    """
    names, left_out = list_folder(data_dir, _fits, follow_links=follow_links, layout=_LAYOUT)
    images, shadowed_images = _by_stem(names, IMAGE_SUFFIXES)
    texts, shadowed_texts = _by_stem(names, TEXT_SUFFIXES)
    left_out += [(name, "shadowed") for name in (*shadowed_images, *shadowed_texts)]
    stems = sorted(images.keys() & texts.keys())
    lone_images = {stem: images[stem] for stem in images.keys() - texts.keys()}
    lone_texts = {stem: texts[stem] for stem in texts.keys() - images.keys()}
    samples = SampleList.of(
        Sample(i, stem, images[stem], texts[stem]) for i, stem in enumerate(stems)
    )
    found = Scan(
        collection=CollectionConfig.mm_imdb(data_dir, follow_links=follow_links),
        samples=samples,
        places=PairPlaces(data_dir, samples),
        unmatched_images=tuple(sorted(lone_images.values())),
        unmatched_texts=tuple(sorted(lone_texts.values())),
        left_out=tuple(sorted(left_out)),
        alike=alike_stems(lone_images, lone_texts),
    )
    if not stems:
        raise _no_pair(found)
    return found


def _fits(name: str) -> bool:
    return name.endswith((*IMAGE_SUFFIXES, *TEXT_SUFFIXES))


def _no_pair(found: Scan) -> InputError:
    """The error for a folder without a sample: its contents, and advice."""
    images, texts = len(found.unmatched_images), len(found.unmatched_texts)
    reasons = f": {counted_reasons(found.left_out)}" if found.left_out else ""
    lines = [
        f"No pair of a poster and a synopsis in {found.path}: {images:,} images and {texts:,} "
        f"texts seen, {len(found.left_out):,} entries left out{reasons}."
    ]
    folders = [name for name, reason in found.left_out if reason == "directory"]
    inside = subfolder_with_both(found.path, folders, IMAGE_SUFFIXES, TEXT_SUFFIXES)
    if inside is not None:
        lines.append(f"Subfolders are not entered: name {found.path / inside} instead.")
    lines += advice(found.left_out, found.alike)
    return InputError("\n".join((*lines[:3], _LAYOUT)))


def _by_stem(names: Sequence[str], suffixes: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Chooses one file for each stem: the one whose suffix comes first in ``suffixes``.

    Returns:
        The chosen file's name by stem; and the names of the files that were not chosen.
    """
    chosen: dict[str, str] = {}
    shadowed: list[str] = []
    for suffix in suffixes:
        fitting = sorted(name for name in names if name.endswith(suffix))
        shadowed += [n for n in fitting if chosen.setdefault(n.removesuffix(suffix), n) != n]
    return chosen, shadowed
