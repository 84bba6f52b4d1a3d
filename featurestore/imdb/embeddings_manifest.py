"""What the manifest of materialized embeddings says to labels that are written beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.label_files import REDO
from featurestore.records import PAPER_VIEWS, stems_sha256
from featurestore.storage.digests import read_record

PAPER_SEED = 123


def views_and_seed(
    embeddings_dir: Path, prefix: str, views: int | None = None, seed: int | None = None
) -> tuple[int, int]:
    """The views of a sample and the seed that augmented labels beside embeddings are made with.

    Args:
        embeddings_dir: an existing folder; what its ``P_manifest.json`` states is taken.
        prefix: P.
        views: what the user said, or None.
        seed: the same.

    Raises:
        ConfigError: the user said another value than the manifest, or fewer views than 1.
        InputError: the folder is missing, or the manifest cannot be read.
    """
    manifest = _manifest(embeddings_dir, prefix)
    found = []
    for option, key, given, paper in (
        ("views", "views_per_sample", views, PAPER_VIEWS),
        ("seed", "seed", seed, PAPER_SEED),
    ):
        stated = manifest.get(key)
        if stated is not None and type(stated) is not int:
            path = _manifest_path(embeddings_dir, prefix)
            raise InputError(f"{path}: {key} must be a number; found {stated!r:.100}.")
        if None not in (stated, given) and stated != given:
            raise ConfigError(
                f"--{option} {given} was given, and {_manifest_path(embeddings_dir, prefix)} says "
                f"{stated}.\nLeave --{option} out: it is read from there."
            )
        found.append(next(value for value in (given, stated, paper) if value is not None))
    if found[0] < 1:
        raise ConfigError(f"The number of views must be at least 1, not {found[0]}.")
    return found[0], found[1]


def _manifest_path(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix}_manifest.json"


def _manifest(folder: Path, prefix: str) -> dict[str, Any]:
    """What the embeddings' manifest says; nothing where they are not there yet."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}, where augmented labels are to lie beside the embeddings, is no folder.\n"
            "Name the folder that `materialize` wrote with --embeddings-dir, or create it."
        )
    path = _manifest_path(folder, prefix)
    try:
        return read_record(path)
    except FileNotFoundError:
        return {}  # labels may be made before the embeddings are
    except (OSError, ValueError) as e:
        raise InputError(
            f"{path} is not what was written: {str(e)[:200]}\nRun `materialize` again."
        ) from e


def require_same_samples(folder: Path, prefix: str, stems: Sequence[str]) -> None:
    """Refuses labels of other samples than the embeddings that they are to lie beside.

    Raises:
        InputError: the manifest names another number of samples, or other stems.
    """
    manifest = _manifest(folder, prefix)
    wanted = {"original_rows": len(stems), "stems_sha256": stems_sha256(stems)}
    for key, value in wanted.items():
        if key in manifest and manifest[key] != value:
            raise InputError(
                f"The labels do not fit the embeddings of {_manifest_path(folder, prefix)}.\n"
                f"  {key} of the embeddings: {manifest[key]!r:.100}\n"
                f"  {key} of the labels:     {value}\n{REDO}"
            )
