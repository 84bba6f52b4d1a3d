"""The command line: parse, call, and turn errors into messages and exit codes.

Heavy imports are made inside the commands, so that ``--help`` and a wrong option answer at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featurestore import __version__
from featurestore.errors import ConfigError, InputError, ManyViewsError

if TYPE_CHECKING:
    from consumers.build import BuildReport
    from featurestore.config import BuildConfig
    from producers.source import Scan

    # Generic for a type checker only: click's own class is not, before 8.4.
    _Pairs = click.ParamType[tuple[str, str]]
else:
    _Pairs = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

DONE_WITH_BAD_SAMPLES = 3
_FOLDER = click.Path(path_type=Path)
_LISTED = 20


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
    "--store", required=True, type=_FOLDER, help="Folder of the feature store."
)
data_option = click.option(
    "--data-dir",
    required=True,
    type=_FOLDER,
    help="Folder of <stem>.jpg posters and <stem>.json synopses.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="manyviews")
def cli() -> None:
    """Frozen-backbone features with many views of every sample.

    build makes a store from posters and synopses, materialize and labels write the files of the
    published MM-IMDb pipeline, and FeatureDataset reads the store while training.

    Exit codes: 0 done, 1 failed (--resume goes on), 2 usage or configuration, 3 done with bad
    samples (listed), 130 or 143 interrupted (--resume goes on).
    """


@cli.command()
@click.option("--data-dir", type=_FOLDER, help="Folder of <stem>.jpg posters and <stem>.json.")
@click.option("--store", type=_FOLDER, help="Folder of the feature store.")
@click.option("--resume", is_flag=True, default=None, help="Go on with the store that is there.")
@click.option("--overwrite", is_flag=True, default=None, help="Delete the store that is there.")
@click.option("--views", type=int, help="Views per sample, the clean one included.  [default: 70]")
@click.option("--seed", type=int, help="Base seed of both recipes.  [default: 123]")
@click.option("--features", help="Comma-separated; all four by default.")
@click.option(
    "--model",
    "models",
    multiple=True,
    type=PairType(),
    metavar="FEATURE=ID_OR_DIR",
    help="Checkpoint of a feature, a hub id or a folder; blip2=... names both BLIP-2 features.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=PairType(),
    metavar="FEATURE=N",
    help="Rows per forward pass of a feature.",
)
@click.option("--workers", type=int, help="Producer processes.  [default: CPUs - 1]")
@click.option("--slots", type=int, help="Samples in flight.  [default: 2 x workers + 2]")
@click.option("--chunk", type=int, help="Samples per chunk, the unit of commit.  [default: 64]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16.  [default: auto]")
@click.option(
    "--bad-sample",
    type=click.Choice(["placeholder", "fail"]),
    help="Go on with a placeholder and list it, or stop.  [default: placeholder]",
)
@click.option(
    "--allow-version-change",
    is_flag=True,
    default=None,
    help="Resume although library versions or the kind of device changed; it is recorded.",
)
@click.option(
    "--verify-inputs",
    is_flag=True,
    default=None,
    help="On --resume, compare the content of all inputs that are done, however they look.",
)
@click.option("--config", "toml", type=_FOLDER, help="TOML file with any of these options.")
@json_option
@common_options
def build(toml: Path | None, as_json: bool, **options: Any) -> int:
    """Make the feature store, or go on with it.

    Values come from the paper's defaults, then --config, then the environment
    (CLIP_MODEL_ID_IMG, CLIP_MODEL_ID_TXT, BLIP2_MODEL_ID), then these options.

    \b
    Example:
      python cli.py build --data-dir imdb/dataset --store features --resume
    """
    from consumers.build import build as run
    from consumers.progress import RunLog
    from featurestore.store import RUNS

    config = build_config(toml, options)
    log = RunLog(config.store / RUNS)
    bad_scan: dict[str, Any] = {}

    def keep_scan(event: str, facts: Mapping[str, Any]) -> None:
        if event == "scanned":
            bad_scan.update(facts)

    with display() as show:
        try:
            report = run(config, [log, show, keep_scan])
        finally:
            log.close()
    if as_json:
        click.echo(json.dumps(report_facts(report, bad_scan)))
    print_report(report, bad_scan)
    return DONE_WITH_BAD_SAMPLES if report.bad else 0


def build_config(toml: Path | None, options: Mapping[str, Any]) -> BuildConfig:
    """Merges the file, the environment and the options into a configuration."""
    from consumers.backbones import REGISTRY
    from featurestore.config import BuildConfig, expand_models, read_toml

    values: dict[str, Any] = {} if toml is None else read_toml(toml)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    environment = {
        feature: os.environ[info.variable].strip()
        for feature, info in REGISTRY.items()
        if os.environ.get(info.variable, "").strip()
    }
    models = {**values.get("models", {}), **environment}
    models |= expand_models(dict(given.pop("models", ())))
    sizes = {**values.get("batch_sizes", {}), **_sizes(given.pop("batch_sizes", ()))}
    if "features" in given:
        given["features"] = tuple(f.strip() for f in given["features"].split(","))
    values |= given
    for name in ("data_dir", "store"):
        if name not in values:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is missing: give it as an option or in --config.")
    return BuildConfig(**values | {"models": models, "batch_sizes": sizes})


def _sizes(pairs: tuple[tuple[str, str], ...]) -> dict[str, int]:
    try:
        return {name: int(size) for name, size in pairs}
    except ValueError:
        raise ConfigError(f"--batch-size takes FEATURE=N, found {dict(pairs)}.") from None


@contextmanager
def display() -> Iterator[Any]:
    """The live display on a terminal, plain lines elsewhere; both on standard error."""
    from rich.console import Console

    from consumers.progress import LiveDisplay, PlainDisplay

    console = Console(stderr=True)
    show = LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stderr)
    try:
        yield show
    finally:
        show.close()


def report_facts(report: BuildReport, found: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "store": str(report.store),
        "samples": report.samples,
        "views": report.views,
        "built": report.built,
        "seconds": round(report.seconds, 3),
        "bad": [[b.index, b.modality, b.reason, b.detail] for b in report.bad],
        "unmatched_images": found["unmatched_images"],
        "unmatched_texts": found["unmatched_texts"],
        "left_out": found["left_out"],
        "truncated": dict(report.truncated),
        "replaced": dict(report.replaced),
    }


def print_report(report: BuildReport, found: Mapping[str, Any]) -> None:
    """Says what was done and everything that was not as it should be, on standard error."""
    if not report.built:
        say(f"nothing to do: {report.store} is complete, {report.samples:,} samples")
    else:
        rate = report.built / report.seconds
        say(
            f"built {report.built:,} samples x {report.views} views in {report.seconds:.1f} s "
            f"({rate:.1f} samples/s); {report.store} is complete, {report.samples:,} samples"
        )
    _list("images without a synopsis", [repr(n) for n in found["unmatched_images"]])
    _list("synopses without an image", [repr(n) for n in found["unmatched_texts"]])
    _list("left out", [f"{name!r} ({reason})" for name, reason in found["left_out"]])
    for name, count in report.truncated.items():
        if count:
            say(f"{name}: {count:,} views were cut to the tokenizer's length")
    for why, count in report.replaced.items():
        say(f"producers replaced: {count} ({why})")
    stems = bad_stems(report)
    lines = [f"{stems[b.index]!r}: {b.modality} {b.reason} ({b.detail})" for b in report.bad]
    _list("bad inputs, each with a placeholder", lines, separator="\n  ")


def bad_stems(report: BuildReport) -> dict[int, str]:
    """The stem of each sample with a bad input."""
    if not report.bad:
        return {}
    from featurestore.store import FeatureStore

    stems = FeatureStore(report.store).stems
    return {b.index: stems[b.index] for b in report.bad}


def _list(title: str, items: list[str], separator: str = ", ") -> None:
    if items:
        more = f"{separator}and {len(items) - _LISTED:,} more" if len(items) > _LISTED else ""
        start = separator if "\n" in separator else " "
        say(f"{len(items):,} {title}:{start}{separator.join(items[:_LISTED])}{more}")


def say(line: str) -> None:
    """Prints a line for a person, on standard error."""
    # Names that are not UTF-8 come escaped by repr; whatever else a terminal cannot show is too.
    encoding = sys.stderr.encoding or "utf-8"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding), err=True)


@cli.command()
@store_option
@click.option("--out-dir", required=True, type=_FOLDER, help="Folder of the files; created.")
@click.option("--prefix", default="mm_imdb1_globals_aug70", show_default=True)
@click.option(
    "--zscore",
    type=click.Choice(["all", "train", "none"]),
    default="all",
    show_default=True,
    help="Scale by all rows (the paper's way), by the training rows only, or not at all.",
)
@click.option("--split-json", type=_FOLDER, help="The split, for --zscore train.")
@json_option
@common_options
def materialize(
    store: Path, out_dir: Path, prefix: str, zscore: str, split_json: Path | None, as_json: bool
) -> int:
    """Write the published pipeline's .npy, stats, index and manifest from a complete store.

    \b
    Example:
      python cli.py materialize --store features --out-dir embeddings
    """
    from featurestore.materialize import materialize as run
    from featurestore.store import FeatureStore

    done = run(FeatureStore(store), out_dir, prefix=prefix, zscore=zscore, split_json=split_json)
    if as_json:
        click.echo(json.dumps({"out_dir": str(done.out_dir), "files": done.files}))
    for name, size in done.files.items():
        say(f"{size:>16,}  {name}")
    return 0


@cli.command()
@data_option
@click.option("--out-dir", required=True, type=_FOLDER, help="Folder of the label files; created.")
@click.option("--augment", is_flag=True, help="Also write noisy labels for every view.")
@click.option("--views", type=int, default=70, show_default=True, help="For --augment.")
@click.option("--seed", type=int, default=123, show_default=True, help="For --augment.")
@click.option("--prefix", default="mm_imdb1_globals_aug70", show_default=True)
@click.option(
    "--embeddings-dir", type=_FOLDER, help="Where --augment writes, beside the embeddings."
)
@json_option
@common_options
def labels(
    data_dir: Path,
    out_dir: Path,
    augment: bool,
    views: int,
    seed: int,
    prefix: str,
    embeddings_dir: Path | None,
    as_json: bool,
) -> int:
    """Write labels_all_23.npy, ids_all.txt and class_names_23.json.

    \b
    Example:
      python cli.py labels --data-dir imdb/dataset --out-dir labels
    """
    from featurestore.labels import write_augmented_labels, write_labels
    from producers.source import scan

    if augment and embeddings_dir is None:
        raise ConfigError("--augment needs --embeddings-dir, the folder to write beside.")
    found = scan(data_dir)
    report = write_labels([s.stem for s in found.samples], documents(found), out_dir)
    if augment and embeddings_dir is not None:
        write_augmented_labels(out_dir, embeddings_dir, views, prefix, seed)
    if as_json:
        facts = {
            "samples": report.samples,
            "unknown_genres": dict(report.unknown_genres),
            "without_genre": list(report.without_genre),
            "unreadable": list(report.unreadable),
        }
        click.echo(json.dumps(facts))
    say(f"{report.samples:,} samples, 23 classes: {out_dir}")
    _list("unknown genres", [f"{name!r} x {count}" for name, count in report.unknown_genres])
    _list("samples without a known genre", [repr(s) for s in report.without_genre])
    _list("synopses that could not be read", [repr(s) for s in report.unreadable])
    return 0


def documents(found: Scan) -> Iterator[object]:
    """Each sample's parsed synopsis, None where it cannot be read."""
    from featurestore.errors import BadSampleError
    from producers import decode, source

    for sample in found.samples:
        try:
            path = source.text_path(found.data_dir, sample)
            yield decode.document(source.read_capped(path, source.MAX_TEXT_BYTES))
        except BadSampleError:
            yield None


@cli.command()
@store_option
@click.option(
    "--repair", is_flag=True, help="Drop damaged chunks; build --resume makes them again."
)
@json_option
@common_options
def verify(store: Path, repair: bool, as_json: bool) -> int:
    """Check every promise of a store: checksums, ledger, moments, completeness, stray files.

    Exits with 1 where something is damaged, and names each file and chunk. A store that is not
    complete yet is not damaged. Nothing is changed without --repair.

    \b
    Example:
      python cli.py verify --store features
    """
    from featurestore.repair import repair as drop
    from featurestore.verify import verify as check
    from featurestore.writer import state_of, take_lock

    if state_of(store) != "store":
        raise InputError(f"There is no feature store at {store}.")
    lock = take_lock(store) if repair else None
    try:
        found = check(store)
        dropped = drop(store, found) if lock is not None and found.findings else []
    finally:
        if lock is not None:
            lock.release()
    if as_json:
        facts = {
            "chunks": found.chunks,
            "committed": len(found.committed),
            "files": found.files,
            "findings": [[f.file, f.chunk, f.problem] for f in found.findings],
            "notices": found.notices,
            "to_make": dropped,
        }
        click.echo(json.dumps(facts))
    say(f"{len(found.committed)} of {found.chunks} chunks committed, {found.files} files checked")
    for notice in found.notices:
        say(notice)
    for finding in found.findings:
        say(f"damaged: {finding}")
    if dropped:
        say(f"dropped; `build --resume` makes {len(dropped)} chunks: {dropped[:_LISTED]}")
    elif found.findings:
        say("`verify --repair` drops the damaged chunks, and `build --resume` makes them again.")
    return 1 if found.findings and not dropped else 0


@cli.command()
@store_option
@json_option
@common_options
def status(store: Path, as_json: bool) -> int:
    """Say what a store holds, what is done, and who is writing to it.

    \b
    Example:
      python cli.py status --store features
    """
    from featurestore.durable import lock_holder
    from featurestore.store import LOCK, FeatureStore

    found = FeatureStore(store)
    holder = lock_holder(store / LOCK)
    done = len(found.records)
    if as_json:
        facts = {
            "samples": found.spec.samples,
            "views": found.spec.views,
            "dims": dict(found.spec.dims),
            "done": done,
            "chunks": found.spec.chunks,
            "committed": len(found.ledger),
            "complete": found.complete,
            "bad": len(found.bad_inputs),
            "holder": holder,
            "fingerprint": found.fingerprint,
        }
        click.echo(json.dumps(facts))
        return 0
    features = ", ".join(f"{name} [{dim}]" for name, dim in found.spec.dims.items())
    click.echo(f"{store}: {found.spec.samples:,} samples x {found.spec.views} views: {features}")
    share = done / found.spec.samples
    state = "complete" if found.complete else "not complete; go on with build --resume"
    click.echo(f"{done:,} samples done ({share:.1%}), {state}")
    click.echo(f"{len(found.bad_inputs):,} bad inputs with placeholders")
    if holder is not None:
        click.echo(f"being written by process {holder[0]} on {holder[1]}")
    return 0


@cli.command()
@click.option(
    "--out-dir", type=_FOLDER, default=Path("demo"), show_default=True, help="Working folder."
)
@common_options
def demo(out_dir: Path) -> int:
    """Run everything on a small data set with tiny checkpoints of the real model classes.

    Makes the data and the checkpoints, builds with a kill -9 and --resume in the middle,
    materializes, makes labels, and trains a linear probe from the store.

    \b
    Example:
      python cli.py demo --out-dir demo
    """
    from consumers.demo import run

    run(out_dir, say=say)
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    try:
        code = run_command(arguments)
    except KeyboardInterrupt:  # a second one, while the first was being reported
        code = 130
    if arguments is None:
        # This process ends now: one more Ctrl-C must not end it with a traceback instead.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run_command(arguments: list[str] | None) -> int:
    """Runs a command and returns its exit code; every error becomes a message."""
    root: dict[str, Any] = {}
    try:
        return cli.main(arguments, prog_name="manyviews", standalone_mode=False, obj=root) or 0
    except ManyViewsError as e:
        return fail(str(e), e.exit_code, debug=root.get("debug", False))
    except click.ClickException as e:
        e.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return fail("Interrupted; a build goes on with --resume.", 130, debug=False)
    except BrokenPipeError:
        # The reader of our output is gone: so is the need to say anything.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:  # noqa: BLE001  the process border
        message = f"{type(e).__name__}: {e}\nThis is a defect; --debug shows where it happened."
        return fail(message, 1, debug=root.get("debug", False))


def fail(message: str, code: int, *, debug: bool) -> int:
    """Prints an error; returns the exit code."""
    if debug:
        traceback.print_exc()
    say(f"Error: {message}")
    return code


if __name__ == "__main__":
    main()
