"""The options that name a collection, for commands that read labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.errors import ConfigError
from manyviews.commands.options import FOLDER, F

if TYPE_CHECKING:
    from producers.sources.collection import CollectionConfig

_OPTIONS = (
    click.option("--data-dir", type=FOLDER, help="Folder of <stem>.jpg posters and <stem>.json."),
    click.option("--data", type=FOLDER, help="Any collection; its kind is recognized."),
    click.option("--config", "toml", type=FOLDER, help="TOML file with a table [collection]."),
    click.option("--follow-links", is_flag=True, help="Follow links that lead out of a folder."),
)


def input_options(command: F) -> F:
    """Adds the options that name a collection; :func:`collection_of` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def collection_of(
    data_dir: Path | None, data: Path | None, toml: Path | None, follow_links: bool
) -> CollectionConfig:
    """The collection that the options name.

    Raises:
        ConfigError: they name none, or several.
        InputError: there is none at the path.
    """
    collection = optional_collection(data_dir, data, toml, follow_links)
    if collection is None:
        raise ConfigError(
            "Name the inputs once: --data-dir DIR (MM-IMDb's layout), --data PATH (any "
            "collection), or a table [collection] in the --config file."
        )
    return collection


def optional_collection(
    data_dir: Path | None, data: Path | None, toml: Path | None, follow_links: bool
) -> CollectionConfig | None:
    """The collection that the options name, or None if there are none.

    Raises:
        ConfigError: the options name several, or ``--follow-links`` is given without one.
        InputError: there is none at the path.
    """
    from consumers.config import BuildConfig
    from consumers.config_file import read_toml

    named: dict[str, object] = {"data_dir": data_dir, "data": data}
    if toml is not None:
        values = read_toml(toml)
        for name in ("data_dir", "data", "collection"):
            if name in values and named.get(name) is None:
                named[name] = values[name]
        follow_links = follow_links or bool(values.get("follow_links", False))
    given = {name: value for name, value in named.items() if value is not None}
    if not given:
        if toml is not None:
            raise ConfigError(f"{toml} names no inputs: it has no table [collection].")
        if follow_links:
            raise ConfigError(
                "--follow-links requires --data-dir, --data or --config, which was not given."
            )
        return None
    return BuildConfig(store=Path(), follow_links=follow_links, **given).inputs  # type: ignore[arg-type]
