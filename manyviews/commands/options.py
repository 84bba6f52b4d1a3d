"""What the commands share: their options, and how they speak to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from featurestore.errors import ConfigError
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
        ctx.find_root().ensure_object(dict).update({param.name: value, "command": ctx.info_name})

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

_FOLLOW = "Follow links in --data-dir that lead out of it (DVC, git-annex, the hub's cache)."
follow_option = click.option("--follow-links", is_flag=True, help=_FOLLOW)

_FLAG: dict[str, Any] = {"is_flag": True, "default": None}  # so that --config can say otherwise
_BUILD_OPTIONS = (
    click.option("--data-dir", type=FOLDER, help="Folder of <stem>.jpg posters and <stem>.json."),
    click.option("--follow-links", **_FLAG, help=_FOLLOW),
    click.option("--store", type=FOLDER, help="Folder of the feature store."),
    click.option(
        "--resume",
        **_FLAG,
        help="Go on with the store that is there; --features or --views that a complete one lacks "
        "are added.",
    ),
    click.option(
        "--append", **_FLAG, help="With --resume, add samples that come after the last one."
    ),
    click.option("--overwrite", **_FLAG, help="Delete the store that is there."),
    click.option(
        "--views", type=int, help="Views per sample, the clean one included.  [default: 70]"
    ),
    click.option("--seed", type=int, help="Base seed of both recipes.  [default: 123]"),
    click.option(
        "--features",
        type=FeatureList(),
        help="Comma-separated.  [default: all four, or the store's]",
    ),
    click.option(
        "--model",
        "models",
        multiple=True,
        type=PairType(),
        metavar="FEATURE=ID_OR_DIR",
        help="Checkpoint of a feature, a hub id or a folder; blip2=... names both BLIP-2 features.",
    ),
    click.option(
        "--batch-size",
        "batch_sizes",
        multiple=True,
        type=PairType(),
        metavar="FEATURE=N",
        help="Rows per forward pass of a feature; of texts, those of full length.  "
        "[default: the store's, or by feature and device]",
    ),
    click.option("--workers", type=int, help="Producer processes.  [default: CPUs - 1]"),
    click.option(
        "--threads",
        type=int,
        help="Batches that a CPU computes side by side, each in one thread.  [default: CPUs]",
    ),
    click.option("--slots", type=int, help="Samples in flight.  [default: 2 x workers + 2]"),
    click.option("--chunk", type=int, help="Samples per chunk, the unit of commit.  [default: 64]"),
    click.option(
        "--codec",
        type=click.Choice(["none", "zstd"]),
        help="zstd makes an archive, smaller and slow to train from.  "
        "[default: none, or the store's]",
    ),
    click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]"),
    click.option(
        "--dtype",
        help="auto, float32, bfloat16 or float16. auto is bfloat16 on a GPU and float32 on a CPU, "
        "and float32 for clip_text.  [default: auto]",
    ),
    click.option(
        "--bad-sample",
        type=click.Choice(["placeholder", "fail"]),
        help="Go on with a placeholder and list it, or stop.  [default: placeholder]",
    ),
    click.option(
        "--allow-version-change",
        **_FLAG,
        help="Resume although library versions or the kind of device changed; it is recorded.",
    ),
    click.option(
        "--verify-inputs",
        **_FLAG,
        help="On --resume, compare the content of all inputs that are done, however they look.",
    ),
    click.option(
        "--remake-changed",
        **_FLAG,
        help="With --resume, make the chunks again whose inputs changed, as when they were mended.",
    ),
    click.option("--config", "toml", type=FOLDER, help="TOML file with any of these options."),
)


def build_options(command: F) -> F:
    """What a build takes, and the look before it."""
    for option in reversed(_BUILD_OPTIONS):
        command = option(command)
    return command


def check_split(zscore: str, split_json: Path | None) -> None:
    """Refuses a split that nothing would be made of: its user means another z-score."""
    if split_json is not None and zscore != "train":
        raise ConfigError(f"--split-json is for --zscore train, and --zscore is {zscore}.")


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


@contextmanager
def chunk_progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere; it is told of (chunks done, all chunks)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal or is_quiet():
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("chunks", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
