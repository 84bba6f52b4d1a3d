"""The commands as functions; ``import manyviews`` gives them.

Each does what the command of its name does and returns what that prints. Libraries are imported
when a function is called, so importing this module takes no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumers.build import Observer
    from consumers.config import BuildConfig
    from consumers.main_loop import BuildReport
    from featurestore.imdb.materialize import Materialized
    from featurestore.verify.findings import Verification
    from manyviews.operations.check.findings import CheckReport
    from manyviews.operations.export.run import Exported
    from manyviews.operations.probe.probe import ProbeTable
    from manyviews.operations.watch.watch import Progress
    from producers.sources.collection import CollectionConfig


def build(config: BuildConfig, observers: Sequence[Observer] = ()) -> BuildReport:
    """Creates the store that ``config`` asks for, or continues it.

    Args:
        config: the build.
        observers: called with each event of the build, in order; they show progress.

    Returns:
        What was built: samples, chunks, bad inputs and seconds.

    Raises:
        ManyViewsError: one of its subclasses, see :mod:`featurestore.errors`; committed chunks stay
            committed, and a build with ``resume=True`` continues from them.
    """
    from consumers.build import build as run

    return run(config, observers)


def check(
    config: BuildConfig,
    *,
    split_json: Path | str | None = None,
    full: bool = False,
    calibrate: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Reports what a build would meet: data, split, models, machine and time.

    Args:
        config: the build.
        split_json: the split to check, or None.
        full: read every input instead of a sample of 500.
        calibrate: load the models and try the build on a few samples.
        say: called with a line for each step.

    Raises:
        InputError: the data folder cannot be read, or holds no sample.
        ConfigError: an option does not fit this machine.
    """
    from manyviews.operations.check.check import CheckRequest, run_check

    split = _path(split_json)
    request = CheckRequest(config=config, split_json=split, full=full, calibrate=calibrate)
    return run_check(request, say)


def materialize(
    store: Path | str,
    out_dir: Path | str,
    *,
    prefix: str = "mm_imdb1_globals_aug70",
    zscore: str = "all",
    split_json: Path | str | None = None,
) -> Materialized:
    """Writes the published ``.npy``, stats, manifest and index files from a complete store.

    Args:
        store: folder of the store.
        out_dir: folder of the files; created.
        prefix: what their names begin with.
        zscore: ``all``, ``train`` (needs ``split_json``) or ``none``.
        split_json: the split file.

    Raises:
        InputError: the store is not complete, or the folder holds something else.
        CorruptStoreError: a chunk is damaged.
        StorageError: a file could not be written.
    """
    from featurestore.imdb.materialize import materialize as run
    from featurestore.storage.store import FeatureStore

    opened, split = FeatureStore(Path(store)), _path(split_json)
    return run(opened, Path(out_dir), prefix=prefix, zscore=zscore, split_json=split)


def export(
    store: Path | str,
    out_dir: Path | str,
    format: str,  # the option's name
    *,
    views: Sequence[int] | None = None,
    features: Sequence[str] | None = None,
    dtype: str = "float32",
    zscore: str = "all",
    split_json: Path | str | None = None,
    labels_dir: Path | str | None = None,
) -> Exported:
    """Exports a complete store for other programs.

    Args:
        store: folder of the store.
        out_dir: the folder to create; it must not exist, or be empty.
        format: ``parquet``, ``safetensors``, ``hf``, ``webdataset`` or ``npy``.
        views: numbers of views; None for all.
        features: names of features; None for all.
        dtype: of the features: ``float32``, ``float16``, or ``bfloat16`` where the format has it.
        zscore: ``all``, ``train`` (needs ``split_json``) or ``none``.
        split_json: the split file.
        labels_dir: label files to export beside the features, or None.

    Raises:
        ConfigError: the format's library is missing, or it has no such dtype.
        InputError: the store is not complete, or ``out_dir`` is not empty.
        CorruptStoreError: a chunk is damaged.
        StorageError: a file could not be written.
    """
    from manyviews.operations.export.plan import ExportRequest
    from manyviews.operations.export.run import export as run

    return run(
        ExportRequest(
            store=Path(store),
            out_dir=Path(out_dir),
            format=format,
            views=None if views is None else tuple(views),
            features=None if features is None else tuple(features),
            dtype=dtype,
            zscore=zscore,
            split_json=_path(split_json),
            labels_dir=_path(labels_dir),
        )
    )


def verify(
    store: Path | str, *, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Checks every file of a store against its checksum, and the store's promises.

    Args:
        store: folder of the store.
        progress: called with the number of chunks checked and of all chunks.

    Returns:
        The findings; none where nothing is damaged.

    Raises:
        InputError: there is no store.
        StorageError: a file could not be read.
    """
    from featurestore.verify.store import verify as run

    return run(Path(store), progress=progress)


def report(
    store: Path | str,
    out: Path | str,
    *,
    data_dir: Path | str | None = None,
    labels_dir: Path | str | None = None,
    split_json: Path | str | None = None,
    follow_links: bool = False,
    collection: CollectionConfig | Path | str | None = None,
) -> dict[str, int]:
    """Writes a page of HTML about a store: its features, inputs and builds.

    Args:
        store: folder of the store.
        out: the file to write.
        data_dir: MM-IMDb's folder of its inputs, for pictures of bad samples; or None.
        labels_dir: its labels; or None.
        split_json: its split; None for that of the labels or the collection.
        follow_links: use symbolic links that lead out of ``data_dir``.
        collection: the collection that it was built from, or its path, for labels and split without
            ``labels_dir``, and for pictures without ``data_dir``; or None.

    Returns:
        ``bytes`` of the page, ``samples`` of the store, and how many were ``measured``.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed.
        InputError: there is no store, or nothing in it.
        CorruptStoreError: a chunk is damaged.
        StorageError: the page could not be written.
    """
    from manyviews.operations.report.page import Sources, write

    paths = _path(data_dir), _path(labels_dir), _path(split_json)
    found = _collection(collection)
    sources = Sources(Path(store), *paths, follow_links=follow_links, collection=found)
    return write(sources, Path(out))


def probe(
    store: Path | str,
    labels_dir: Path | str | None = None,
    split_json: Path | str | None = None,
    *,
    collection: CollectionConfig | Path | str | None = None,
    features: Sequence[str] | None = None,
    threshold: float | None = None,
    device: str = "cpu",
) -> ProbeTable:
    """Fits a linear probe to each feature and to all together, and scores it on the test split.

    Args:
        store: folder of a complete store.
        labels_dir: a folder that ``labels`` wrote; or None.
        split_json: the split file; None for that of the labels or the collection, else shares of
            0.8, 0.1 and 0.1 that are drawn with seed 0.
        collection: the collection that the store was built from, or its path, whose labels are
            read. Exactly one of ``labels_dir`` and ``collection`` is given.
        features: names of features; None for all.
        threshold: above which a probability is a prediction; None chooses it on the dev split. For
            several labels a sample only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: the store has no such feature, or the machine no such device.
        InputError: the store is not complete, or split or labels are of other samples.
    """
    from manyviews.operations.probe.probe import probe as run
    from manyviews.operations.probe.request import ProbeRequest

    chosen = None if features is None else tuple(features)
    request = ProbeRequest(
        store=Path(store),
        labels_dir=_path(labels_dir),
        collection=_collection(collection),
        split_json=_path(split_json),
        features=chosen,
        threshold=threshold,
        device=device,
    )
    return run(request, request.check())


def status(store: Path | str) -> Progress:
    """Reports how far a store is, how fast, and which process writes to it; reads only.

    Args:
        store: folder of the store.

    Raises:
        InputError: there is no store.
        CorruptStoreError: its records are damaged.
    """
    from manyviews.operations.watch.watch import Looker

    return Looker(Path(store)).look()


def _collection(collection: CollectionConfig | Path | str | None) -> CollectionConfig | None:
    from producers.sources.recognize import recognize

    return recognize(collection) if isinstance(collection, (Path, str)) else collection


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)
