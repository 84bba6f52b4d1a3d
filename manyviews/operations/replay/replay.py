"""Replay any view of any sample: its random parameters, its pixels, and its text.

A view is a function of seed, sample, view number and input files, and can be recomputed at any
time. A store records the seed, the number of views and the SHA-256 of each file; a file with
another content is refused, because its views would differ.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from consumers.backbones.registry import REGISTRY
from featurestore.errors import (
    BadSampleError,
    ConfigError,
    InputError,
    RecipeError,
    StoreMismatchError,
)
from featurestore.records import PAPER_VIEWS, BadInput, Sample, view_seed, view_seeds
from featurestore.storage.fingerprint import Fingerprint, compare_fingerprints
from featurestore.storage.store import FeatureStore
from manyviews.operations.replay import recorded
from manyviews.operations.replay.recorded import Place
from manyviews.operations.words import Words, words_of
from producers.kernels.draws import ViewDraws
from producers.recipes.images.geometry import ImageSpec, Pixels, Poster, clean_view
from producers.recipes.images.presets import recorded_image_recipe
from producers.recipes.images.random_crops import Simclr
from producers.recipes.images.recipe import ImageRecipe
from producers.recipes.texts.hiding import Mask
from producers.recipes.texts.presets import recorded_text_recipe
from producers.recipes.texts.recipe import TextRecipe
from producers.recipes.texts.views import HiddenWords, TextViews
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection

PAPER_SEED, PAPER_SIZE = 123, 224
# The paper's image processors for view 0: CLIP's crops the centre, BLIP-2's changes the aspect.
PROCESSORS = ("clip", "blip2")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a data set's views.

    Attributes:
        seed: the base seed.
        views: number of views V, including the clean view.
        size: side S of the augmented views in pixels.
        image: the recipe of images.
        text: the recipe of texts.
    """

    seed: int = PAPER_SEED
    views: int = PAPER_VIEWS
    size: int = PAPER_SIZE
    image: ImageRecipe = field(default_factory=Simclr)
    text: TextRecipe = field(default_factory=Mask)

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: a number is out of range.
        """
        for name, least in (("seed", 0), ("views", 1), ("size", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name} must be at least {least}, found {value}.")


@dataclass(frozen=True)
class Replay:
    """One sample and the inputs of its views.

    Attributes:
        sample: the sample, whose index determines the seeds of its views.
        settings: seed, number of views, size and recipes.
        poster: image of mode ``RGB``, or None if a black image replaces it.
        text: the text views; those of the empty text if the synopsis is unusable.
        bad: the bad inputs.
        recorded: those of ``image`` and ``text`` whose input was compared with the store's hash. A
            store without image features has no hashes of images.
        words: what messages call the sample's inputs.
    """

    sample: Sample
    settings: Settings
    poster: Image.Image | None
    text: TextViews
    bad: tuple[BadInput, ...]
    recorded: tuple[str, ...]
    words: Words

    def drawn(self, view: int) -> ViewDraws | None:
        """The drawn parameters of a view; None for view 0, without a poster, or if none are drawn.

        A recipe without random numbers draws none; a custom one draws what only it knows.
        """
        if view == 0 or self.poster is None:
            return None
        seeds = [self.image_seed(view)]
        drawn = self.settings.image.draws([view], seeds, *self.poster.size)
        return None if drawn is None else drawn[0]

    @cached_property
    def _source(self) -> Poster:
        assert self.poster is not None
        return Poster(self.poster)

    def image_seed(self, view: int) -> int:
        """The seed of an augmented view's image."""
        return view_seed(self.settings.seed, self.sample.index, view, "image")

    def text_seed(self, view: int) -> int:
        """The seed of a masked view's text."""
        return view_seed(self.settings.seed, self.sample.index, view, "text")

    def pixels(self, view: int, processor: str | None = None) -> Pixels:
        """A view's pixels.

        Args:
            view: 0 to V - 1; view 0 without a processor is the poster at full size.
            processor: one of ``PROCESSORS``, or None. It matters for view 0, and for recipes whose
                views begin with a backbone's clean view.

        Returns:
            uint8 [S, S, 3], or [height, width, 3] for the poster at full size.

        Raises:
            BadSampleError: the reason ``too-large``, see ``clean_view``; or a custom recipe's.
            RecipeError: a custom recipe failed.
        """
        size = self.settings.size
        out: Pixels = np.zeros((1, size, size, 3), np.uint8)
        if self.poster is None:  # a placeholder is black, in every view
            return np.squeeze(out, 0)
        spec = ImageSpec(size, None if processor == "blip2" else size)
        if view == 0:
            return np.asarray(self.poster) if processor is None else clean_view(self._source, spec)
        with _naming(self.sample):
            self.settings.image.make(self._source, spec, [view], [self.image_seed(view)], out)
        return np.squeeze(out, 0)

    @cached_property
    def texts(self) -> list[str]:
        """The V texts."""
        return self.text.texts()

    @property
    def text_words(self) -> list[str]:
        """The words of the clean text, separated by white space."""
        return self.texts[0].split()

    def masked(self, view: int) -> list[int]:
        """Positions of the words that a view hides, in ascending order."""
        if view == 0 or not isinstance(self.text, HiddenWords):
            return []
        return sorted(self.text.hidden[view - 1])


def from_collection(collection: CollectionConfig, id_: str, settings: Settings) -> Replay:
    """Replays a sample of a collection.

    Raises:
        InputError: the collection does not contain the sample.
    """
    found = scan_collection(collection)
    return replay(Place(found, find(found.samples, id_, collection.path)), settings)


def from_store(
    store: FeatureStore,
    collection: CollectionConfig,
    id_: str,
    size: int | None = None,
    beside: Path | None = None,
) -> Replay:
    """Replays a sample of a store.

    Args:
        store: the store, which records seed and number of views.
        collection: the collection that the store was built from.
        id_: the sample's id.
        size: side S in pixels; None for the store's, see :func:`store_size`.
        beside: folder in which custom recipes are searched before the Python path.

    Raises:
        InputError: the store does not contain the sample, or its input is missing, differs from the
            one that the store was built from, or is a link out of the folder.
        ConfigError: ``size`` is None although the store has several, or is none of its sizes.
        StoreMismatchError: the store was built with another version of a recipe, with another
            source of a custom recipe, or with another rule for the clean text.
    """
    image = recorded_image_recipe(store.fingerprint, beside) or _refuse(store, "image_recipe")
    text = recorded_text_recipe(store.fingerprint, beside) or _refuse(store, "text_recipe")
    recipes = dict[str, str | int](image.settings() | text.settings())
    # That of a custom recipe's source may differ.
    then = {name: value for name, value in store.fingerprint.items() if "_recipe" in name}
    compare_fingerprints(store.path, then, recipes, allow_version_change=False)
    rule, ours = store.fingerprint.get("clean_text", collection.clean_rule), collection.clean_rule
    if rule != ours:
        advice = f'Set clean_text = "{rule}" in [collection].'
        raise StoreMismatchError(store.path, "clean_text", rule, ours, advice)
    sample = find(store.samples, id_, str(store.path))
    found = recorded.stored_scan(collection, store)
    now = recorded.sample_now(found, sample)
    side = store_size(store.fingerprint, store.features, size)
    settings = Settings(int(store.fingerprint["seed"]), store.spec.views, side, image, text)
    chunk = sample.index // store.spec.chunk
    record = None
    if chunk in store.ledger:
        record = store.ledger[chunk].samples[sample.index % store.spec.chunk]
    return replay(Place(found, now, record), settings, sample)


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """Names the sample in an error of a custom recipe."""
    try:
        yield
    except RecipeError as e:
        raise RecipeError(e.function, e.problem, sample.stem) from e.__cause__


def _refuse(store: FeatureStore, field: str) -> NoReturn:
    advice = "Replay it with the version of manyviews that built the store."
    stored = store.fingerprint.get(field)
    raise StoreMismatchError(store.path, field, stored, "no such recipe", advice)


def find(samples: Sequence[Sample], id_: str, where: str) -> Sample:
    """The sample with this id.

    Args:
        samples: the samples to search.
        id_: the id as given on the command line.
        where: the name of the collection or store for the message.

    Raises:
        InputError: there is no such sample; the message lists similar ids.
    """
    wanted = os.fsencode(id_).decode("utf-8", "surrogateescape")
    for sample in samples:
        if sample.stem == wanted:
            return sample
    alike = difflib.get_close_matches(wanted, [s.stem for s in samples], n=3)
    similar = f"Similar: {', '.join(map(repr, alike))}."
    hint = similar if alike else "The id of a file has no suffix."
    raise InputError(f"{where} has no sample {wanted!r} among its {len(samples):,}.\n{hint}")


def store_size(fingerprint: Fingerprint, features: Sequence[str], asked: int | None) -> int:
    """The side of a store's augmented views.

    The fingerprint has the size of a declared backbone, but not of the paper's features: their
    published checkpoints take 224 pixels, and for other checkpoints ``asked`` is needed.

    Raises:
        ConfigError: the store has several sizes and ``asked`` is None, or ``asked`` is none of its
            sizes.
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


def replay(place: Place, settings: Settings, sample: Sample | None = None) -> Replay:
    """Reads a sample's inputs as a producer does, and compares them with the store's record.

    Args:
        place: the sample and its record.
        settings: seed, number of views, size and recipes.
        sample: the sample as it is numbered in the store; None for the number in the collection.
    """
    sample = sample or place.sample
    poster, bad_image = recorded.poster(place)
    text, bad_text = recorded.text(place)
    seeds = view_seeds(settings.seed, sample.index, range(1, settings.views), "text")
    with _naming(sample):
        try:
            drawn = settings.text.draw(text, seeds, has_clean=True)
        except BadSampleError as e:  # of a custom recipe
            bad_text = bad_text or BadInput(sample.index, "text", e.reason, e.detail)
            drawn = settings.text.draw("", seeds, has_clean=True)
    bad = tuple(replace(b, index=sample.index) for b in (bad_image, bad_text) if b is not None)
    words = words_of(place.found.collection)
    return Replay(sample, settings, poster, drawn, bad, recorded.modalities(place.record), words)
