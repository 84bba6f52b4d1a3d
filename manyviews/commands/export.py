"""``export``: write the features in formats that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from featurestore.wording import amount
from manyviews.commands.options import (
    FOLDER,
    FeatureList,
    check_split,
    chunk_progress,
    common_options,
    json_option,
    say,
    store_option,
)
from manyviews.operations.export.formats import DTYPES, FORMATS


@click.command()
@store_option
@click.option(
    "--format",
    required=True,
    type=click.Choice(list(FORMATS)),
    help="File format; hf writes a folder for datasets.load_from_disk.",
)
@click.option(
    "--out-dir", required=True, type=FOLDER, help="Folder to create; it must be absent or empty."
)
@click.option("--views", help="Views to export, for example 0-9,20.  [default: all]")
@click.option("--features", type=FeatureList(), help="Comma-separated.  [default: the store's]")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Type of the features; bfloat16 needs --format safetensors.",
)
@click.option(
    "--zscore",
    type=click.Choice(["all", "train", "none"]),
    default="all",
    show_default=True,
    help="Scale by all rows (the paper's way), by the training rows only, or not at all.",
)
@click.option("--split-json", type=FOLDER, help="Split file, for --zscore train.")
@click.option(
    "--labels-dir", type=FOLDER, help="Folder that `labels` wrote, to add a column of labels."
)
@json_option
@common_options
def export(
    store: Path,
    format: str,
    out_dir: Path,
    views: str | None,
    features: str | None,
    dtype: str,
    zscore: str,
    split_json: Path | None,
    labels_dir: Path | None,
    as_json: bool,
) -> int:
    """Write a complete store as npy, Parquet, safetensors, Hugging Face or WebDataset files.

    The folder gets its name when the export is complete. An interrupted export leaves nothing
    under that name, and can be run again.

    \b
    Example:
      python cli.py export --store features --format parquet --out-dir parquet --views 0
    """
    from manyviews.operations.export.request import ExportRequest, parse_views
    from manyviews.operations.export.run import export as run

    check_split(zscore, split_json)
    request = ExportRequest(
        store=store,
        out_dir=out_dir,
        format=format,
        views=None if views is None else parse_views(views),
        features=None if features is None else tuple(f.strip() for f in features.split(",")),
        dtype=dtype,
        zscore=zscore,
        split_json=split_json,
        labels_dir=labels_dir,
    )
    with chunk_progress() as progress:
        done = run(request, progress)
    if as_json:
        facts: dict[str, Any] = {
            "out_dir": str(done.out_dir),
            "rows": done.rows,
            "files": done.files,
        }
        facts["zscore"] = zscore
        click.echo(json.dumps(facts))
    for name, size in done.files.items():
        say(f"{size:>16,}  {name}")
    say(request.scaling)
    say(f"{amount(done.rows, 'row')}: {done.out_dir}")
    return 0
