"""The manifest of augmented labels, compared with the labels and embeddings that exist now.

``P_labels_manifest.json`` has the published keys, followed by additional ones: the seed, the hash
of the samples, the SHA-256 of the labels that the noise was added to, and that of the noisy rows.
Manifests of the published scripts lack these: their seed is the paper's, and they do not record
the labels that the noise was added to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from featurestore.errors import InputError
from featurestore.imdb.embeddings_manifest import PAPER_SEED
from featurestore.imdb.label_files import IDS_FILE, LABELS_FILE
from featurestore.labels import files
from featurestore.storage.digests import file_sha256, read_record
from featurestore.verify.digests import compare_files
from featurestore.verify.findings import Finding

REDO = "Write them again: manyviews labels --augment --embeddings-dir"


def manifest_path(folder: Path, prefix: str) -> Path:
    """The path of the manifest of augmented labels."""
    return folder / f"{prefix}_labels_manifest.json"


def read_labels_manifest(folder: Path, prefix: str) -> dict[str, Any] | None:
    """The manifest of augmented labels; None if there is none.

    Raises:
        InputError: the file is damaged, or is not a manifest of labels.
        StorageError: the file cannot be read.
    """
    path = manifest_path(folder, prefix)
    try:
        facts = read_record(path)
        for key in ("total_rows", "views_per_sample"):
            if type(facts.get(key)) is not int:
                raise ValueError(f"{key} is {facts.get(key)!r:.100}, expected a number")
    except OSError:
        return None
    except ValueError as e:
        raise InputError(
            f"{path} is not a manifest of augmented labels: {str(e)[:200]}\n{REDO} {folder}"
        ) from e
    return facts


def seed_of(facts: Mapping[str, Any]) -> object:
    """The seed of the labels' noise by their manifest, unchecked; the paper's if it has none."""
    return facts.get("seed", PAPER_SEED)


def label_columns(facts: Mapping[str, Any]) -> int | None:
    """The number of classes by a labels' manifest; None for the labels of MM-IMDb."""
    sources, dims = facts.get("source_sha256"), facts.get("dims")
    if isinstance(sources, dict) and files.ROWS_FILE in sources and isinstance(dims, dict):
        return int(dims.get("labels", 0))
    return None


def require_same_base(
    folder: Path, facts: Mapping[str, Any], labels_dir: Path | None, stems_sha256: str
) -> None:
    """Refuses augmented labels if the clean labels have changed since.

    Args:
        folder: the folder of the augmented labels.
        facts: their manifest.
        labels_dir: the folder of the clean labels; None uses those in ``folder``, else those that
            the manifest names, if they still exist and are of the same samples.
        stems_sha256: the hash of the samples' stems.

    Raises:
        InputError: the clean labels differ from those that noise was added to.
        StorageError: the clean labels cannot be read.
    """
    sources = facts.get("source_sha256")
    if not isinstance(sources, dict):
        return  # of the published scripts
    base = _base_folder(folder, facts, labels_dir, stems_sha256)
    if base is None:
        return
    rows_file, _ = _source_names(sources)
    digest, recorded = file_sha256(base / rows_file), sources.get(rows_file)
    if digest != recorded:
        raise InputError(
            f"The augmented labels in {folder} were made from other labels than those of "
            f"{base / rows_file}:\n  made from SHA-256 {recorded}\n  found now      {digest}\n"
            f"{REDO} {folder}"
        )


def verify_augmented(
    folder: Path, prefix: str, *, checked: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """Compares augmented labels with their manifest; returns no findings if there is no manifest.

    Args:
        folder: their folder; its embeddings and clean labels are compared as well.
        prefix: the beginning of the files' names.
        checked: called with the name of each file that is checked.

    Raises:
        StorageError: a file cannot be read.
    """
    path = manifest_path(folder, prefix)
    try:
        facts = read_record(path)
        expected = dict(facts["sha256"])
        sources = dict(facts["source_sha256"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as e:
        checked(path.name)
        return [Finding(path.name, None, f"no manifest of augmented labels: {e}")]
    checked(path.name)
    findings = compare_files(folder, expected, checked)
    for name, digest in sources.items():
        if (folder / name).is_file() and file_sha256(folder / name) != digest:
            problem = f"it was made from another {name} than the one beside it"
            findings.append(Finding(f"{prefix}_labels.npy", None, problem))
    findings += _embeddings_problems(folder, prefix, facts)
    return findings


def _embeddings_problems(folder: Path, prefix: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Differences between the manifests of the labels and of the embeddings in the same folder."""
    try:
        embeddings = read_record(folder / f"{prefix}_manifest.json")
    except (OSError, ValueError):
        return  # the check of the embeddings reports that
    for key in ("views_per_sample", "seed", "stems_sha256"):
        if key in embeddings and embeddings[key] != facts.get(key):
            problem = f"its {key} is {facts.get(key)}, and that of the embeddings {embeddings[key]}"
            yield Finding(manifest_path(folder, prefix).name, None, problem)


def _base_folder(
    folder: Path, facts: Mapping[str, Any], labels_dir: Path | None, stems_sha256: str
) -> Path | None:
    rows_file, ids_file = _source_names(facts["source_sha256"])
    for place in (labels_dir, folder):
        if place is not None and (place / rows_file).is_file():
            return place
    # The manifest holds the path as the user typed it: relative to another working folder, it may
    # name the labels of another data set.
    named = Path(str(facts.get("source_labels_npy", ""))).parent
    ids = facts["source_sha256"].get(ids_file)
    if (named / rows_file).is_file() and (named / ids_file).is_file():
        same = facts.get("stems_sha256") == stems_sha256 and file_sha256(named / ids_file) == ids
        return named if same else None
    return None


def _source_names(sources: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the clean labels' files of rows and ids."""
    if files.ROWS_FILE in sources:
        return files.ROWS_FILE, files.IDS_FILE
    return LABELS_FILE, IDS_FILE
