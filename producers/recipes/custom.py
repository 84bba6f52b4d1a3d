"""Custom recipes: a function of the user, named ``module:function``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from featurestore.errors import ConfigError, RecipeError
from producers.recipes.function import Calls, load
from producers.recipes.recipe import Recipe
from producers.recipes.source_files import (
    SourceFiles,
    defines,
    find_sources,
    parsed,
    require_installed,
)

_T = TypeVar("_T")
_C = TypeVar("_C", bound="Custom")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Custom(Recipe):
    """Every view is made by a function of the user.

    The function is run in the producers. Its module, and what that imports, are found from the
    import statements; a store records them, and refuses others.

    Attributes:
        function: ``module:function``.
        folder: the folder that the module is searched in before the Python path; then the one that
            it was found in.
        sha256: for each module of that folder that makes views, its name and the SHA-256 of its
            file; found if empty.
        distributions: the names of the installed distributions that they import; found with them.
    """

    version: ClassVar[int] = 1

    function: str
    folder: str = ""
    sha256: tuple[tuple[str, str], ...] = ()
    distributions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Finds the files of the function, without running them.

        Raises:
            ConfigError: there is no such module or function, or it cannot be used.
        """
        where = f"[recipe.{self.modality}]"
        if not _NAME.fullmatch(self.function):
            raise ConfigError(f"{where}: name is module:function, found {self.function!r}.")
        if self.sha256:
            return
        sources = find_sources(self._module, Path(self.folder) if self.folder else None, where)
        file = sources.files[self._module]
        name = self.function.partition(":")[2]
        if file.path.suffix == ".py" and not defines(parsed(file, where), name):
            raise ConfigError(f"{where}: {file.path} has no function {name!r}.")
        require_installed(sources, where)
        object.__setattr__(self, "folder", str(sources.folder))
        object.__setattr__(self, "sha256", tuple(sources.digests.items()))
        object.__setattr__(self, "distributions", sources.distributions)

    @property
    def name(self) -> str:  # type: ignore[override]  # of a preset, it is that of its class
        """``module:function``."""
        return self.function

    @property
    def _module(self) -> str:
        return self.function.partition(":")[0]

    def values(self) -> dict[str, Any]:
        """Everything that another process needs to load the same function."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "function"}
        return {"name": self.function} | own

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The recipe whose :meth:`values` these are, after a journey as JSON."""
        return cls(
            values["name"],
            values.get("folder", ""),
            tuple((name, sha256) for name, sha256 in values.get("sha256", ())),
            tuple(values.get("distributions", ())),
        )

    def settings(self) -> dict[str, str]:
        """The function, and the content of each file."""
        field = f"{self.modality}_recipe"
        return {field: self.identity} | {f"{field}.sha256.{name}": it for name, it in self.sha256}

    def libraries(self) -> frozenset[str]:
        """The distributions that the function's files import."""
        return frozenset(self.distributions)

    def calls(self, convert: Callable[[Any], _T]) -> Calls[_T]:
        """Loads the function; once for each process.

        Args:
            convert: converts what it returned, see :class:`Calls`.

        Raises:
            RecipeError: its files are missing or have changed, or it cannot be imported.
        """
        return _calls(self, convert)

    def sources(self) -> SourceFiles:
        """Reads the files of the function.

        Raises:
            RecipeError: they are missing, or have another content than when the build started.
        """
        folder = Path(self.folder) if Path(self.folder).is_dir() else None
        try:
            found = find_sources(self._module, folder, f"[recipe.{self.modality}]")
        except ConfigError as e:
            raise RecipeError(self.function, f"is not found: {e}") from e
        recorded, now = dict(self.sha256), found.digests
        changed = sorted(n for n in recorded | now if recorded.get(n) != now.get(n))
        if changed:
            raise RecipeError(
                self.function,
                f"has changed since the build started: module {changed[0]} in {found.folder} has "
                "another content",
            )
        return found


@cache
def _calls(recipe: Custom, convert: Callable[[Any], _T]) -> Calls[_T]:
    return Calls(recipe.function, load(recipe.function, recipe.sources()), convert)


def is_custom(values: Mapping[str, Any]) -> bool:
    """Whether plain values are of a custom recipe."""
    return ":" in str(values.get("name", ""))


def custom_of(kind: type[_C], values: Mapping[str, Any], where: str, beside: Path | None) -> _C:
    """Creates a recipe from a table of a TOML file, or from the values of another process.

    Args:
        kind: the class of the recipe.
        values: the table.
        where: the name of the table, for messages.
        beside: folder of the TOML file; None for the :meth:`Custom.values` of another process.

    Raises:
        ConfigError: the table has parameters, or there is no such module or function.
    """
    if beside is None:
        return kind.of(values)
    more = sorted(values.keys() - {"name"})
    if more:
        raise ConfigError(
            f"{where}: {values['name']} does not have {', '.join(more)}.\n"
            "A function of your own has no parameters here: write them into its file."
        )
    return kind(str(values["name"]), str(beside))


def recorded_custom(
    kind: type[_C], fingerprint: Mapping[str, str | int], beside: Path | None
) -> _C | None:
    """The custom recipe of a store; None if its recipe is a preset.

    Its files may have another content than those of the store.

    Args:
        kind: the class of the recipe.
        fingerprint: the store's.
        beside: folder in which it is searched before the Python path, or None.

    Raises:
        ConfigError: its function is not there.
    """
    identity = str(fingerprint.get(f"{kind.modality}_recipe", ""))
    name, _, version = identity.rpartition("-")
    if ":" not in name or version != str(kind.version):
        return None
    try:
        return kind(name, str(beside) if beside else "")
    except ConfigError as e:
        problem = str(e).partition("\n")[0]
        raise ConfigError(
            f"The store's {kind.modality} views are made by {name}, which is not found.\n"
            f"{problem}\n"
            "Name the TOML file that has it with --config, or put its folder into PYTHONPATH."
        ) from None
