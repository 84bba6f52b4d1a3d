"""``materialize`` and ``labels``: write the files of the published pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.errors import ConfigError
from featurestore.wording import amount
from manyviews.commands.inputs import InputOptions, input_options
from manyviews.commands.options import (
    FOLDER,
    check_split,
    common_options,
    json_option,
    say,
    say_left_out,
    say_list,
    store_option,
)

if TYPE_CHECKING:
    from featurestore.imdb.labels import LabelReport
    from manyviews.operations.labels import CollectionLabels


@click.command()
@store_option
@click.option("--out-dir", required=True, type=FOLDER, help="Output folder; created if missing.")
@click.option(
    "--prefix",
    help="First part of the file names.  [default: features; the published one for MM-IMDb, "
    "mm_imdb1_globals_aug70]",
)
@click.option(
    "--zscore",
    type=click.Choice(["all", "train", "none"]),
    default="all",
    show_default=True,
    help="Scale by all rows (the paper's way), by the training rows only, or not at all.",
)
@click.option("--split-json", type=FOLDER, help="Split file, for --zscore train.")
@json_option
@common_options
def materialize(
    store: Path,
    out_dir: Path,
    prefix: str | None,
    zscore: str,
    split_json: Path | None,
    as_json: bool,
) -> int:
    """Write the published pipeline's .npy, stats, index and manifest from a complete store.

    \b
    Example:
      python cli.py materialize --store features --out-dir embeddings
    """
    from featurestore.imdb.materialize import materialize as run
    from featurestore.storage.store import FeatureStore

    check_split(zscore, split_json)
    done = run(FeatureStore(store), out_dir, prefix=prefix, zscore=zscore, split_json=split_json)
    if as_json:
        click.echo(json.dumps({"out_dir": str(done.out_dir), "files": done.files}))
    for name, size in done.files.items():
        say(f"{size:>16,}  {name}")
    return 0


@click.command()
@input_options
@click.option(
    "--out-dir",
    required=True,
    type=FOLDER,
    help="Output folder for the label files; created if missing.",
)
@click.option(
    "--classes",
    type=FOLDER,
    help="JSON list of the classes, in the order of the columns.  [default: those found, sorted]",
)
@click.option(
    "--split",
    metavar="SHARES",
    help="Draw split.json: shares of train, dev and test, as in 0.8,0.1,0.1, with about the same "
    "share of each label in every part.  [default: the split of the collection, if it has one]",
)
@click.option("--split-seed", type=int, help="For --split: the seed.  [default: 0]")
@click.option("--augment", is_flag=True, help="Also write noisy labels for every view.")
@click.option(
    "--views",
    type=int,
    help="For --augment: views per sample.  [default: the embeddings', or 70 if there are none]",
)
@click.option(
    "--seed",
    type=int,
    help="For --augment: base seed.  [default: the embeddings', or 123 if there are none]",
)
@click.option(
    "--prefix",
    help="For --augment: first part of the embeddings' names.  [default: mm_imdb1_globals_aug70; "
    "features for other collections]",
)
@click.option(
    "--embeddings-dir",
    type=FOLDER,
    help="For --augment: folder of the embeddings, where the noisy labels are written.",
)
@json_option
@common_options
def labels(
    inputs: InputOptions,
    out_dir: Path,
    classes: Path | None,
    split: str | None,
    split_seed: int | None,
    augment: bool,
    views: int | None,
    seed: int | None,
    prefix: str | None,
    embeddings_dir: Path | None,
    as_json: bool,
) -> int:
    """Write the labels of a collection: labels.npy, ids.txt, class_names.json and split.json.

    Those of MM-IMDb have the published names: labels_all_23.npy, ids_all.txt and
    class_names_23.json.

    \b
    Example:
      python cli.py labels --data-dir imdb/dataset --out-dir labels
      python cli.py labels --data photos --out-dir labels --split 0.8,0.1,0.1
    """
    from featurestore.imdb.labels import LabelReport
    from featurestore.labels.splitting import parse_fractions
    from manyviews.operations.labels import labels as run

    if augment and embeddings_dir is None:
        raise ConfigError("--augment needs --embeddings-dir, the folder of the embeddings.")
    given = {"embeddings-dir": embeddings_dir, "views": views, "seed": seed, "prefix": prefix}
    _require("augment", augment, given)
    _require("split", split is not None, {"split-seed": split_seed})
    report = run(
        out_dir=out_dir,
        collection=inputs.require(),
        classes=classes,
        split=None if split is None else parse_fractions(split),
        split_seed=split_seed or 0,
        embeddings_dir=embeddings_dir,
        views=views,
        seed=seed,
        prefix=prefix,
    )
    if isinstance(report, LabelReport):
        _print_genres(report, out_dir, as_json=as_json)
    else:
        _print_labels(report, out_dir, as_json=as_json)
    return 0


def _require(option: str, given: bool, others: Mapping[str, object]) -> None:
    """Refuses options that have no effect without another one."""
    for name, value in others.items():
        if value is not None and not given:
            raise ConfigError(f"--{name} requires --{option}, which was not given.")


def _print_genres(report: LabelReport, out_dir: Path, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "samples": report.samples,
            "unknown_genres": dict(report.unknown_genres),
            "without_genre": list(report.without_genre),
            "unreadable": list(report.unreadable),
            "left_out": [list(pair) for pair in report.left_out],
        }
        click.echo(json.dumps(facts))
    say(f"{amount(report.samples, 'sample')}, 23 classes: {out_dir}")
    say_left_out(report.left_out)
    say_list("unknown genres", [f"{name!r} x {count}" for name, count in report.unknown_genres])
    say_list("samples without a known genre", [repr(s) for s in report.without_genre])
    say_list("synopses that could not be read", [repr(s) for s in report.unreadable])


def _print_labels(report: CollectionLabels, out_dir: Path, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(report)))
    samples = amount(report.samples, "sample")
    if report.kind == "value":
        say(f"{samples}, each with a value: {out_dir}")
    else:
        each = "one class each" if report.kind == "class" else "any number of classes each"
        count = amount(len(report.classes), "class", "classes")
        say(f"{samples}, {each}, of {count}: {out_dir}")
        ranked = sorted(report.classes.items(), key=lambda item: -item[1])
        say_list("classes", [f"{name!r} x {count:,}" for name, count in ranked])
    say_left_out(report.left_out)
    say_list("samples without a label", [repr(id_) for id_ in report.unlabelled])
    if report.split is None:
        say("no split: draw one with --split 0.8,0.1,0.1")
        return
    origin = "of the collection" if report.split_from == "collection" else "drawn"
    say(f"split, {origin}: {', '.join(f'{n} {count:,}' for n, count in report.split.items())}")
