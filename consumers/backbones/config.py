"""A custom backbone, as a configuration declares it: ``[backbones.NAME]`` in TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from featurestore.errors import ConfigError
from featurestore.records import FEATURES, RESERVED_NAMES, TAKEN_NAMES, is_feature_name


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """The declaration of a custom backbone, which computes one feature.

    Attributes:
        adapter: name of an adapter or of an installed entry point, or ``module:function``.
        model: hub id or local folder; optional for a custom adapter.
        pooling: how the token vectors are reduced to one vector; ``""`` leaves it to the adapter.
        size: side of the square images, in pixels; 0 leaves it to the checkpoint.
        max_length: maximum length of a text, in tokens; 0 leaves it to the checkpoint.
        batch_size: batch size in rows; 0 chooses it by the device.
    """

    adapter: str
    model: str = ""
    pooling: str = ""
    size: int = 0
    max_length: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        """Checks each field.

        Raises:
            ConfigError: the adapter is empty, or a number is negative.
        """
        if not self.adapter:
            raise ConfigError("A backbone names its adapter, found ''.")
        for name in ("size", "max_length", "batch_size"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"A backbone's {name} is at least 0, found {getattr(self, name)}."
                )


_TYPES = {field.name: int if field.type == "int" else str for field in fields(BackboneConfig)}


def check_name(name: str) -> None:
    """Raises ConfigError if a custom feature cannot have this name."""
    if name in FEATURES:
        raise ConfigError(
            f"[backbones.{name}] has the name of one of the paper's features: choose another.\n"
            f"To use another checkpoint for it: --model {name}=ID_OR_DIR."
        )
    if not is_feature_name(name) or name in TAKEN_NAMES:
        others = ", ".join((*RESERVED_NAMES, *TAKEN_NAMES))
        raise ConfigError(
            f"[backbones.{name}] is not a feature's name: a small letter, then small letters, "
            f"digits and _, at most 64 in all, and not {others}."
        )


def parse_backbone(where: str, name: str, table: Any) -> BackboneConfig:
    """Reads one table of a configuration file.

    Args:
        where: path of the file, for messages.
        name: name of the feature.
        table: the parsed table ``[backbones.NAME]``.

    Raises:
        ConfigError: not a table, an unknown key, a value of another type, or no adapter.
    """
    here = f"{where}: [backbones.{name}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{here} has the wrong type: {table!r}.")
    unknown = sorted(set(table) - set(_TYPES))
    if unknown:
        raise ConfigError(
            f"{here} sets {', '.join(unknown)}, which is not known.\nKnown: {', '.join(_TYPES)}."
        )
    for key, value in table.items():
        if type(value) is not _TYPES[key]:
            raise ConfigError(f"{here}: {key} has the wrong type: {value!r}.")
    if "adapter" not in table:
        raise ConfigError(f"{here} names no adapter.")
    return BackboneConfig(**table)
