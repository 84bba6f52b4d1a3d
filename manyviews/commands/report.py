"""``report``: write an HTML page that describes a store."""

from __future__ import annotations

import json
from pathlib import Path

import click

from featurestore.errors import ConfigError
from manyviews.commands.options import (
    FOLDER,
    common_options,
    follow_option,
    json_option,
    say,
    store_option,
)


@click.command()
@store_option
@click.option("--out", required=True, type=FOLDER, help="HTML file to write.")
@click.option(
    "--data-dir", type=FOLDER, help="Folder of the posters, for pictures of the bad samples."
)
@follow_option
@click.option(
    "--labels-dir", type=FOLDER, help="Folder that `labels` wrote, for genres and colours."
)
@click.option("--split-json", type=FOLDER, help="Split file, for numbers of each part.")
@json_option
@common_options
def report(
    store: Path,
    out: Path,
    data_dir: Path | None,
    follow_links: bool,
    labels_dir: Path | None,
    split_json: Path | None,
    as_json: bool,
) -> int:
    """Write an HTML page about a store: its features, views, genres, bad samples and throughput.

    The page is one file without scripts, and needs no network. For a large store the expensive
    parts are measured on 2,048 samples; the page says so. The store may still be being built.
    Needs matplotlib, which the extra `report` installs.

    \b
    Example:
      python cli.py report --store features --out report.html --labels-dir labels
    """
    from manyviews.operations.report.page import Sources, write

    if follow_links and data_dir is None:
        raise ConfigError("--follow-links requires --data-dir, which was not given.")
    sources = Sources(store, data_dir, labels_dir, split_json, follow_links=follow_links)
    done = write(sources, out)
    if as_json:
        click.echo(json.dumps({"out": str(out), **done}))
    say(f"{done['bytes']:,} bytes: {out}")
    return 0
