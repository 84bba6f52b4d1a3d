"""The values that a configuration leaves open: those of the store, or the collection's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from consumers.backbones import registry
from consumers.config import BuildConfig, CompleteConfig
from consumers.resume.extension import unfinished
from featurestore.errors import ConfigError, StoreMismatchError
from featurestore.records import FEATURES, GENERIC_VIEWS, PAPER_VIEWS
from featurestore.storage.codecs import NONE
from featurestore.storage.store import FeatureStore
from producers.recipes.images.presets import recorded_image_recipe
from producers.recipes.images.random_crops import Simclr
from producers.recipes.recipe import Recipe
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.presets import recorded_text_recipe
from producers.recipes.texts.recipe import TextRecipe
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.scan import Scan


def completed(config: BuildConfig, stored: FeatureStore | None, found: Scan) -> CompleteConfig:
    """Completes a configuration with the values of the store, or the collection's defaults.

    Raises:
        ConfigError: the collection has no inputs for a feature, a recipe has another number of
            views, or it needs each text of a sample and the collection joins or selects them.
        StoreMismatchError: this version does not have a recipe of the store.
    """
    views, features = config.views, config.features
    if stored is not None:
        # Missing chunks of the store are built first: only a complete store is extended.
        made = unfinished(stored) if stored.complete else None
        last = stored if made is None else made
        views = views or last.spec.views
        if features is None or (stored.complete and set(features) <= set(stored.features)):
            features = tuple(dict.fromkeys((*stored.features, *last.features)))
    said = {f.name: getattr(config, f.name) for f in fields(config)}
    is_paper = found.collection.kind == MM_IMDB
    features = features or (FEATURES if is_paper else _features_of(found))
    image, text = _recipes(config, stored, found.collection)
    fixed = fixed_views([image, text], features, config.views)
    said |= {
        "image_recipe": image,
        "text_recipe": text,
        "views": fixed or views or (PAPER_VIEWS if is_paper else GENERIC_VIEWS),
        "features": features,
    }
    said["codec"] = config.codec or (NONE if stored is None else stored.spec.codec)
    return CompleteConfig(**said)


def _features_of(found: Scan) -> tuple[str, ...]:
    """The default features of a collection other than MM-IMDb: CLIP's, for the inputs it has."""
    return tuple(f"clip_{modality}" for modality in found.modalities)


def default_text_recipe(collection: CollectionConfig) -> TextRecipe:
    """The published recipe for MM-IMDb; for other collections one that suits every model.

    A mask token that a model was not trained on moves all its views into one direction.
    """
    return Mask() if collection.kind == MM_IMDB else Drop()


def _recipes(
    config: BuildConfig, stored: FeatureStore | None, collection: CollectionConfig
) -> tuple[Recipe, TextRecipe]:
    """The recipes of the configuration, else of the store, else the defaults."""
    image, text = config.image_recipe, config.text_recipe
    if text is not None:
        _require_each_text(text, collection)
    if stored is None:
        return image or Simclr(), text or default_text_recipe(collection)
    known = stored.fingerprint
    return (
        image or recorded_image_recipe(known) or _refuse(stored, "image"),
        text or recorded_text_recipe(known) or _refuse(stored, "text"),
    )


def _require_each_text(recipe: TextRecipe, collection: CollectionConfig) -> None:
    """Refuses a recipe of all texts of a sample if view 0 is not the first of them.

    Raises:
        ConfigError: the clean text is another one.
    """
    if not recipe.every_text or collection.clean_rule == "first":
        return
    advice = 'Set clean_text = "first" in [collection].'
    if collection.kind == MM_IMDB:
        advice = 'Read the files as kind = "folder" with text_key = "plot" instead.'
    raise ConfigError(
        f'The recipe "{recipe.name}" in [recipe.text] has the first text of a sample as view 0, '
        f'and clean_text is "{collection.clean_rule}".\n{advice}'
    )


def _refuse(stored: FeatureStore, modality: str) -> NoReturn:
    field = f"{modality}_recipe"
    raise StoreMismatchError(
        stored.path,
        field,
        stored.fingerprint.get(field),
        "no such recipe",
        "Continue it with the version of manyviews that built it, or build into another --store.",
    )


def fixed_views(
    recipes: Sequence[Recipe], features: Sequence[str], asked: int | None
) -> int | None:
    """The number of views that the recipes of the features have; None if it is free.

    Raises:
        ConfigError: two recipes have different numbers, or another number is asked for.
    """
    modalities = {
        registry.info(name).modality if name in FEATURES else None for name in features
    }  # that of a declared backbone is known when it is loaded
    fixed = {
        recipe.modality: (recipe.name, recipe.fixed_views)
        for recipe in recipes
        if recipe.fixed_views is not None and modalities & {recipe.modality, None}
    }
    numbers = {views for _, views in fixed.values()}
    if len(numbers) > 1:
        listed = " and ".join(
            f"{views} with {name!r} in [recipe.{modality}]"
            for modality, (name, views) in fixed.items()
        )
        raise ConfigError(
            f"All features of a store have one number of views, found {listed}.\n"
            "Build two stores, one of the images and one of the texts, and open a dataset of each."
        )
    for modality, (name, views) in fixed.items():
        if asked not in (None, views):
            raise ConfigError(
                f"--views is {views} with the recipe {name!r} in [recipe.{modality}], found "
                f"{asked}.\nLeave --views out, or choose a recipe with any number of views."
            )
    return next(iter(numbers), None)
