"""Put the report together: measure, draw, and write one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.durable import replace_file
from featurestore.errors import InputError
from featurestore.label_files import read_labels
from featurestore.splits import read_split
from featurestore.store import FeatureStore
from featurestore.wording import amount
from operations.report import data_sections, plots, projection, sections
from operations.report.features import FeatureFacts, measure
from operations.report.html import Markup, escape
from operations.report.inputs import bad_rows
from operations.report.pairs import pairs
from operations.report.runs import throughput
from operations.report.sampling import Sampled, choose
from operations.report.style import STYLE

# No script, and nothing from anywhere: even a page that somebody changed could fetch nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, slots=True)
class Sources:
    """What the page is made of.

    Attributes:
        store: the store.
        data_dir: its posters, for pictures of bad samples; or None.
        labels_dir: its labels, for genres; or None.
        split_json: its split; or None.
        follow_links: whether links in ``data_dir`` that lead out of it are read.
    """

    store: Path
    data_dir: Path | None = None
    labels_dir: Path | None = None
    split_json: Path | None = None
    follow_links: bool = False


def write(sources: Sources, out: Path) -> dict[str, int]:
    """Writes the page; the same store and labels give the same bytes.

    Returns:
        ``bytes`` of the page, ``samples`` of the store, and ``measured``, how many of them the
        expensive parts saw.

    Raises:
        ConfigError: matplotlib is not installed.
        InputError: there is no store, nothing in it yet, or labels or split are of other samples.
        CorruptStoreError: a chunk that is read is damaged.
        StorageError: the page could not be written.
    """
    if sources.data_dir is not None and not sources.data_dir.is_dir():
        raise InputError(f"--data-dir {sources.data_dir} is no folder.")
    store = FeatureStore(sources.store)
    if not len(store.ledger):
        raise InputError(
            f"{store.path} holds nothing yet: no chunk is committed.\nTry again when one is."
        )
    plots.require()
    sampled = choose(store)
    data = page(store, sources, sampled).encode()
    replace_file(out, data)
    return {"bytes": len(data), "samples": len(store.records), "measured": len(sampled.samples)}


def page(store: FeatureStore, sources: Sources, sampled: Sampled) -> str:
    """The page as text."""
    labels = None
    if sources.labels_dir is not None:
        labels = read_labels(sources.labels_dir, store.stems)
    parts = _parts(store, sources.split_json)
    body = [
        sections.summary(store),
        *_about_features(store, sampled, labels),
        data_sections.genres(labels, parts),
        *data_sections.split(store, parts),
        data_sections.bad_samples(
            store, bad_rows(store, sources.data_dir, follow_links=sources.follow_links)
        ),
        data_sections.speed(throughput(store.path)),
    ]
    return _document(store, sampled, body)


def _parts(store: FeatureStore, split_json: Path | None) -> dict[str, npt.NDArray[np.int64]]:
    if split_json is None:
        return {}
    found = read_split(split_json, store.stems)
    return {"train": found.train, "val": found.val, "test": found.test}


def _about_features(
    store: FeatureStore, sampled: Sampled, labels: npt.NDArray[np.float32] | None
) -> list[Markup]:
    """The sections that read rows; none where every sample that would be read is bad."""
    if not len(sampled.samples):
        return []
    measured: list[FeatureFacts] = [measure(store, name, sampled) for name in store.features]
    groups = None if labels is None else projection.groups(labels[sampled.samples])
    return [
        sections.norms(measured),
        sections.dimensions(measured),
        sections.planes(measured, groups),
        sections.spread(measured),
        sections.matching(list(pairs(measured))),
    ]


def _document(store: FeatureStore, sampled: Sampled, body: Sequence[Markup]) -> str:
    name = escape(store.path.resolve().name)
    links = "\n".join(f'<a href="#{at}">{title}</a>' for at, title in map(_heading, body))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: feature store</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{name}</h1>\n"
        f'<p class="soft">{escape(_measured(store, sampled))}</p>\n</header>\n'
        f'<nav aria-label="Sections">\n{links}\n</nav>\n<main>\n' + "\n".join(body) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def _heading(part: Markup) -> tuple[str, str]:
    """A section's name and its title."""
    return part.split('"', 2)[1], part.split("<h2>", 1)[1].split("</h2>", 1)[0]


def _measured(store: FeatureStore, sampled: Sampled) -> str:
    """Which part of the store the page is about."""
    done, seen = len(store.records), len(sampled.samples)
    if len(sampled.chunks) == len(store.ledger):
        scope = f"Measured on all {amount(seen, 'sample')} done"
    else:
        scope = (
            f"Means, deviations, genres and bad samples are of {amount(done, 'committed sample')}. "
            f"Norms, planes, spread and pairs are measured on {seen:,} of them, chunks spread "
            f"evenly over the store: {len(sampled.chunks)}"
        )
    without = f", without {sampled.left_out:,} with bad inputs" if sampled.left_out else ""
    return f"{scope}{without}."
