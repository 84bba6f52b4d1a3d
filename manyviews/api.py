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
    from consumers.build_report import BuildReport
    from consumers.config import BuildConfig
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
    sheet: Path | str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Reports what a build would meet: data, split, models, machine and time.

    Args:
        config: the build.
        split_json: the split to check, or None.
        full: read every input instead of a sample of 500.
        calibrate: load the models and try the build on a few samples.
        sheet: a PNG file to write, with the first three samples and their views, or None.
        say: called with a line for each step.

    Raises:
        InputError: the data folder cannot be read, or holds no sample.
        ConfigError: an option does not fit this machine.
    """
    from manyviews.operations.check.check import CheckRequest, run_check

    request = CheckRequest(
        config=config,
        split_json=_path(split_json),
        full=full,
        calibrate=calibrate,
        sheet=_path(sheet),
    )
    return run_check(request, say)


def materialize(
    store: Path | str,
    out_dir: Path | str,
    *,
    prefix: str | None = None,
    zscore: str = "all",
    split_json: Path | str | None = None,
) -> Materialized:
    """Writes the published ``.npy``, stats, manifest and index files from a complete store.

    Args:
        store: folder of the store.
        out_dir: folder of the files; created.
        prefix: what their names begin with; by default ``mm_imdb1_globals_aug70`` for MM-IMDb, and
            ``features`` for other data.
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
    from manyviews.operations.export.request import ExportRequest
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
    store: Path | str,
    *,
    data_dir: Path | str | None = None,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Checks every file of a store against its checksum, and the store's promises.

    With ``data_dir``, ``data`` or ``collection``, the inputs are read again and compared as well:
    the attribute ``inputs`` of the result has each that changed.

    Args:
        store: folder of the store.
        data_dir: its inputs, a folder of MM-IMDb's posters and synopses; or None.
        data: its inputs, a collection whose kind is recognized; or None.
        collection: its inputs, described; or None.
        follow_links: use symbolic links that lead out of a folder.
        progress: called with the number of chunks checked and of all chunks.

    Returns:
        The findings; none where nothing is damaged.

    Raises:
        ConfigError: more than one of the arguments names inputs.
        InputError: there is no store, or no collection.
        StorageError: a file could not be read.
    """
    from featurestore.verify.store import verify as run

    found = _collection(data_dir, data, collection, follow_links=follow_links)
    verified = run(Path(store), progress=progress)
    if found is not None:
        from manyviews.operations.current_inputs import compare

        verified.inputs = compare(Path(store), found, verified, progress=progress)
    return verified


def report(
    store: Path | str,
    out: Path | str,
    *,
    data_dir: Path | str | None = None,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    labels_dir: Path | str | None = None,
    split_json: Path | str | None = None,
    follow_links: bool = False,
) -> dict[str, int]:
    """Writes a page of HTML about a store: its features, inputs and builds.

    Args:
        store: folder of the store.
        out: the file to write.
        data_dir: its inputs, a folder of MM-IMDb's posters and synopses, for pictures of bad
            samples, and for labels without ``labels_dir``; or None.
        data: its inputs, a collection whose kind is recognized; or None.
        collection: its inputs, described; or None.
        labels_dir: its labels; or None.
        split_json: its split; None for that of the labels or the inputs.
        follow_links: use symbolic links that lead out of a folder.

    Returns:
        ``bytes`` of the page, ``samples`` of the store, and how many were ``measured``.

    Raises:
        ConfigError: matplotlib or jinja2 is not installed, or several arguments name inputs.
        InputError: there is no store, or nothing in it.
        CorruptStoreError: a chunk is damaged.
        StorageError: the page could not be written.
    """
    from manyviews.operations.report.page import Sources, write

    found = _collection(data_dir, data, collection, follow_links=follow_links)
    return write(Sources(Path(store), found, _path(labels_dir), _path(split_json)), Path(out))


def probe(
    store: Path | str,
    labels_dir: Path | str | None = None,
    split_json: Path | str | None = None,
    *,
    data_dir: Path | str | None = None,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    follow_links: bool = False,
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
        data_dir: the inputs of the store, a folder of MM-IMDb's posters and synopses, whose genres
            are read; or None.
        data: its inputs, a collection whose kind is recognized and whose labels are read; or None.
        collection: its inputs, described; or None. Exactly one of ``labels_dir``, ``data_dir``,
            ``data`` and ``collection`` is given.
        follow_links: use symbolic links that lead out of a folder.
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
        collection=_collection(data_dir, data, collection, follow_links=follow_links),
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


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _collection(
    data_dir: Path | str | None,
    data: Path | str | None,
    collection: CollectionConfig | None,
    *,
    follow_links: bool,
) -> CollectionConfig | None:
    from producers.sources.collection import given_collection

    return given_collection(
        data_dir=data_dir, data=data, collection=collection, follow_links=follow_links
    )
