"""The options that name the inputs of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from producers.sources.collection import CollectionConfig

F = TypeVar("F", bound=Callable[..., Any])

# The file that is read if it is in the current folder and --config names no other.
DEFAULT_FILE = "manyviews.toml"

PATH = click.Path(path_type=Path)
FOLLOW = "Follow links that lead out of the folder of inputs (DVC, git-annex, the hub's cache)."


def default_file() -> Path | None:
    """``manyviews.toml`` of the current folder, or None if there is none."""
    path = Path(DEFAULT_FILE)
    return path if path.is_file() else None


data_dir_option = click.option(
    "--data-dir", type=PATH, help="Folder of MM-IMDb's <stem>.jpg posters and <stem>.json synopses."
)
data_option = click.option(
    "--data",
    type=PATH,
    help="Any collection: a folder of images, texts or both, a table, tar files or a saved data "
    "set; its kind is recognized. More in a table [collection] of --config.",
)


def config_option(text: str) -> Callable[[F], F]:
    """The option ``--config``, whose default is ``manyviews.toml`` if that is there."""
    text = f"{text}  [default: {DEFAULT_FILE}, if it is there]"
    return click.option("--config", "toml", type=PATH, default=default_file, help=text)


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The values of the options that name inputs; nothing is read before it is needed.

    Attributes:
        data_dir: a folder of MM-IMDb's posters and synopses, or None.
        data: the path of a collection whose kind is recognized, or None.
        toml: the TOML file of ``--config``, or None.
        is_default: whether ``toml`` is ``manyviews.toml``, and no option named it.
        follow_links: whether to use symbolic links that lead out of a folder.
    """

    data_dir: Path | None
    data: Path | None
    toml: Path | None
    is_default: bool
    follow_links: bool

    @property
    def folder(self) -> Path | None:
        """The folder of the TOML file; None without one."""
        return None if self.toml is None else self.toml.parent

    @property
    def are_given(self) -> bool:
        """Whether an option is about inputs; those of ``manyviews.toml`` are a default."""
        named = None if self.is_default else self.toml
        paths = (self.data_dir, self.data, named)
        return self.follow_links or any(path is not None for path in paths)

    def collection(self) -> CollectionConfig | None:
        """The collection that the options or the file name; None if they name none.

        Raises:
            ConfigError: two options name inputs, or the file of ``--config`` names none.
            InputError: there is nothing at ``--data``, or nothing of a known kind.
        """
        from producers.sources.collection import given_collection

        values: dict[str, Any] = {}
        if self.data_dir is None and self.data is None:
            values = {} if self.toml is None else self._read(self.toml)
        elif not self.is_default and self.toml is not None:
            raise ConfigError(
                f"{'--data' if self.data_dir is None else '--data-dir'} and --config both name the "
                "inputs: give one of them."
            )
        links = values.pop("follow_links", False) and bool(values)
        given = {"data_dir": self.data_dir, "data": self.data, **values}
        return given_collection(**given, follow_links=self.follow_links or links)

    def recipes(self) -> dict[str, Any]:
        """Recipes, number of views and seed of the file, for inputs that are those of the file.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.toml is None or self.data_dir is not None or self.data is not None:
            return {}
        from consumers.config_file import read_toml

        names = ("image_recipe", "text_recipe", "views", "seed")
        return {name: value for name, value in read_toml(self.toml).items() if name in names}

    def require(self) -> CollectionConfig:
        """As :meth:`collection`, for a command that needs inputs.

        Raises:
            ConfigError: no inputs are named, or several.
        """
        from producers.sources.collection import require_one

        found = self.collection()
        require_one(is_needed=True, collection=found)
        assert found is not None
        return found

    def _read(self, toml: Path) -> dict[str, Any]:
        """The inputs that a TOML file names."""
        from consumers.config_file import read_toml

        names = ("data_dir", "data", "collection", "follow_links")
        values = {name: value for name, value in read_toml(toml).items() if name in names}
        if not self.is_default and not set(values) - {"follow_links"}:
            raise ConfigError(
                f"{toml} names no inputs: write a table [collection] into it, or data or data_dir."
            )
        return values


def input_options(command: F) -> F:
    """Adds the options that name inputs; the command gets them as ``inputs``."""

    @wraps(command)
    def with_inputs(
        *arguments: Any,
        data_dir: Path | None,
        data: Path | None,
        toml: Path | None,
        follow_links: bool,
        **options: Any,
    ) -> Any:
        source = click.get_current_context().get_parameter_source("toml")
        is_default = source is click.core.ParameterSource.DEFAULT
        inputs = InputOptions(data_dir, data, toml, is_default, follow_links)
        return command(*arguments, inputs=inputs, **options)

    decorated: Any = with_inputs
    for option in (
        click.option("--follow-links", is_flag=True, help=FOLLOW),
        config_option("TOML file whose inputs to read: a table [collection], data or data_dir."),
        data_option,
        data_dir_option,
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
