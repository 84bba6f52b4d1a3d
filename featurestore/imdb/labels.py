"""Writes the label files of the published pipeline: 23 genres per sample, clean and with noise.

The caller passes parsed documents: the producers parse untrusted JSON, and the feature store does
not import them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError
from featurestore.imdb.embeddings_manifest import require_same_samples, views_and_seed
from featurestore.imdb.genres import CLASS_NAMES, genres_vector
from featurestore.imdb.label_files import (
    CLASS_NAMES_FILE,
    IDS_FILE,
    LABELS_FILE,
    RECORD_FILE,
    read_ids,
    read_labels,
)
from featurestore.imdb.label_sets import (
    load_any_labels,
    names_of,
    read_any_ids,
    require_multi_label,
)
from featurestore.imdb.labels_manifest import manifest_path
from featurestore.labels.record import label_record
from featurestore.reading.npy import npy_header
from featurestore.records import stems_sha256, view_seed
from featurestore.storage.digests import HashingFile, file_sha256
from featurestore.storage.store import record_crc32c
from featurestore.system.durable import make_folder, open_replace, replace_files
from featurestore.system.removal import remove

__all__ = [
    "CLASS_NAMES",
    "LabelReport",
    "augmented_label",
    "augmented_labels",
    "genres_vector",
    "read_ids",
    "read_labels",
    "write_augmented_labels",
    "write_labels",
]

_KEY = "genres"  # of the labels in the documents
_NOISE_STD = 0.1
_NOISE_CLIP = 0.2


@dataclass(frozen=True, slots=True)
class LabelReport:
    """A summary of the labels that were written.

    Attributes:
        samples: the number of rows written.
        unknown_genres: genres outside the 23, printable, with their counts; most frequent first.
        without_genre: stems whose document names none of the 23; their rows are zero.
        unreadable: stems whose document was unreadable or not an object; their rows are zero.
        left_out: (name, reason) of the entries of the data folder that are not used.
    """

    samples: int
    unknown_genres: tuple[tuple[str, int], ...]
    without_genre: tuple[str, ...]
    unreadable: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def augmented_labels(
    labels: NDArray[np.float32], views: int, base_seed: int = 123
) -> Iterator[NDArray[np.float32]]:
    """Adds the published noise, clipped to ±0.2, to all views but view 0; clips to [0, 1].

    Args:
        labels: float32 [N, C].
        views: V, the number of views of a sample, at least 1.
        base_seed: the run's seed.

    Yields:
        One float32 [V, C] per sample, in order.
    """
    for index, row in enumerate(labels):
        yield np.stack([augmented_label(row, index, view, base_seed) for view in range(views)])


def augmented_label(
    row: NDArray[np.float32], index: int, view: int, base_seed: int = 123
) -> NDArray[np.float32]:
    """One sample's labels with the published noise of one view, float32 [C]; none for view 0.

    Args:
        row: float32 [C], the sample's clean labels.
        index: the sample's number.
        view: the view's number.
        base_seed: the run's seed.
    """
    if view == 0:
        return row
    rng = np.random.default_rng(view_seed(base_seed, index, view, "labels"))
    noise = rng.normal(0.0, _NOISE_STD, row.size).astype(np.float32)
    noisy = row + np.clip(noise, -_NOISE_CLIP, _NOISE_CLIP)
    return np.clip(noisy, 0.0, 1.0, out=noisy)


def write_labels(stems: Sequence[str], documents: Iterable[object], out_dir: Path) -> LabelReport:
    """Writes the clean labels, the list of stems and the class names.

    Args:
        stems: all stems, in sample order; undecodable bytes as surrogate escapes.
        documents: each sample's parsed JSON in the same order, None if it could not be read.
        out_dir: the output folder; created if it is missing.

    Raises:
        InputError: there are no samples, no document names one of the 23 genres, or a stem contains
            a line break, which the list with one stem per line cannot represent.
        StorageError: a file could not be written; none was replaced.
    """
    ids = _ids_bytes(stems)
    labels = np.zeros((len(stems), len(CLASS_NAMES)), np.float32)
    unknown: Counter[str] = Counter()
    without_genre, unreadable = [], []
    for row, stem, document in zip(labels, stems, documents, strict=True):
        row[:], names = genres_vector(document)
        unknown.update(names)
        if not isinstance(document, dict):
            unreadable.append(stem)
        elif not row.any():
            without_genre.append(stem)
    ranked = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
    report = LabelReport(len(stems), tuple(ranked), tuple(without_genre), tuple(unreadable))
    if not labels.any():
        raise _without_genres(report)
    _write_label_files(out_dir, labels, ids)
    return report


def _without_genres(report: LabelReport) -> InputError:
    """The error for a data set whose labels would all be zero."""
    shown = ", ".join(f"{name!r} x {count:,}" for name, count in report.unknown_genres[:5])
    others = f"only others: {shown}" if shown else "no genres at all"
    unread = f"; {len(report.unreadable):,} cannot be read" if report.unreadable else ""
    return InputError(
        f"None of {report.samples:,} synopses names one of the 23 genres: every label would be "
        f"zero.\nFound were {others}{unread}. Nothing was written.\n"
        f'Expected is a list such as "genres": ["{CLASS_NAMES[7]}", "{CLASS_NAMES[21]}"] in each '
        "JSON file (docs/inputs.md lists keys and names).\n"
        'For other classes, write in a TOML file, for --config: [collection] kind = "folder", '
        f'path = "…", text_key = "plot", labels = "{_KEY}"'
    )


def _ids_bytes(stems: Sequence[str]) -> bytes:
    if not stems:
        raise InputError("There are no samples to label.")
    for stem in stems:
        if "\n" in stem or "\r" in stem:
            raise InputError(
                f"The file name {stem!r} holds a line break, which {IDS_FILE} cannot hold.\n"
                "Rename its poster and its synopsis."
            )
    return "\n".join(stems).encode("utf-8", "surrogateescape")


def _write_label_files(out_dir: Path, labels: NDArray[np.float32], ids: bytes) -> None:
    make_folder(out_dir)
    old_ids = out_dir / IDS_FILE
    if old_ids.is_file() and old_ids.read_bytes() != ids:
        # Otherwise a crash between the renames could pair new stems with old labels.
        remove(old_ids)
    contents = {
        CLASS_NAMES_FILE: [json.dumps(CLASS_NAMES, indent=2).encode()],
        LABELS_FILE: [npy_header(labels.shape), labels.astype("<f4", copy=False).tobytes()],
        IDS_FILE: [ids],
    }
    # The record is renamed last: until then, an older record does not match the changed files.
    contents[RECORD_FILE] = [label_record({"samples": len(labels)}, contents)]
    replace_files([(out_dir / name, parts) for name, parts in contents.items()])


def write_augmented_labels(
    labels_dir: Path,
    embeddings_dir: Path,
    views: int | None = None,
    prefix: str = "mm_imdb1_globals_aug70",
    seed: int | None = None,
) -> None:
    """Writes ``P_labels.npy``, float32 (N * V, C), and its manifest to the embeddings' folder.

    Memory does not grow with the number of views; the manifest is written last.

    Args:
        labels_dir: a folder of clean multi-label labels: the paper's, C = 23, or others.
        embeddings_dir: an existing folder; its ``P_manifest.json``, if present, must match.
        views: V, the number of views of a sample, at least 1; None for that of the embeddings, or
            the paper's 70 if there is no manifest yet.
        prefix: P, the beginning of the embeddings' file names.
        seed: the run's seed; None for that of the embeddings, or the paper's 123.

    Raises:
        ConfigError: ``views`` is less than 1, ``views`` or ``seed`` differs from the embeddings, or
            the labels are not multi-label.
        InputError: the labels are missing or damaged, the folder is missing, or its embeddings
            are of other samples.
        StorageError: a file could not be written.
        StoreLockedError: another process is writing the same labels.
    """
    views, seed = views_and_seed(embeddings_dir, prefix, views, seed)
    stems = read_any_ids(labels_dir)
    rows_name, ids_name = names_of(labels_dir)
    sources = {n: file_sha256(labels_dir / n) for n in (rows_name, ids_name)}
    label_set = load_any_labels(labels_dir, len(stems))
    require_multi_label(label_set)
    labels = label_set.rows
    require_same_samples(embeddings_dir, prefix, stems)
    total = len(stems) * views
    fields: dict[str, Any] = {
        "total_rows": total,
        "original_rows": len(stems),
        "views_per_sample": views,
        "dims": {"labels": labels.shape[1]},
        "dtype": "float32",
        "labels_noise_std": _NOISE_STD,
        "labels_noise_clip": _NOISE_CLIP,
        "labels_clamped_to_01": True,
        "index_csv": f"{prefix}_aug_index.csv",
        "source_labels_npy": str(labels_dir / rows_name),
        "source_ids_txt": str(labels_dir / ids_name),
        "normalized": False,
        # The fields of the published scripts end here.
        "seed": seed,
        "stems_sha256": stems_sha256(stems),
        "source_sha256": sources,
    }
    manifest, rows = manifest_path(embeddings_dir, prefix), embeddings_dir / f"{prefix}_labels.npy"
    # The manifest is locked while the rows are written, so that a second run is refused.
    with open_replace(manifest) as last:
        remove(manifest)  # an older manifest describes rows that are being replaced
        with open_replace(rows) as partial:
            file = HashingFile(partial)
            file.write(npy_header((total, labels.shape[1])))
            for block in augmented_labels(labels, views, seed):
                file.write(block.astype("<f4", copy=False).reshape(-1).view(np.uint8).data)
        fields["sha256"] = {rows.name: file.facts[1]}
        fields["crc32c"] = record_crc32c(fields)
        last.write(json.dumps(fields, indent=2).encode())
