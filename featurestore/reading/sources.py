"""Opens the source of a dataset's rows: a store, or a folder of materialized files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.reading.mapping import ADVICE, Advice, resolved
from featurestore.reading.npy_folder import NpyFolder, find_prefix
from featurestore.reading.rows import FeatureRows, npy_rows, store_rows
from featurestore.reading.scaling import ZSCORES, scale_for
from featurestore.storage.moments import Scale
from featurestore.storage.store import FeatureStore, is_store, record_crc32c

FeatureSource = FeatureStore | NpyFolder


def open_source(path: Path | str, prefix: str | None = None) -> FeatureSource:
    """Opens the store or the materialized files at ``path``.

    Args:
        path: a store, or a folder that ``materialize`` wrote.
        prefix: the beginning of the names of materialized files; only needed with several sets.

    Raises:
        InputError: the folder is neither, or its files are incomplete.
        CorruptStoreError: the store is damaged.
        StorageError: a file cannot be read.
    """
    path = Path(path)
    if is_store(path):
        return FeatureStore(path)
    prefix = prefix or find_prefix(path)
    return FeatureStore(path) if prefix is None else NpyFolder(path, prefix)


def chosen_chunks(source: FeatureSource, *, partial: bool) -> tuple[int, ...] | None:
    """The chunks to read of a growing store; None for all chunks of a complete one.

    Raises:
        InputError: the store is incomplete, and ``partial`` is False or no chunk is committed.
    """
    if isinstance(source, NpyFolder):
        return None
    if not partial:
        source.require_complete()
        return None
    if not len(source.ledger):
        raise InputError(f"Nothing of {source.path} is committed yet.")
    return tuple(entry.chunk for entry in source.ledger.entries)


def presence(source: FeatureSource, features: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether each sample has the input of each feature, bool ``[N, F]``."""
    present = np.ones((source.spec.samples, len(features)), bool)
    for column, name in enumerate(features):
        present[:, column] = source.present(name)
    return present


def open_rows(
    source: FeatureSource,
    features: Iterable[str],
    zscore: str,
    train: npt.NDArray[np.int64] | None,
    advice: Advice,
    chunks: Sequence[int] | None,
    scales: Mapping[str, Scale | None] | None = None,
) -> dict[str, FeatureRows]:
    """The rows of several features, scaled.

    Args:
        source: the store or folder.
        features: the features' names.
        zscore: ``all``, ``train`` or ``none``, see ``scaling.scale_for``.
        train: int64 indices of the training samples, needed for ``train``.
        advice: one of ``mapping.ADVICE``, for all files together.
        chunks: the committed chunks to read, see :func:`chosen_chunks`.
        scales: scales by feature of a store, if they are already known.

    Raises:
        ConfigError: an argument is invalid, or the files are scaled in another way.
        InputError: the store is not complete, or a file does not match its manifest.
        CorruptStoreError: the store is damaged.
        StorageError: a file cannot be read.
    """
    if zscore not in ZSCORES:
        raise ConfigError(f"zscore is one of {', '.join(ZSCORES)}, found {zscore!r}.")
    if advice not in ADVICE:
        raise ConfigError(f"advice is one of {', '.join(ADVICE)}, found {advice!r}.")
    if isinstance(source, NpyFolder):
        if zscore != source.zscore:
            raise ConfigError(
                f"The files in {source.path} were written with --zscore {source.zscore}, and "
                f"zscore={zscore!r} was requested.\n"
                f"Use zscore={source.zscore!r}, or read the store that they were written from."
            )
        folder, prefix = source.path, source.prefix
        return {name: npy_rows(folder, prefix, name, advice=advice) for name in features}
    if scales is None:
        scales = {name: scale_for(source, name, zscore, train, chunks) for name in features}
    return {
        name: store_rows(source, name, scale, advice=advice, chunks=chunks)
        for name, scale in scales.items()
    }


def resolve_advice(
    source: FeatureSource,
    features: Sequence[str],
    advice: Advice,
    chunks: Sequence[int] | None,
    *,
    sparse: bool,
) -> Advice:
    """Resolves ``auto`` for these features together; see ``mapping.choose_advice``."""
    if advice != "auto":
        return advice
    spec = source.spec
    row_bytes = 4 * sum(spec.dims[name] for name in features)
    if isinstance(source, NpyFolder):
        files = [f"{source.path}/{source.prefix}_{name}.npy" for name in features]
    else:
        present = range(spec.chunks) if chunks is None else chunks
        arrays = [source.array(name) for name in features]
        files = [f"{source.path}/{array.file(chunk)}" for array in arrays for chunk in present]
    return resolved(advice, files, spec.samples * spec.views * row_bytes, sparse=sparse)


def content_crc32c(
    source: FeatureSource, features: Iterable[str], chunks: Sequence[int] | None
) -> str:
    """A checksum of all recorded checksums of these features, to detect replaced rows.

    Args:
        source: the store or folder.
        features: the features' names.
        chunks: the committed chunks to read, see :func:`chosen_chunks`.
    """
    if isinstance(source, NpyFolder):
        return source.content_crc32c
    arrays = [source.array(name) for name in features]
    present = range(source.spec.chunks) if chunks is None else chunks
    files = {c: source.ledger[c].files if c in source.ledger else {} for c in present}
    recorded = [[*files[c].get(array.file(c), ())] for array in arrays for c in present]
    return record_crc32c({"files": recorded})


def require_unchanged(
    source: FeatureSource, features: Sequence[str], chunks: Sequence[int] | None
) -> None:
    """Checks that no chunk was replaced while the features were opened one after the other.

    Raises:
        InputError: chunks were replaced meanwhile, for example by ``build --remake-changed``.
    """
    if isinstance(source, FeatureStore) and source.ledger.is_current:
        return
    prefix = source.prefix if isinstance(source, NpyFolder) else None
    now = open_source(source.path, prefix)
    if content_crc32c(now, features, chunks) != content_crc32c(source, features, chunks):
        raise InputError(
            f"Rows of {source.path} were replaced while they were being opened.\n"
            "Open it again once the build or run that writes them has ended."
        )


def check_content(
    source: FeatureSource,
    features: Iterable[str],
    chunks: Sequence[int] | None,
) -> None:
    """Reads the features once and compares them with their recorded checksums.

    Raises:
        CorruptStoreError: a chunk differs from what was committed.
        InputError: a file does not match its manifest.
    """
    if isinstance(source, NpyFolder):
        source.check(features)
        return
    for name in features:
        for chunk in range(source.spec.chunks) if chunks is None else chunks:
            source.read_chunk(name, chunk)
