"""``materialize`` and ``labels``: write the files of the published pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.errors import ConfigError
from featurestore.wording import amount
from manyviews.commands.options import (
    FOLDER,
    check_split,
    common_options,
    data_option,
    follow_option,
    json_option,
    say,
    say_list,
    store_option,
)

if TYPE_CHECKING:
    pass


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
@data_option
@follow_option
@click.option(
    "--out-dir",
    required=True,
    type=FOLDER,
    help="Output folder for the label files; created if missing.",
)
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
    default="mm_imdb1_globals_aug70",
    show_default=True,
    help="First part of the file names.",
)
@click.option(
    "--embeddings-dir",
    type=FOLDER,
    help="For --augment: folder of the embeddings, where the noisy labels are written.",
)
@json_option
@common_options
def labels(
    data_dir: Path,
    follow_links: bool,
    out_dir: Path,
    augment: bool,
    views: int | None,
    seed: int | None,
    prefix: str,
    embeddings_dir: Path | None,
    as_json: bool,
) -> int:
    """Write labels_all_23.npy, ids_all.txt and class_names_23.json.

    \b
    Example:
      python cli.py labels --data-dir imdb/dataset --out-dir labels
    """
    from manyviews.operations.labels import labels as run

    if augment and embeddings_dir is None:
        raise ConfigError("--augment needs --embeddings-dir, the folder of the embeddings.")
    for option, value in (("embeddings-dir", embeddings_dir), ("views", views), ("seed", seed)):
        if value is not None and not augment:
            raise ConfigError(f"--{option} requires --augment, which was not given.")
    report = run(
        data_dir,
        out_dir,
        follow_links=follow_links,
        embeddings_dir=embeddings_dir,
        views=views,
        seed=seed,
        prefix=prefix,
    )
    if as_json:
        facts = {
            "samples": report.samples,
            "unknown_genres": dict(report.unknown_genres),
            "without_genre": list(report.without_genre),
            "unreadable": list(report.unreadable),
        }
        click.echo(json.dumps(facts))
    say(f"{amount(report.samples, 'sample')}, 23 classes: {out_dir}")
    say_list("unknown genres", [f"{name!r} x {count}" for name, count in report.unknown_genres])
    say_list("samples without a known genre", [repr(s) for s in report.without_genre])
    say_list("synopses that could not be read", [repr(s) for s in report.unreadable])
    return 0
