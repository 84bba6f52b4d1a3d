"""Assemble the report: measure, draw, and write one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from featurestore.errors import InputError
from featurestore.imdb.label_sets import read_any_labels, split_in
from featurestore.imdb.splits import read_split
from featurestore.labels.label_set import LabelSet
from featurestore.labels.splitting import PARTS
from featurestore.storage.store import FeatureStore
from featurestore.system.durable import replace_file
from featurestore.wording import amount
from manyviews.operations.collection_labels import labels_of, scan_for, split_of
from manyviews.operations.report import data_sections, label_sections, plots, projection, sections
from manyviews.operations.report.content import Section
from manyviews.operations.report.features import FeatureFacts, measure
from manyviews.operations.report.inputs import bad_rows
from manyviews.operations.report.pairs import pairs
from manyviews.operations.report.runs import throughput
from manyviews.operations.report.sampling import Sampled, choose
from producers.sources.collection import MM_IMDB, CollectionConfig
from producers.sources.scan import Scan

_LABELS_ADVICE = "Give --labels-dir, the folder that `labels` wrote, to see the labels."


@dataclass(frozen=True, slots=True)
class Sources:
    """The inputs of the page.

    Attributes:
        store: folder of the store.
        collection: the collection that the store was built from, for pictures of bad samples, and
            for labels and split without ``labels_dir``; or None.
        labels_dir: folder of the labels, or None.
        split_json: the split file; None for that in ``labels_dir`` or of the collection.
    """

    store: Path
    collection: CollectionConfig | None = None
    labels_dir: Path | None = None
    split_json: Path | None = None


def write(sources: Sources, out: Path) -> dict[str, int]:
    """Writes the page; equal stores and labels give equal bytes.

    Returns:
        ``bytes``, the size of the page; ``samples``, the number of samples in the store; and
        ``measured``, the number of samples that the expensive parts were measured on.

    Raises:
        ConfigError: matplotlib is not installed.
        InputError: the store is missing or empty, or the labels or split are of other samples.
        CorruptStoreError: a chunk is damaged.
        StorageError: the page could not be written.
    """
    _require_folder(sources.collection)
    store = FeatureStore(sources.store)
    if not len(store.ledger):
        raise InputError(
            f"{store.path} is still empty: no chunk is committed.\nTry again when one is."
        )
    plots.require()
    sampled = choose(store)
    data = page(store, sources, sampled).encode()
    replace_file(out, data)
    return {"bytes": len(data), "samples": len(store.records), "measured": len(sampled.samples)}


def _require_folder(collection: CollectionConfig | None) -> None:
    """Refuses a folder of MM-IMDb that is not there; other kinds are scanned when needed."""
    if collection is None or collection.kind != MM_IMDB:
        return
    if not Path(collection.path).is_dir():
        raise InputError(f"--data-dir {collection.path} is not a folder.")


def page(store: FeatureStore, sources: Sources, sampled: Sampled) -> str:
    """The page as HTML."""
    scanned = _scan(store, sources)
    labels = _labels(store, sources, scanned)
    parts = _parts(store, sources, scanned)
    body = [
        sections.summary(store),
        *_about_features(store, sampled, labels),
        label_sections.labels(labels, parts, _LABELS_ADVICE),
        *data_sections.split(store, parts),
        data_sections.bad_samples(store, bad_rows(store, sources.collection)),
        data_sections.speed(throughput(store.path)),
    ]
    return render(store.path.resolve().name, _measured(store, sampled), body)


def render(name: str, scope: str, sections: Sequence[Section]) -> str:
    """Renders the page as HTML; escapes all text, because names and paths are untrusted.

    Args:
        name: the store's name.
        scope: a sentence about which samples were measured.
        sections: the sections in their order.
    """
    template = files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, finalize=_printable, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(template).render(name=name, scope=scope, sections=sections)
    return f"{page}\n"


def _printable(value: object) -> object:
    """Escapes control characters, marks of writing direction and lone surrogates."""
    if isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def _scan(store: FeatureStore, sources: Sources) -> Scan | None:
    """The collection of the store, if its labels or split are needed.

    A folder of MM-IMDb shows pictures of the samples that it has, even if it has not all of the
    store.

    Raises:
        InputError: the collection is another one.
    """
    if sources.collection is None or sources.labels_dir is not None:
        return None
    try:
        return scan_for(sources.collection, store.stems, store.path)
    except InputError:
        if sources.collection.kind != MM_IMDB:
            raise
        return None


def _labels(store: FeatureStore, sources: Sources, scanned: Scan | None) -> LabelSet | None:
    if sources.labels_dir is not None:
        return read_any_labels(sources.labels_dir, store.stems)
    if scanned is None or (scanned.labels is None and scanned.collection.kind != MM_IMDB):
        return None
    return labels_of(scanned)


def _parts(
    store: FeatureStore, sources: Sources, scanned: Scan | None
) -> dict[str, npt.NDArray[np.int64]]:
    """The samples of each part of the split, by name; empty without a split."""
    path = sources.split_json or split_in(sources.labels_dir)
    if path is not None:
        split = read_split(path, store.stems)
        return {"train": split.train, "val": split.val, "test": split.test}
    stated = None if scanned is None else split_of(scanned)
    if stated is None:
        return {}
    names = ["val" if name == "dev" else name for name in PARTS]
    return {name: np.flatnonzero(stated.parts == number) for number, name in enumerate(names)}


def _about_features(
    store: FeatureStore, sampled: Sampled, labels: LabelSet | None
) -> list[Section]:
    """The sections that read rows; none if every sample that would be read is bad or has none."""
    names = [name for name in store.features if len(sampled.having(store, name).samples)]
    if not names:
        return []
    measured: list[FeatureFacts] = [measure(store, name, sampled) for name in names]
    groups = None if labels is None else projection.groups_of(labels, sampled.samples)
    return [
        sections.norms(measured),
        sections.dimensions(measured),
        sections.planes(measured, groups, sampled.samples),
        sections.spread(measured),
        sections.matching(list(pairs(measured))),
    ]


def _measured(store: FeatureStore, sampled: Sampled) -> str:
    """A sentence about the part of the store that was measured."""
    done, seen = len(store.records), len(sampled.samples)
    if len(sampled.chunks) == len(store.ledger):
        scope = f"Measured on all {amount(seen, 'sample')} that are committed"
    else:
        scope = (
            f"Means, deviations, labels and bad samples are of {amount(done, 'committed sample')}. "
            f"Norms, planes, spread and pairs are measured on {seen:,} of them, chunks spread "
            f"evenly over the store: {len(sampled.chunks)}"
        )
    without = f", without {sampled.left_out:,} with bad inputs" if sampled.left_out else ""
    lacking = [name for name in store.features if not len(sampled.having(store, name).samples)]
    none = f" None of them has the input of {', '.join(lacking)}." if lacking and seen else ""
    return f"{scope}{without}.{none}"
