"""What the commands share: their options, and how they speak to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from featurestore.records import FEATURES

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

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  click calls it so
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The features, before the ``=``."""
        return [CompletionItem(f"{name}=") for name in FEATURES if name.startswith(incomplete)]


class FeatureList(click.ParamType):  # type: ignore[type-arg]  # generic for a type checker only
    """Comma-separated features."""

    name = "a,b"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  click calls it so
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The features that are not named yet, after the last comma."""
        before, comma, begun = incomplete.rpartition(",")
        rest = [name for name in FEATURES if name not in before.split(",")]
        return [CompletionItem(before + comma + n) for n in rest if n.startswith(begun)]


def common_options(command: F) -> F:
    """Options that every command has."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.find_root().ensure_object(dict)[param.name] = value

    for names, text in (
        (("--debug",), "Show the traceback of an error."),
        (("--verbose", "-v"), "Say more: each chunk as it is written, lists in full."),
        (("--quiet", "-q"), "Say nothing but errors; the exit code tells the rest."),
    ):
        command = click.option(
            *names, is_flag=True, expose_value=False, callback=remember, help=text
        )(command)
    return command


def is_quiet() -> bool:
    """Whether the user wants to read nothing but errors."""
    return _is_set("quiet")


def is_verbose() -> bool:
    """Whether the user wants to read everything."""
    return _is_set("verbose")


def _is_set(name: str) -> bool:
    context = click.get_current_context(silent=True)
    found = context and context.find_root().obj
    return isinstance(found, dict) and bool(found.get(name))


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

# What a build and the look before it both take.
views_option = click.option(
    "--views", type=int, help="Views per sample, the clean one included.  [default: 70]"
)
workers_option = click.option(
    "--workers", type=int, help="Producer processes.  [default: CPUs - 1]"
)
device_option = click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
dtype_option = click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
model_option = click.option(
    "--model",
    "models",
    multiple=True,
    type=PairType(),
    metavar="FEATURE=ID_OR_DIR",
    help="Checkpoint of a feature, a hub id or a folder; blip2=... names both BLIP-2 features.",
)


def say(line: str, *, error: bool = False) -> None:
    """Prints a line for a person, on standard error; nothing but errors with ``--quiet``."""
    if is_quiet() and not error:
        return
    # Names that are not UTF-8 come escaped by repr; whatever else a terminal cannot show is too.
    encoding = sys.stderr.encoding or "utf-8"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding), err=True)


def say_list(title: str, items: list[str], separator: str = ", ") -> None:
    """Prints the first of ``items`` under a title with their number; nothing for none."""
    if items:
        shown = len(items) if is_verbose() else LISTED
        more = f"{separator}and {len(items) - shown:,} more" if len(items) > shown else ""
        start = separator if "\n" in separator else " "
        say(f"{title} ({len(items):,}):{start}{separator.join(items[:shown])}{more}")
