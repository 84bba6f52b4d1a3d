"""Options that several commands share, and functions that print messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from featurestore.errors import ConfigError
from featurestore.records import FEATURES
from manyviews.commands.inputs import FOLLOW, config_option, data_dir_option, data_option

if TYPE_CHECKING:
    # click.ParamType became generic in 8.4; before that, only type checkers may subscript it.
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
        ctx: click.Context,  # noqa: ARG002  the signature of click's method
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Completes the feature's name, the part before the ``=``."""
        return [CompletionItem(f"{name}=") for name in FEATURES if name.startswith(incomplete)]


class FeatureList(click.ParamType):  # type: ignore[type-arg]  # generic for a type checker only
    """Comma-separated features."""

    name = "a,b"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  the signature of click's method
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Completes the name after the last comma with features that are not listed yet."""
        before, comma, start = incomplete.rpartition(",")
        rest = [name for name in FEATURES if name not in before.split(",")]
        return [CompletionItem(before + comma + n) for n in rest if n.startswith(start)]


def common_options(command: F) -> F:
    """Adds the options that every command has."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.find_root().ensure_object(dict).update({param.name: value, "command": ctx.info_name})

    for names, text in (
        (("--debug",), "Show the traceback of an error."),
        (("--verbose", "-v"), "Print more: every chunk as it is written, and complete lists."),
        (("--quiet", "-q"), "Print only errors; the exit code gives the result."),
    ):
        command = click.option(
            *names, is_flag=True, expose_value=False, callback=remember, help=text
        )(command)
    return command


def is_quiet() -> bool:
    """Whether ``--quiet`` was given: only errors are printed."""
    return _is_set("quiet")


def is_verbose() -> bool:
    """Whether ``--verbose`` was given."""
    return _is_set("verbose")


def _is_set(name: str) -> bool:
    context = click.get_current_context(silent=True)
    settings = context and context.find_root().obj
    return isinstance(settings, dict) and bool(settings.get(name))


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
store_option = click.option(
    "--store", required=True, type=FOLDER, help="Folder of the feature store."
)

_FLAG: dict[str, Any] = {
    "is_flag": True,
    "default": None,
}  # None, so that --config decides where an option is not given
_BUILD_OPTIONS = (
    data_dir_option,
    data_option,
    click.option("--follow-links", **_FLAG, help=FOLLOW),
    click.option("--store", type=FOLDER, help="Folder of the feature store."),
    click.option(
        "--resume",
        **_FLAG,
        help="Create the store, or continue an existing one; a complete store gets the --features "
        "and --views that it lacks.",
    ),
    click.option(
        "--append", **_FLAG, help="With --resume, add samples that come after the last stored one."
    ),
    click.option("--overwrite", **_FLAG, help="Delete an existing store first."),
    click.option(
        "--views",
        type=int,
        help="Views per sample, including the clean one.  [default: 70 for MM-IMDb, else 8; or the "
        "store's]",
    ),
    click.option("--seed", type=int, help="Base seed of both recipes.  [default: 123]"),
    click.option(
        "--features",
        type=FeatureList(),
        help="Comma-separated.  [default: the paper's four for MM-IMDb, else CLIP's for what is "
        "there; or the store's]",
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
        help="Rows per forward pass of a feature; for texts, rows of maximum length.  "
        "[default: by feature and device, or the store's]",
    ),
    click.option("--producers", type=int, help="Producer processes.  [default: CPUs - 1]"),
    click.option(
        "--threads",
        type=int,
        help="Batches that a CPU computes in parallel, one thread each.  [default: CPUs]",
    ),
    click.option("--slots", type=int, help="Samples in flight.  [default: 2 x producers + 2]"),
    click.option(
        "--chunk",
        type=int,
        help="Samples per chunk, the unit of commit; with --views it must fill whole pages of "
        "memory.  [default: about 4,480 rows, at least 64 samples; or the store's]",
    ),
    click.option(
        "--codec",
        type=click.Choice(["none", "zstd"]),
        help="Compression of the features; zstd files are smaller, and slow to train from.  "
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
        help="Replace a bad input by a placeholder and list it, or stop.  [default: placeholder]",
    ),
    click.option(
        "--allow-version-change",
        **_FLAG,
        help="Resume with other library versions or another kind of device; the store records it.",
    ),
    click.option(
        "--verify-inputs",
        **_FLAG,
        help="With --resume, compare the content of all committed inputs, not only size and time.",
    ),
    click.option(
        "--remake-changed",
        **_FLAG,
        help="With --resume, rebuild the chunks whose inputs changed, for example were repaired.",
    ),
    config_option("TOML file with any of these options, and the table [collection]."),
)


_WORKER_OPTIONS = (
    click.option(
        "--worker",
        metavar="K/N",
        help="Build a share of the store as worker K of N, with --resume; see docs/cluster.md.",
    ),
    click.option(
        "--devices",
        metavar="LIST",
        help="Build with a worker process on each device, with --resume: all (every CUDA device), "
        "or for example cuda:0,cuda:1 or cpu,cpu. They divide --producers, --slots and, on a CPU, "
        "--threads.",
    ),
    click.option(
        "--ray",
        metavar="local|ADDRESS",
        help="Build with --ray-workers on a Ray cluster, with --resume: one that this command "
        "starts here and ends, or the one at ADDRESS, which may be auto; see docs/cluster.md.",
    ),
    click.option("--ray-workers", type=int, metavar="N", help="Workers on the Ray cluster."),
)


def worker_options(command: F) -> F:
    """Adds the options of builds by several workers."""
    for option in reversed(_WORKER_OPTIONS):
        command = option(command)
    return command


def build_options(command: F) -> F:
    """Adds the options of ``build`` and ``check``."""
    for option in reversed(_BUILD_OPTIONS):
        command = option(command)
    return command


def check_split(zscore: str, split_json: Path | None) -> None:
    """Refuses a split that would not be used, because the z-score is not ``train``.

    Raises:
        ConfigError: there is a split without ``--zscore train``.
    """
    if split_json is not None and zscore != "train":
        raise ConfigError(f"--split-json requires --zscore train, found --zscore {zscore}.")


def say(line: str, *, error: bool = False) -> None:
    """Prints a line on standard error; with ``--quiet`` only errors."""
    if is_quiet() and not error:
        return
    # repr has escaped names that are not UTF-8; escape whatever else the terminal cannot encode.
    encoding = sys.stderr.encoding or "utf-8"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding), err=True)


def say_list(title: str, items: list[str], separator: str = ", ") -> None:
    """Prints a title with the number of items and the first of them; nothing if there are none."""
    if items:
        shown = len(items) if is_verbose() else LISTED
        more = f"{separator}and {len(items) - shown:,} more" if len(items) > shown else ""
        start = separator if "\n" in separator else " "
        say(f"{title} ({len(items):,}):{start}{separator.join(items[:shown])}{more}")


def say_left_out(
    left_out: Sequence[tuple[str, str]], alike: Sequence[tuple[str, str, str]] = ()
) -> None:
    """Prints which entries of a data folder became no sample and why, and how to use them."""
    from producers.sources.unused import advice, counted_reasons

    if is_verbose():
        say_list("left out", [f"{name!r} ({reason})" for name, reason in left_out])
    elif left_out:
        say(f"left out: {counted_reasons(left_out)}")
    for line in advice(left_out, alike):
        say(line)


@contextmanager
def chunk_progress() -> Iterator[Callable[[int, int], None] | None]:
    """Shows a progress bar on a terminal; yields its callback (chunks done, all chunks) or None."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal or is_quiet():
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("chunks", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
