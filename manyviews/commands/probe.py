"""``probe``: how well a linear probe predicts the labels from the features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.errors import ConfigError
from manyviews.commands.options import (
    FOLDER,
    FeatureList,
    common_options,
    json_option,
    store_option,
)

if TYPE_CHECKING:
    from manyviews.operations.probe.probe import ProbeTable
    from manyviews.operations.probe.scores import Scores

_TITLES = ("micro F1", "macro F1", "weighted F1", "samples F1", "mAP")


@click.command()
@store_option
@click.option("--labels-dir", required=True, type=FOLDER, help="Folder that `labels` wrote.")
@click.option(
    "--split-json", required=True, type=FOLDER, help="Split file with train, dev and test."
)
@click.option("--features", type=FeatureList(), help="Comma-separated.  [default: the store's]")
@click.option(
    "--threshold",
    default="dev",
    show_default=True,
    help="Probability above which a class is predicted: a number, or dev to choose it on dev.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
@common_options
def probe(
    store: Path,
    labels_dir: Path,
    split_json: Path,
    features: str | None,
    threshold: str,
    device: str,
    as_json: bool,
) -> int:
    """Fit a linear probe to each feature and to all of them together; print the test scores.

    The probe is trained on clean views; its weight decay is chosen on dev. Test samples are
    predicted from their clean view, and from the mean probability over all their views. Samples
    with a bad input are left out. The last row is chance: each class predicted at random, as often
    as it occurs in training.

    \b
    Example:
      python cli.py probe --store features --labels-dir labels --split-json imdb/split.json
    """
    from manyviews.operations.probe.request import ProbeRequest

    request = ProbeRequest(
        store=store,
        labels_dir=labels_dir,
        split_json=split_json,
        features=None if features is None else tuple(f.strip() for f in features.split(",")),
        threshold=_threshold(threshold),
        device=device,
    )
    request.check()
    from manyviews.operations.probe.probe import probe as run

    table = run(request)
    if as_json:
        click.echo(json.dumps(_facts(table, threshold)))
    else:
        click.echo("\n".join(_lines(table, threshold)))
    return 0


def _threshold(text: str) -> float | None:
    if text == "dev":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"--threshold must be dev or a number between 0 and 1, found {text!r}."
        ) from None


def _facts(table: ProbeTable, threshold: str) -> dict[str, Any]:
    return asdict(table) | {"threshold_from": "dev" if threshold == "dev" else "option"}


def _lines(table: ProbeTable, threshold: str) -> Iterator[str]:
    left_out = sum(table.left_out.values())
    parts = ", ".join(f"{count:,} {name}" for name, count in table.samples.items())
    yield f"{parts} samples; {left_out:,} with a bad input left out"
    how = "chosen on dev" if threshold == "dev" else "given"
    yield f"{table.classes} of 23 classes occur in test; thresholds {how}"
    yield ""
    names = ["all together" if len(r.features) > 1 else r.features[0] for r in table.rows]
    width = max(len(name) for name in (*names, "feature"))
    head = "  ".join(f"{title:>5}" for title in _TITLES)
    yield f"{'feature':<{width}}      D  views  {head}  threshold  weight decay"
    for name, row in zip(names, table.rows, strict=True):
        views = "clean" if row.views == 1 else f"{row.views:>5}"
        cells = f"{row.threshold:>9.2f}  {row.weight_decay:>12g}"
        yield f"{name:<{width}}  {row.dim:>5}  {views}  {_cells(row.scores)}  {cells}"
    yield f"{'chance':<{width}}                {_cells(table.chance)}"


def _cells(scores: Scores) -> str:
    values = asdict(scores).values()
    return "  ".join(f"{v:>{max(len(t), 5)}.3f}" for t, v in zip(_TITLES, values, strict=True))
