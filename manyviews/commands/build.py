"""``build``: create the feature store, or continue an existing one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.errors import ConfigError
from featurestore.wording import amount
from manyviews.commands.options import (
    build_options,
    common_options,
    is_quiet,
    is_verbose,
    json_option,
    say,
    say_left_out,
    say_list,
    worker_options,
)

if TYPE_CHECKING:
    from consumers.build_report import BuildReport
    from consumers.config import BuildConfig

DONE_WITH_BAD_SAMPLES = 3


@click.command()
@build_options
@worker_options
@json_option
@common_options
def build(toml: Path | None, as_json: bool, **options: Any) -> int:
    """Create the feature store, or continue an existing one.

    A value is taken from the options; else from the environment (CLIP_MODEL_ID_IMG,
    CLIP_MODEL_ID_TXT, BLIP2_MODEL_ID); else from --config; else it is the paper's default.

    \b
    Example:
      python cli.py build --data-dir imdb/dataset --store features --resume
    """
    config = build_config(toml, options)
    from consumers.build import build as run
    from consumers.progress import RunLog
    from featurestore.storage.store import RUNS

    # Worker processes write logs of their own.
    has_workers = bool(config.devices) or config.ray is not None
    log = None if has_workers else RunLog(config.store / RUNS)
    scanned: dict[str, Any] = {}

    def keep_scan(event: str, facts: Mapping[str, Any]) -> None:
        if event == "scanned":
            scanned.update(facts)

    with display(workers=has_workers) as show:
        try:
            report = run(config, [*([] if log is None else [log]), show, keep_scan])
        finally:
            if log is not None:
                log.close()
    if as_json:
        click.echo(json.dumps(report_facts(report, scanned)))
    print_report(report, scanned)
    return DONE_WITH_BAD_SAMPLES if report.bad else 0


def build_config(toml: Path | None, options: Mapping[str, Any]) -> BuildConfig:
    """Merges the TOML file, the environment and the options into a configuration."""
    from consumers.backbones.registry import REGISTRY
    from consumers.config import BuildConfig, expand_models
    from consumers.config_file import read_toml
    from consumers.workers.share import Share
    from producers.sources.collection import require_one

    values: dict[str, Any] = {} if toml is None else read_toml(toml)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    environment = {
        feature: os.environ[info.variable].strip()
        for feature, info in REGISTRY.items()
        if os.environ.get(info.variable, "").strip()
    }
    models = {**values.get("models", {}), **environment}
    models |= expand_models(dict(given.pop("models", ())), values.get("backbones", {}))
    sizes = {**values.get("batch_sizes", {}), **_sizes(given.pop("batch_sizes", ()))}
    if "worker" in given:
        given["worker"] = Share.parse(given["worker"])
    if "device" in given and "devices" in given:
        raise ConfigError("--device and --devices exclude each other: choose one.")
    for name, other in (("device", "devices"), ("devices", "device")):
        if name in given:  # an option replaces what the file says
            values.pop(other, None)
    for name in ("features", "devices"):
        if name in given:
            given[name] = tuple(each.strip() for each in given[name].split(","))
    values |= given
    if any(name in given for name in ("data", "data_dir")):
        # An option replaces the inputs that the file names; two options are refused.
        for name in {"data", "data_dir", "collection"} - set(given):
            values.pop(name, None)
    named = {name: values.get(name) for name in ("data_dir", "data", "collection")}
    require_one(is_needed=True, **named)
    if "store" not in values:
        raise ConfigError("--store is missing: give it as an option or in --config.")
    return BuildConfig(**values | {"models": models, "batch_sizes": sizes})


def _sizes(pairs: tuple[tuple[str, str], ...]) -> dict[str, int]:
    try:
        return {name: int(size) for name, size in pairs}
    except ValueError:
        raise ConfigError(f"--batch-size takes FEATURE=N, found {dict(pairs)}.") from None


@contextmanager
def display(*, workers: bool = False) -> Iterator[Any]:
    """The live display on a terminal, plain lines elsewhere; both on standard error.

    With ``workers`` it has a line for each worker process.
    With ``--verbose`` plain lines on a terminal too, one per chunk; with ``--quiet`` nothing.
    """
    from rich.console import Console

    from consumers.progress import LiveDisplay, PlainDisplay
    from consumers.workers.display import LiveDevices, PlainDevices

    if is_quiet():
        yield lambda _event, _facts: None
        return
    console = Console(stderr=True)
    show: LiveDisplay | PlainDisplay | LiveDevices | PlainDevices
    if console.is_terminal and not is_verbose():
        show = LiveDevices(console) if workers else LiveDisplay(console)
    else:
        plain = PlainDevices if workers else PlainDisplay
        show = plain(sys.stderr, **({"interval_s": 0.0} if is_verbose() else {}))
    try:
        yield show
    finally:
        show.close()


def report_facts(report: BuildReport, scanned: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain values for ``--json``."""
    return {
        "store": str(report.store),
        "samples": report.samples,
        "views": report.views,
        "built": report.built,
        "seconds": round(report.seconds, 3),
        "bad": [[b.index, b.modality, b.reason, b.detail] for b in report.bad],
        "unmatched_images": scanned["unmatched_images"],
        "unmatched_texts": scanned["unmatched_texts"],
        "left_out": scanned["left_out"],
        "alike": scanned["alike"],
        "truncated": dict(report.truncated),
        "replaced": dict(report.replaced),
        "restarted": dict(report.restarted),
        "absent": dict(report.absent),
    }


def print_report(report: BuildReport, scanned: Mapping[str, Any]) -> None:
    """Prints a summary of the build and of every problem in its inputs, on standard error."""
    if not report.built:
        say(f"nothing to do: {report.store} is complete, {amount(report.samples, 'sample')}")
    else:
        rate = report.built / report.seconds
        say(
            f"built {amount(report.built, 'sample')} x {amount(report.views, 'view')} "
            f"in {report.seconds:.1f} s "
            f"({rate:.1f} samples/s); {report.store} is complete, "
            f"{amount(report.samples, 'sample')}"
        )
    say_list("images without a synopsis", [repr(n) for n in scanned["unmatched_images"]])
    say_list("synopses without an image", [repr(n) for n in scanned["unmatched_texts"]])
    say_left_out(scanned["left_out"], scanned["alike"])
    for name, count in report.truncated.items():
        if count:
            verb = "was" if count == 1 else "were"
            say(f"{name}: {amount(count, 'view')} {verb} cut to the tokenizer's length")
    for why, count in report.replaced.items():
        say(f"producers replaced: {count} ({why})")
    for why, count in report.restarted.items():
        say(f"workers started again: {count} ({why})")
    for modality, count in report.absent.items():
        say(f"{amount(count, 'sample')} without {'an image' if modality == 'image' else 'a text'}")
    stems = bad_stems(report)
    lines = [f"{stems[b.index]!r}: {b.modality} {b.reason} ({b.detail})" for b in report.bad]
    say_list("bad inputs, each with a placeholder", lines, separator="\n  ")


def bad_stems(report: BuildReport) -> dict[int, str]:
    """The stem of each sample with a bad input."""
    if not report.bad:
        return {}
    from featurestore.storage.store import FeatureStore

    stems = FeatureStore(report.store).stems
    return {b.index: stems[b.index] for b in report.bad}
