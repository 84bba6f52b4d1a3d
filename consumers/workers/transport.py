"""Configurations and errors as JSON, so that they can be sent from one process to another.

They are data, not pickles: an error may be of a library that only one of the processes has, and
hold what cannot be copied.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from consumers.backbones.config import BackboneConfig
from consumers.config import BuildConfig
from consumers.workers.share import Machine, Share
from featurestore import errors
from featurestore.errors import ManyViewsError, WorkerError
from featurestore.system.refusals import explained
from producers.process import Traceback
from producers.recipes.images.presets import image_recipe
from producers.recipes.texts.presets import text_recipe
from producers.sources.collection import CollectionConfig

# Size of the part of a traceback that is sent, in characters.
_TRACEBACK_CHARS = 8000


def config_values(config: BuildConfig) -> dict[str, Any]:
    """A configuration as plain values."""
    values = {field.name: getattr(config, field.name) for field in fields(BuildConfig)}
    values["backbones"] = {name: asdict(each) for name, each in config.backbones.items()}
    for name in ("collection", "worker"):
        values[name] = None if values[name] is None else asdict(values[name])
    for name in ("image_recipe", "text_recipe"):
        values[name] = None if values[name] is None else values[name].values()
    for name in ("models", "batch_sizes"):
        values[name] = dict(values[name])
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def config_of(values: Mapping[str, Any]) -> BuildConfig:
    """The configuration that :func:`config_values` returned, after a journey as JSON.

    Raises:
        ConfigError: a value is out of range.
    """
    made = dict(values)
    for name, hint in get_type_hints(BuildConfig).items():
        if made[name] is not None and Path in (hint, *get_args(hint)):
            made[name] = Path(made[name])
        elif isinstance(made[name], list):
            made[name] = tuple(made[name])
    if made["collection"] is not None:
        made["collection"] = CollectionConfig(**_tuples(made["collection"]))
    if made["worker"] is not None:
        made["worker"] = share_of(made["worker"])
    for name, parse in (("image_recipe", image_recipe), ("text_recipe", text_recipe)):
        made[name] = None if made[name] is None else parse(made[name])
    made["backbones"] = {name: BackboneConfig(**v) for name, v in made["backbones"].items()}
    return BuildConfig(**made)


def share_of(values: Mapping[str, Any]) -> Share:
    """The share whose fields ``asdict`` returned."""
    machine = values["machine"]
    return Share(values["index"], values["count"], machine and Machine(**machine))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def error_values(error: BaseException) -> dict[str, Any]:
    """An error as plain values: its class, message and attributes."""
    known = error if isinstance(error, ManyViewsError) else explained(error) or error
    attributes: dict[str, Any] = {}
    for name, value in vars(known).items():
        if isinstance(value, Path):
            attributes[name] = {"path": str(value)}
        elif value is None or isinstance(value, (str, int, float)):
            attributes[name] = value
    text = "".join(traceback.format_exception(error))
    return {
        "class": type(known).__name__,
        "message": "\n".join([str(known), *getattr(known, "__notes__", ())]),
        "module": getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None,
        "attributes": attributes,
        "traceback": text[-_TRACEBACK_CHARS:],
    }


def error_of(values: Mapping[str, Any], where: str) -> Exception:
    """The error that :func:`error_values` returned, after a journey as JSON.

    Args:
        values: its values.
        where: the process that raised it, for the message of one that is no error of this project.

    Returns:
        An error of the same class and message, whose cause is the traceback; a WorkerError for a
        class that is not this project's.
    """
    kind = getattr(errors, values["class"], None)
    made: Exception
    if isinstance(kind, type) and issubclass(kind, ManyViewsError):
        made = kind.__new__(kind)
        made.args = (values["message"],)
        for name, value in values["attributes"].items():
            setattr(made, name, Path(value["path"]) if isinstance(value, dict) else value)
    elif values["module"]:
        made = ModuleNotFoundError(values["message"], name=values["module"])
    else:
        made = WorkerError(
            f"{where} failed: {values['class']}: {values['message']}\n"
            "This is a defect; --debug shows where it happened."
        )
    made.__cause__ = Traceback(values["traceback"])
    return made
