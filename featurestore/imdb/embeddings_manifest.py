"""The manifest of materialized embeddings: its content, and what labels beside them must match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import ConfigError, InputError
from featurestore.labels.record import REDO
from featurestore.reading.npy_folder import PRESENCE
from featurestore.records import PAPER_VIEWS, stems_sha256
from featurestore.storage.digests import FileFacts, read_record
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.store import FeatureStore, record_crc32c

PAPER_SEED = 123

# The key of each feature's model in the paper's manifest.
_MODEL_KEYS = {
    "clip_image": "clip_image",
    "clip_text": "clip_text",
    "blip2_image": "blip2",
    "blip2_text": "blip2",
}


def embeddings_manifest(
    store: FeatureStore, prefix: str, zscore: str, facts: Mapping[str, FileFacts]
) -> dict[str, Any]:
    """The manifest of a run: the paper's keys in the paper's order, then additional ones.

    Args:
        store: the store that was materialized.
        prefix: P, the beginning of the files' names.
        zscore: how the rows were scaled.
        facts: size and digest by name of each file that was written.
    """
    spec, known = store.spec, store.fingerprint
    samples = store.samples
    manifest: dict[str, Any] = {
        "total_rows": spec.samples * spec.views,
        "original_rows": spec.samples,
        "views_per_sample": spec.views,
        "dims": dict(spec.dims),
        "models": {_MODEL_KEYS.get(name, name): known[f"{name}.model"] for name in spec.dims},
        "dtype": known[f"{next(iter(spec.dims))}.dtype"],
        "device": str(known["device_kind"]).partition(":")[0],
        "simclr": str(known["image_recipe"]).startswith("simclr-"),
        "text_mask_prob": _mask_share(known),
        "index_csv": f"{prefix}_aug_index.csv",
        "zscore": zscore,
        "seed": known["seed"],
        "recipe": {"image": known["image_recipe"], "text": known["text_recipe"]},
        "versions": {
            key.removeprefix("version."): value
            for key, value in known.items()
            if key.startswith("version.")
        },
        "stems_sha256": known["stems_sha256"],
        "placeholders": [
            {
                "orig_idx": bad.index,
                "stem": samples[bad.index].stem,
                "input": bad.modality,
                "reason": bad.reason,
            }
            for bad in store.bad_inputs
        ],
        "sha256": {name: digest for name, (_, digest) in facts.items()},
    }
    if store.absent:
        manifest |= {
            "presence_npy": f"{prefix}{PRESENCE}",
            "modalities": dict(spec.modalities),
            "absent": store.absent,
        }
    manifest["crc32c"] = record_crc32c(manifest)
    return manifest


def views_and_seed(
    embeddings_dir: Path, prefix: str, views: int | None = None, seed: int | None = None
) -> tuple[int, int]:
    """The number of views per sample and the seed for augmented labels in an embeddings folder.

    Args:
        embeddings_dir: an existing folder; the values of its ``P_manifest.json`` are used.
        prefix: P, the beginning of the embeddings' file names.
        views: the number of views that the user gave, or None.
        seed: the seed that the user gave, or None.

    Raises:
        ConfigError: the user gave another value than the manifest, or fewer views than 1.
        InputError: the folder is missing, or the manifest cannot be read.
    """
    manifest = _manifest(embeddings_dir, prefix)
    values = []
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
        values.append(next(value for value in (given, stated, paper) if value is not None))
    if values[0] < 1:
        raise ConfigError(f"The number of views must be at least 1, not {values[0]}.")
    return values[0], values[1]


def _manifest_path(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix}_manifest.json"


def _manifest(folder: Path, prefix: str) -> dict[str, Any]:
    """The content of the embeddings' manifest; empty if there is no manifest yet."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}, the folder for augmented labels and embeddings, is not a folder.\n"
            "Name the folder that `materialize` wrote with --embeddings-dir, or create it."
        )
    path = _manifest_path(folder, prefix)
    try:
        return read_record(path)
    except FileNotFoundError:
        return {}  # labels may be written before the embeddings are
    except (OSError, ValueError) as e:
        raise InputError(
            f"{path} is not what was written: {str(e)[:200]}\nRun `materialize` again."
        ) from e


def require_same_samples(folder: Path, prefix: str, stems: Sequence[str]) -> None:
    """Refuses labels of other samples than those of the embeddings in the same folder.

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


def _mask_share(known: Fingerprint) -> float:
    """The share of words that a view masks; 0 if no words are masked."""
    is_masked = str(known["text_recipe"]).startswith("mask-")
    return float(known["text_recipe.share"]) if is_masked else 0.0
