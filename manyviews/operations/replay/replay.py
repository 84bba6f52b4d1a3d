"""Replay any view of any sample: what was drawn for it, its pixels, and its text.

A view is a function of (seed, sample, view), so nothing of it has to be kept: it is drawn again
from the poster and the synopsis. A store tells the seed, the number of views and what the files
held when they were read; a file that holds something else now is refused, as its views would be
others.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consumers.backbones.registry import REGISTRY
from featurestore.errors import ConfigError, InputError, StoreMismatchError
from featurestore.records import PAPER_VIEWS, BadInput, Sample, SampleRecord, view_seed
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.store import FeatureStore
from manyviews.operations.replay import recorded
from producers.kernels import draws
from producers.kernels.draws import ViewDraws
from producers.recipes import image_views, text_views
from producers.recipes.image_views import IMAGE_RECIPE, ImageSpec, Pixels
from producers.recipes.text_views import TEXT_RECIPE, TextViews
from producers.sources import source

PAPER_SEED, PAPER_SIZE = 123, 224
# How the paper's two image processors make view 0: CLIP's cuts the centre, BLIP-2's squashes.
PROCESSORS = ("clip", "blip2")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the views of a data set depend on beside its files.

    Attributes:
        seed: the base seed.
        views: V, the clean view included.
        size: S, the side of the augmented views in pixels.
    """

    seed: int = PAPER_SEED
    views: int = PAPER_VIEWS
    size: int = PAPER_SIZE

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: one is out of range.
        """
        for name, least in (("seed", 0), ("views", 1), ("size", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name} is at least {least}, found {value}.")


@dataclass(frozen=True)
class Replay:
    """One sample with everything that its views are made of.

    Attributes:
        sample: the sample; its index is what its views are seeded by.
        recipe: seed, views and size.
        poster: mode ``RGB``, or None where a black image stands in for it.
        text: the text views; of a synopsis that cannot be used, of the empty text.
        bad: what was wrong with the inputs.
        recorded: of ``image`` and ``text``, those whose file is known to be the one that the store
            was made from. A store of texts alone recorded nothing of its posters.
    """

    sample: Sample
    recipe: Recipe
    poster: Image.Image | None
    text: TextViews
    bad: tuple[BadInput, ...]
    recorded: tuple[str, ...]

    def drawn(self, view: int) -> ViewDraws | None:
        """What was drawn for an augmented view; None for view 0 and where there is no poster."""
        return None if view == 0 or self.poster is None else self._draws[view - 1]

    @cached_property
    def _draws(self) -> list[ViewDraws]:
        if self.poster is None:
            return []
        seeds = [self.image_seed(view) for view in range(1, self.recipe.views)]
        return draws.draw(seeds, *self.poster.size)

    @cached_property
    def _prepared(self) -> Any:
        return image_views.fastest().prepare(np.asarray(self.poster))

    def image_seed(self, view: int) -> int:
        """The seed of an augmented view's image."""
        return view_seed(self.recipe.seed, self.sample.index, view, "image")

    def text_seed(self, view: int) -> int:
        """The seed of a masked view's text."""
        return view_seed(self.recipe.seed, self.sample.index, view, "text")

    def pixels(self, view: int, processor: str | None = None) -> Pixels:
        """A view's pixels.

        Args:
            view: 0 to V - 1; the poster itself for 0, at full size, unless a processor is named.
            processor: for view 0, one of ``PROCESSORS``.

        Returns:
            uint8 [S, S, 3]; [height, width, 3] for the poster itself.

        Raises:
            BadSampleError: ``too-large``, see ``image_views.clean_view``.
        """
        size = self.recipe.size
        out = np.zeros((size, size, 3), np.uint8)
        if self.poster is None:  # every step of the recipe leaves black pixels black
            return out
        if view == 0:
            if processor is None:
                return np.asarray(self.poster)
            edge = size if processor == "clip" else None
            return image_views.clean_view(self.poster, ImageSpec(size, edge))
        image_views.apply(self._prepared, self._draws[view - 1], out, image_views.fastest())
        return out

    @cached_property
    def texts(self) -> list[str]:
        """The V texts."""
        return self.text.texts()

    def masked(self, view: int) -> list[int]:
        """Positions of the words that a view hides, in ascending order."""
        return sorted(self.text.masked[view - 1]) if view else []


def from_folder(data_dir: Path, stem: str, recipe: Recipe, *, follow_links: bool = False) -> Replay:
    """Replays a sample of a data folder.

    Raises:
        InputError: the folder holds no such sample.
    """
    samples = source.scan(data_dir, follow_links=follow_links).samples
    return _replay(data_dir, find(samples, stem, str(data_dir)), recipe, None)


def from_store(
    store: FeatureStore,
    data_dir: Path,
    stem: str,
    size: int | None = None,
    *,
    follow_links: bool = False,
) -> Replay:
    """Replays a sample of a store.

    Args:
        store: the store; its record tells seed and number of views.
        data_dir: the folder that it was made from.
        stem: the sample's stem.
        size: S; None for what the store tells, see :func:`store_size`.
        follow_links: read links that lead out of the folder.

    Raises:
        InputError: the store has no such sample, or its file is missing, holds something else than
            what the store was made from, or is a link out of the folder.
        ConfigError: ``size`` is missing where the store has several, or is none of its sizes.
        StoreMismatchError: the store was made with another version of a recipe.
    """
    for field, ours in (("image_recipe", IMAGE_RECIPE), ("text_recipe", TEXT_RECIPE)):
        stored = store.fingerprint.get(field)
        if stored != ours:
            advice = "Replay it with the version of manyviews that made the store."
            raise StoreMismatchError(store.path, field, stored, ours, advice)
    sample = find(store.samples, stem, str(store.path))
    if not follow_links:
        recorded.require_inside(data_dir, sample)
    side = store_size(store.fingerprint, store.features, size)
    recipe = Recipe(int(store.fingerprint["seed"]), store.spec.views, side)
    made = sample.index // store.spec.chunk
    record = None
    if made in store.ledger:
        record = store.ledger[made].samples[sample.index % store.spec.chunk]
    return _replay(data_dir, sample, recipe, record)


def find(samples: Sequence[Sample], stem: str, where: str) -> Sample:
    """The sample with this stem.

    Args:
        samples: where to look.
        stem: as a shell gives it.
        where: for the message.

    Raises:
        InputError: there is none; names those that look alike.
    """
    wanted = os.fsencode(stem).decode("utf-8", "surrogateescape")
    for sample in samples:
        if sample.stem == wanted:
            return sample
    alike = difflib.get_close_matches(wanted, [s.stem for s in samples], n=3)
    hint = f"Alike: {', '.join(map(repr, alike))}." if alike else "A stem has no suffix."
    raise InputError(f"{where} has no sample {wanted!r} among its {len(samples):,}.\n{hint}")


def store_size(fingerprint: Fingerprint, features: Sequence[str], asked: int | None) -> int:
    """The side of a store's augmented views.

    A declared backbone's is in the fingerprint. Of the paper's features it is not: their published
    checkpoints take 224 pixels, and who built from others has to say so.

    Raises:
        ConfigError: the store has several and none is asked for, or never the one asked for.
    """
    sizes = {name: int(fingerprint.get(f"{name}.size", 0)) for name in features}
    images = {
        name: size or PAPER_SIZE
        for name, size in sizes.items()
        if size or (name in REGISTRY and REGISTRY[name].modality == "image")
    }
    known = sorted(set(images.values()))
    is_assumed = any(name in REGISTRY for name in images) or not images
    if asked is None:
        if len(known) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in images.items())
            raise ConfigError(f"The store has views of several sizes: {listed}.\nGive --size.")
        return known[0] if known else PAPER_SIZE
    if asked not in known and not is_assumed:
        raise ConfigError(f"The store has views of {known} pixels, found --size {asked}.")
    return asked


def _replay(data_dir: Path, sample: Sample, recipe: Recipe, record: SampleRecord | None) -> Replay:
    """Reads both files as a producer does, and compares them with what the store recorded."""
    poster, bad_image = recorded.poster(data_dir, sample, record)
    text, bad_text = recorded.text(data_dir, sample, record)
    bad = tuple(b for b in (bad_image, bad_text) if b is not None)
    drawn = text_views.draw(text, recipe.seed, sample.index, recipe.views)
    return Replay(sample, recipe, poster, drawn, bad, recorded.modalities(record))
