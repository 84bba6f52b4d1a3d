"""The TOML file that may set the options of a build."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from consumers.backbones.config import BackboneConfig, parse_backbone
from consumers.config import BuildConfig, expand_models
from consumers.workers.share import Share
from featurestore.errors import ConfigError
from producers.sources.collection import CollectionConfig, parse_collection

# Fields of the configuration that the tables of ``recipe`` set.
_RECIPES = ("image_recipe", "text_recipe")


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a configuration file: the fields of :class:`BuildConfig`, as TOML.

    Paths in it are relative to its folder.

    Raises:
        ConfigError: not readable, not TOML, an unknown key, or a value of another type.
    """
    try:
        # Editors on Windows write a byte order mark first, which TOML does not allow.
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} is not a readable TOML file: {e}.") from None
    known = {f.name for f in fields(BuildConfig)} - {*_RECIPES} | {"recipe"}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"{path} sets {', '.join(unknown)}, which is not known.\n"
            f"Known: {', '.join(sorted(known))}."
        )
    recipes = values.pop("recipe", None)
    typed = {} if recipes is None else _recipes(path, recipes)
    typed |= {name: _typed(path, name, value) for name, value in values.items()}
    if "models" in typed:
        found = {name: _local(path, model) for name, model in typed["models"].items()}
        typed["models"] = expand_models(found, typed.get("backbones", {}))
    if "backbones" in typed:
        tables = typed["backbones"].items()
        typed["backbones"] = {n: replace(own, model=_local(path, own.model)) for n, own in tables}
    return typed


def _recipes(path: Path, table: Any) -> dict[str, Any]:
    """Reads the tables ``[recipe.image]`` and ``[recipe.text]``."""
    # They need NumPy, which a file without recipes does not.
    from producers.recipes.images.presets import image_recipe
    from producers.recipes.texts.presets import text_recipe

    parsers = {"image": image_recipe, "text": text_recipe}
    if not isinstance(table, dict) or not all(isinstance(own, dict) for own in table.values()):
        raise ConfigError(f"{path}: a recipe is a table [recipe.image] or [recipe.text].")
    unknown = sorted(table.keys() - parsers.keys())
    if unknown:
        raise ConfigError(
            f"{path}: [recipe.{unknown[0]}] is not known; recipes are [recipe.image] and "
            "[recipe.text]."
        )
    return {
        f"{modality}_recipe": parsers[modality](own, f"{path}: [recipe.{modality}]", path.parent)
        for modality, own in table.items()
    }


def _local(path: Path, model: str) -> str:
    """A model's folder or file relative to the folder of the TOML file ``path``, if it is there.

    Anything else is a hub's name or a path as it stands.
    """
    beside = path.parent / model
    return str(beside) if model and not Path(model).exists() and beside.exists() else model


def _typed(path: Path, name: str, value: Any) -> Any:
    """Converts a TOML value to the type of its field."""
    hint = get_type_hints(BuildConfig)[name]
    if not _fits(value, hint):
        raise ConfigError(f"{path}: {name} has the wrong type: {value!r}.")
    if name == "worker":
        return Share.parse(value)
    if name == "collection":
        return parse_collection(str(path), value, path.parent)
    if Path in (hint, *get_args(hint)):
        return path.parent / value
    if isinstance(value, list):
        return tuple(value)
    if name == "backbones":
        return {feature: parse_backbone(str(path), feature, t) for feature, t in value.items()}
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value can be converted to the annotated type."""
    choices, of = get_args(hint), get_origin(hint)
    if of is UnionType:
        return any(_fits(value, choice) for choice in choices)
    if of is tuple:
        return isinstance(value, list) and all(_fits(item, choices[0]) for item in value)
    if of is Mapping:
        return isinstance(value, dict) and all(_fits(v, choices[1]) for v in value.values())
    if hint is BackboneConfig:
        return True  # parse_backbone gives a better message
    if hint is CollectionConfig:
        return isinstance(value, dict)
    if hint is Share:
        return isinstance(value, str)
    written: dict[Any, tuple[type, ...]] = {Path: (str,), float: (float, int)}
    return type(value) in written.get(hint, (hint,))
