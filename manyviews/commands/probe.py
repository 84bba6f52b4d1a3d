"""``probe``: how well a linear probe predicts the labels from the features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.errors import ConfigError
from manyviews.commands.inputs import InputOptions, input_options
from manyviews.commands.options import (
    FOLDER,
    FeatureList,
    common_options,
    json_option,
    store_option,
)

if TYPE_CHECKING:
    from manyviews.operations.probe.probe import ProbeTable
    from manyviews.operations.probe.targets import AnyScores

_TITLES = {
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "samples_f1": "samples F1",
    "mean_ap": "mAP",
    "accuracy": "accuracy",
    "top5": "top-5",
    "r2": "R2",
    "spearman": "Spearman",
}
# The title of the row of scores without features.
_BASELINES = {"multi-label": "chance", "class": "frequent", "value": "mean"}


@click.command()
@store_option
@click.option(
    "--labels-dir", type=FOLDER, help="Folder that `labels` wrote; or name the inputs of the store:"
)
@input_options
@click.option(
    "--split-json",
    type=FOLDER,
    help="Split file with train, dev and test.  [default: that in --labels-dir or of the inputs; "
    "else 0.8,0.1,0.1 are drawn with seed 0]",
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
    labels_dir: Path | None,
    split_json: Path | None,
    features: str | None,
    threshold: str,
    device: str,
    as_json: bool,
    inputs: InputOptions,
) -> int:
    """Fit a linear probe to each feature and to all of them together; print the test scores.

    The scores are F1 and mAP of several classes a sample; accuracy, top-5 and macro F1 of one class
    each; R2 and Spearman's correlation of values. The probe is trained on clean views; its weight
    decay is chosen on dev. Test samples are predicted from their clean view, and from the mean
    prediction over all their views. Samples with a bad or absent input, or without a label, are
    left out. The last row uses no features: chance, with classes predicted at random as often as
    they occur in training; the most frequent classes; or the mean value.

    \b
    Example:
      python cli.py probe --store features --labels-dir labels --split-json imdb/split.json
      python cli.py probe --store features --data photos
    """
    from manyviews.operations.probe.request import ProbeRequest

    request = ProbeRequest(
        store=store,
        labels_dir=labels_dir,
        collection=inputs.collection() if labels_dir is None or inputs.are_given else None,
        split_json=split_json,
        features=None if features is None else tuple(f.strip() for f in features.split(",")),
        threshold=_threshold(threshold),
        device=device,
    )
    labelled = request.check()
    from manyviews.operations.probe.probe import probe as run

    table = run(request, labelled)
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
    yield from _about(table, threshold)
    yield ""
    names = ["all together" if len(r.features) > 1 else r.features[0] for r in table.rows]
    baseline = _BASELINES[table.kind]
    width = max(len(name) for name in (*names, "feature", baseline))
    titles = [_TITLES[name] for name in asdict(table.chance)]
    head = "  ".join(f"{title:>5}" for title in titles)
    column = "  threshold" if table.kind == "multi-label" else ""
    yield f"{'feature':<{width}}      D  views  {head}{column}  weight decay"
    for name, row in zip(names, table.rows, strict=True):
        views = "clean" if row.views == 1 else f"{row.views:>5}"
        cut = "" if row.threshold is None else f"  {row.threshold:>9.2f}"
        cells = f"{_cells(row.scores)}{cut}  {row.weight_decay:>12g}"
        yield f"{name:<{width}}  {row.dim:>5}  {views}  {cells}"
    yield f"{baseline:<{width}}                {_cells(table.chance)}"


def _about(table: ProbeTable, threshold: str) -> Iterator[str]:
    """The lines before the table: samples, classes and, unless a file was named, the split."""
    left_out, unlabelled = sum(table.left_out.values()), sum(table.unlabelled.values())
    parts = ", ".join(f"{count:,} {name}" for name, count in table.samples.items())
    absent = sum(table.absent.values())
    without = f", {absent:,} without the input of a feature" if absent else ""
    without += f", {unlabelled:,} without a label" if unlabelled else ""
    yield f"{parts} samples; {left_out:,} with a bad input{without} left out"
    how = "chosen on dev" if threshold == "dev" else "given"
    thresholds = f"; thresholds {how}" if table.kind == "multi-label" else ""
    if table.kind != "value":
        yield f"{table.classes:,} of {table.all_classes:,} classes occur in test{thresholds}"
    yield f"split: {table.split_from}"


def _cells(scores: AnyScores) -> str:
    cells = []
    for name, value in asdict(scores).items():
        width = max(len(_TITLES[name]), 5)
        cells.append(f"{'-':>{width}}" if value is None else f"{value:>{width}.3f}")
    return "  ".join(cells)
