"""What the commands share: their options, and how they speak to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    # Generic for a type checker only: click's own class is not, before 8.4.
    _Pairs = click.ParamType[tuple[str, str]]
else:
    _Pairs = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path)
LISTED = 20


class PairType(_Pairs):
    """``NAME=VALUE``."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Splits at the first ``=``."""
        if isinstance(value, tuple):
            return value
        name, separator, rest = str(value).partition("=")
        if not (name and separator and rest):
            self.fail(f"expected NAME=VALUE, found {value!r}", param, ctx)
        return name, rest


def common_options(command: F) -> F:
    """Options that every command has."""

    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.find_root().ensure_object(dict)["debug"] = value

    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
store_option = click.option(
    "--store", required=True, type=FOLDER, help="Folder of the feature store."
)
data_option = click.option(
    "--data-dir",
    required=True,
    type=FOLDER,
    help="Folder of <stem>.jpg posters and <stem>.json synopses.",
)


def say(line: str) -> None:
    """Prints a line for a person, on standard error."""
    # Names that are not UTF-8 come escaped by repr; whatever else a terminal cannot show is too.
    encoding = sys.stderr.encoding or "utf-8"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding), err=True)


def say_list(title: str, items: list[str], separator: str = ", ") -> None:
    """Prints the first of ``items`` under a title with their number; nothing for none."""
    if items:
        more = f"{separator}and {len(items) - LISTED:,} more" if len(items) > LISTED else ""
        start = separator if "\n" in separator else " "
        say(f"{title} ({len(items):,}):{start}{separator.join(items[:LISTED])}{more}")
