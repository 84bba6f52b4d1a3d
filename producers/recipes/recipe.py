"""A recipe: how the views of every image, or of every text, are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from featurestore.errors import ConfigError
from featurestore.records import Modality

_R = TypeVar("_R", bound="Recipe")


@dataclass(frozen=True)
class Recipe:
    """How views are made: the fields of a subclass are its parameters.

    View 0 is the clean view, which the recipe does not change. Every other view is a function of
    the input, the parameters and the view's seed, and does not depend on the number of views.

    Attributes:
        name: name in the configuration.
        version: raised whenever a view changes, so that no store mixes two versions.
        modality: what it makes views of, ``image`` or ``text``.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    modality: ClassVar[Modality]

    @property
    def identity(self) -> str:
        """Name and version, as stores record them."""
        return f"{self.name}-{self.version}"

    @property
    def fixed_views(self) -> int | None:
        """The number of views, including the clean one; None if there may be any number."""
        return None

    def values(self) -> dict[str, Any]:
        """Name and parameters as plain values, for :func:`made_of`."""
        return {"name": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}

    def settings(self) -> dict[str, str]:
        """What a store records of the recipe; views of equal settings are equal."""
        recorded = {f"{self.modality}_recipe": self.identity}
        for field in fields(self):
            # This is also how TOML writes the value, as the advice of a mismatch does.
            said = json.dumps(getattr(self, field.name), ensure_ascii=False)
            recorded[f"{self.modality}_recipe.{field.name}"] = said
        return recorded

    def libraries(self) -> frozenset[str]:
        """The distributions, beyond those of every build, whose versions can change views."""
        return frozenset()

    def prepare(self) -> None:
        """Loads what making views needs, in a producer before its memory is limited."""


def made_of(kinds: Mapping[str, type[_R]], where: str, values: Mapping[str, Any]) -> _R:
    """Creates a recipe.

    Args:
        kinds: the known recipes by name.
        where: the name of the table, for messages.
        values: the name and the parameters, as in a TOML file or a JSON document.

    Raises:
        ConfigError: an unknown name or parameter, or a value of the wrong type or out of range.
    """
    parameters = dict(values)
    name = parameters.pop("name", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        found = "no name" if name is None else repr(name)
        raise ConfigError(f"{where}: name is one of {', '.join(kinds)}, found {found}.")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    unknown = sorted(parameters.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"{where}: {name} does not have {', '.join(unknown)}.\n"
            f"It has: {', '.join(known) or 'no parameters'}."
        )
    return kind(**{key: _typed(where, key, v, hints[key]) for key, v in parameters.items()})


def recorded_in(
    kinds: Mapping[str, type[_R]], modality: Modality, settings: Mapping[str, str | int]
) -> _R | None:
    """The recipe whose :meth:`Recipe.settings` are among those of a store.

    Args:
        kinds: the known recipes by name.
        modality: what it makes views of.
        settings: the store's fingerprint.

    Returns:
        The recipe; None if it is of another version, or this version does not have it.
    """
    prefix = f"{modality}_recipe"
    identity = str(settings.get(prefix, ""))
    kind = kinds.get(identity.rpartition("-")[0])
    if kind is None:
        return None
    values = {"name": kind.name}
    for field in fields(kind):
        if f"{prefix}.{field.name}" in settings:
            values[field.name] = json.loads(str(settings[f"{prefix}.{field.name}"]))
    recipe = made_of(kinds, prefix, values)
    return recipe if recipe.identity == identity else None


def _typed(where: str, name: str, value: Any, hint: Any) -> Any:
    """Converts a value of TOML or JSON to the type of a parameter."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise ConfigError(f"{where}: {name} is {len(kinds)} numbers, found {value!r}.")
        return tuple(_typed(where, name, v, kind) for v, kind in zip(value, kinds, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}
        raise ConfigError(f"{where}: {name} is {words[hint]}, found {value!r}.")
    return value


def require_share(recipe: Recipe, name: str, *, above: float = -1.0) -> None:
    """Refuses a parameter outside 0 to 1, or not above ``above``."""
    value = getattr(recipe, name)
    if not (0 <= value <= 1 and value > above):
        least = "above 0" if above == 0 else "0"
        raise ConfigError(
            f"[recipe.{recipe.modality}] {name} is a number from {least} to 1, found {value}."
        )


def require_ascending(recipe: Recipe, name: str, most: float, *, least: float = 0.0) -> None:
    """Refuses two numbers unless they ascend, above 0, and from ``least`` to ``most``."""
    low, high = getattr(recipe, name)
    if not 0 < low <= high <= most or low < least:
        start = "above 0" if least == 0 else f"from {least:g}"
        limit = ", at most " if least == 0 else " to "
        raise ConfigError(
            f"[recipe.{recipe.modality}] {name} is two numbers {start}{limit}{most:g}, in "
            f"ascending order, found {low} and {high}."
        )
