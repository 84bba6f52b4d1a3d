"""Write the paper's files from a complete store; memory does not grow with the number of samples.

An existing manifest is removed before anything is replaced, and the new one is written last: a
folder without a manifest is the unfinished output of a run, and no other marker is needed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.embeddings_manifest import embeddings_manifest
from featurestore.imdb.labels_manifest import manifest_path, read_labels_manifest, seed_of
from featurestore.imdb.splits import read_split
from featurestore.reading.npy import npy_header
from featurestore.reading.npy_folder import PRESENCE
from featurestore.reading.scaling import scale_for
from featurestore.records import FEATURES, is_feature_name
from featurestore.samples import present_in
from featurestore.storage.digests import FileFacts, HashingFile, read_record
from featurestore.storage.moments import Scale
from featurestore.storage.space import free_bytes
from featurestore.storage.store import FeatureStore
from featurestore.system import durable, removal
from featurestore.verify.digests import compare_files
from featurestore.verify.findings import Finding

PREFIX = "mm_imdb1_globals_aug70"
GENERIC_PREFIX = "features"
_PRESENCE_NAME = PRESENCE.removeprefix("_").removesuffix(".npy")  # no feature has this name
_INDEX_HEADER = ("aug_idx", "orig_idx", "view", "stem", "image_name", "text_len")
# Characters that require quotes (RFC 4180, 2.6). Older csv modules do not quote a carriage return.
_SPECIAL = re.compile('[,"\r\n]')


def default_prefix(preset: object) -> str:
    """The beginning of the names of files of a preset; None is that of the published data set."""
    return GENERIC_PREFIX if preset == "generic" else PREFIX


@dataclass(frozen=True, slots=True)
class Materialized:
    """The files that a run wrote.

    Attributes:
        out_dir: the output folder.
        files: size in bytes by file name, in the order of writing.
    """

    out_dir: Path
    files: dict[str, int]


def materialize(
    store: FeatureStore,
    out_dir: Path,
    *,
    prefix: str | None = None,
    zscore: str = "all",
    split_json: Path | None = None,
) -> Materialized:
    """Writes ``.npy``, stats, index and manifest of every feature of ``store`` into ``out_dir``.

    Args:
        store: a complete store.
        out_dir: the output folder; created if it is missing; files of an earlier run are replaced.
        prefix: the beginning of every file's name; by default that of :func:`default_prefix`.
        zscore: ``all``, ``train`` or ``none``, see ``scaling.scale_for``.
        split_json: the split file, needed for ``train``.

    Raises:
        InputError: the store is not complete, the split does not fit it, there is no free space, no
            sample has the input of a feature that is to be scaled, or the folder holds augmented
            labels of other samples or views, or other features.
        ConfigError: ``train`` without a split, an invalid prefix, or ``out_dir`` is not a folder or
            is inside the store.
        CorruptStoreError: a chunk is damaged; no manifest is written then.
        StorageError: a write failed; no manifest is written then.
        StoreLockedError: another process is materializing into the folder.
    """
    store.require_complete()
    prefix = default_prefix(store.fingerprint.get("preset")) if prefix is None else prefix
    _check_arguments(store, out_dir, prefix)
    train = None if split_json is None else read_split(split_json, store.stems).train
    scales = {name: scale_for(store, name, zscore, train) for name in store.features}
    _check_labels(store, out_dir, prefix)
    _check_features(store, out_dir, prefix)
    _check_space(store, out_dir, prefix)
    durable.make_folder(out_dir)
    manifest = out_dir / f"{prefix}_manifest.json"
    # The manifest is locked from here on, so that a second run into the folder is refused.
    with durable.open_replace(manifest) as file:
        facts = _write_files(store, scales, out_dir, prefix)
        document = embeddings_manifest(store, prefix, zscore, facts)
        file.write(json.dumps(document, indent=2).encode("utf-8"))
    sizes = {name: size for name, (size, _) in facts.items()}
    return Materialized(out_dir, {**sizes, manifest.name: file.size})


def _write_files(
    store: FeatureStore, scales: Mapping[str, Scale | None], out_dir: Path, prefix: str
) -> dict[str, FileFacts]:
    """Removes an earlier run's files and writes all but the manifest; size and digest by name."""
    removal.remove(out_dir / f"{prefix}_manifest.json")
    for path in _leftovers(store, out_dir, prefix):
        removal.remove(path)
    facts: dict[str, FileFacts] = {}
    for name, scale in scales.items():
        facts[f"{prefix}_{name}.npy"] = _write_rows(store, name, scale, out_dir, prefix)
        if scale is not None:
            facts[f"{prefix}_{name}.stats.npz"] = _write_stats(name, scale, out_dir, prefix)
        else:
            # The file of an earlier run with a z-score would describe other rows.
            removal.remove(out_dir / f"{prefix}_{name}.stats.npz")
    facts[f"{prefix}_aug_index.csv"] = _write_index(store, out_dir, prefix)
    if store.absent:
        facts[f"{prefix}{PRESENCE}"] = _write_presence(store, out_dir, prefix)
    else:
        removal.remove(out_dir / f"{prefix}{PRESENCE}")
    return facts


def _leftovers(store: FeatureStore, out_dir: Path, prefix: str) -> list[Path]:
    """Temporary files that a killed run left, of this store's or the paper's features."""
    names = sorted({*FEATURES, *store.features, _PRESENCE_NAME})
    paths = [out_dir / f"{prefix}_{name}.npy{durable.PARTIAL}" for name in names]
    return [path for path in paths if path.is_file()]


def verify_materialized(
    out_dir: Path, prefix: str = PREFIX, *, checked: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Compares materialized files with their manifest, and the manifest with its checksum.

    Args:
        out_dir: the folder.
        prefix: the beginning of the files' names.
        checked: called with the name of each file that is checked.

    Returns:
        One finding per file that is missing or differs from what was written.

    Raises:
        StorageError: a file cannot be read.
    """
    name = f"{prefix}_manifest.json"
    checked(name)
    try:
        manifest = read_record(out_dir / name)
        expected = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        return [Finding(name, None, f"no manifest of these files: {e}")]
    return compare_files(out_dir, expected, checked)


def _check_arguments(store: FeatureStore, out_dir: Path, prefix: str) -> None:
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise ConfigError(f"--prefix is the beginning of a file name, found {prefix!r}.")
    if prefix.endswith("_labels"):  # its manifest would have the name of the labels' manifest
        raise ConfigError(f"--prefix does not end in _labels, found {prefix!r}.")
    if out_dir.exists() and not out_dir.is_dir():
        raise ConfigError(f"--out-dir {out_dir} is not a folder. Choose another one.")
    if out_dir.resolve().is_relative_to(store.path.resolve()):
        raise ConfigError(f"--out-dir {out_dir} is in the store. Choose a folder elsewhere.")


def _check_features(store: FeatureStore, out_dir: Path, prefix: str) -> None:
    """Refuses a folder with rows of other features, which readers would attribute to this store."""
    names = [path.name for path in out_dir.iterdir()] if out_dir.is_dir() else []
    parts = [
        n.removeprefix(f"{prefix}_").partition(".") for n in names if n.startswith(f"{prefix}_")
    ]
    held = {name for name, _, kind in parts if kind in ("npy", "stats.npz")}
    others = sorted(n for n in held - set(store.features) if is_feature_name(n))
    if others:
        raise InputError(
            f"{out_dir} holds files of {', '.join(others)}, which {store.path} does not.\n"
            "Nothing was changed: choose another --out-dir or --prefix, or remove those files."
        )


def _check_labels(store: FeatureStore, out_dir: Path, prefix: str) -> None:
    """Refuses a folder with augmented labels of other rows, which readers would combine."""
    path, labels = manifest_path(out_dir, prefix), read_labels_manifest(out_dir, prefix)
    if labels is None:
        return
    rows, views = labels["total_rows"], labels["views_per_sample"]
    stated = {"seed": seed_of(labels)}
    if "stems_sha256" in labels:  # the published scripts wrote none
        stated["stems_sha256"] = labels["stems_sha256"]
    expected = store.spec.samples * store.spec.views, store.spec.views
    if (rows, views) != expected:
        raise InputError(
            f"{path} is of {rows:,} rows with {views} views; the store has {expected[0]:,} rows "
            f"with {expected[1]} views.\n"
            "Choose another --out-dir, or remove those labels and write them again."
        )
    for key, value in stated.items():
        if value != store.fingerprint.get(key, value):
            raise InputError(
                f"{path} is of another {key}: {value!r:.100}; the store's is "
                f"{store.fingerprint[key]!r:.100}.\n"
                "Choose another --out-dir, or remove those labels and write them again."
            )


def _check_space(store: FeatureStore, out_dir: Path, prefix: str) -> None:
    """Raises InputError if space is missing; an old file is deleted once its successor exists."""
    rows = store.spec.samples * store.spec.views
    needed = peak = 0
    for name, dim in store.spec.dims.items():
        peak = max(peak, needed + rows * dim * 4)
        old = out_dir / f"{prefix}_{name}.npy"
        needed += rows * dim * 4 - (old.stat().st_size if old.is_file() else 0)
    needed = peak
    left = sum(path.stat().st_size for path in _leftovers(store, out_dir, prefix))
    free = free_bytes(out_dir)
    if free is not None and needed > free + left:
        raise InputError(
            f"{out_dir} needs {needed:,} bytes and its file system has {free:,} free.\n"
            "Free some space or choose another --out-dir; a store can also be read without "
            "materializing it."
        )


def _write_rows(
    store: FeatureStore, name: str, scale: Scale | None, out_dir: Path, prefix: str
) -> FileFacts:
    dim = store.spec.dims[name]
    rows, present = store.spec.samples * store.spec.views, store.present(name)
    with durable.open_replace(out_dir / f"{prefix}_{name}.npy") as partial:
        file = HashingFile(partial)
        file.write(npy_header((rows, dim)))
        for chunk in range(store.spec.chunks):
            block = store.read_chunk(name, chunk)
            if scale is not None:
                block = scale.apply(block.copy())
                samples = store.spec.samples_of(chunk)
                block[~present[samples.start : samples.stop]] = 0
            file.write(np.ascontiguousarray(block).data)
    return file.facts


def _write_stats(name: str, scale: Scale, out_dir: Path, prefix: str) -> FileFacts:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=scale.mu, sigma=scale.sigma)
    with durable.open_replace(out_dir / f"{prefix}_{name}.stats.npz") as partial:
        file = HashingFile(partial)
        file.write(buffer.getvalue())
    return file.facts


def _write_presence(store: FeatureStore, out_dir: Path, prefix: str) -> FileFacts:
    """Writes bool ``[N, 2]``: whether each sample has an image, and a text."""
    present = np.stack([present_in(store.records, "image"), present_in(store.records, "text")], 1)
    with durable.open_replace(out_dir / f"{prefix}{PRESENCE}") as partial:
        file = HashingFile(partial)
        file.write(npy_header(present.shape, "|b1"))
        file.write(np.ascontiguousarray(present).data)
    return file.facts


def _write_index(store: FeatureStore, out_dir: Path, prefix: str) -> FileFacts:
    with durable.open_replace(out_dir / f"{prefix}_aug_index.csv") as partial:
        file = HashingFile(partial)
        for block in _index_blocks(store):
            # The bytes of names that are not UTF-8 are preserved, as in ids_all.txt.
            file.write(block.encode("utf-8", "surrogateescape"))
    return file.facts


def _index_blocks(store: FeatureStore) -> Iterator[str]:
    """The rows of the index, sorted by ``aug_idx``, one text per sample."""
    yield ",".join(_INDEX_HEADER) + "\n"
    views = store.spec.views
    for sample, record in zip(store.samples, store.records, strict=True):
        first = sample.index * views
        names = f"{_quoted(sample.stem)},{_quoted(sample.image_name or '')},{record.words}"
        yield "".join(f"{first + v},{sample.index},{v},{names}\n" for v in range(views))


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if _SPECIAL.search(value) else value
