"""The fingerprint of a store: all settings that affect its features, compared by --resume."""

from __future__ import annotations

import json
from pathlib import Path

from featurestore.errors import StoreMismatchError
from featurestore.storage.codecs import NONE

Fingerprint = dict[str, str | int]

VERSION = "version."
# Recorded but not compared: the hash of the weights identifies a model, not its folder's name.
_INFORMATIVE = (".model",)
_OPTIONS = ("views", "seed", "chunk", "codec", "features")
# Values of fields that a fingerprint leaves out.
_UNSAID = {"codec": NONE}


def _advice(name: str, stored: object) -> str:
    """Advice on how to continue with the stored value of a fingerprint field."""
    feature, _, part = name.rpartition(".")
    if ".sha256." in name:
        return (
            "The source of a custom recipe changed, which may change views: restore the module "
            f"{name.partition('.sha256.')[2]},\nor build into another --store."
        )
    if name in _OPTIONS:
        option = f"--{name} {stored}"
    elif part == "batch_size":
        option = f"--batch-size {feature}={stored}"
    elif part == "dtype":
        option = f"--dtype {str(stored).removeprefix('torch.')}"
    elif part == "weights_sha256":
        option = f"the stored checkpoint (--model {feature}=...)"
    elif part in ("adapter", "pooling", "size", "max_length"):
        option = f"{part} = {json.dumps(stored)} in [backbones.{feature}]"
    elif feature in ("image_recipe", "text_recipe"):
        option = f"{part} = {stored} in [recipe.{feature.partition('_')[0]}]"
    elif name in ("image_recipe", "text_recipe"):
        recipe = str(stored).rpartition("-")[0]
        option = f"name = {json.dumps(recipe)} in [recipe.{name.partition('_')[0]}]"
    elif name == "clean_text":
        option = f"clean_text = {json.dumps(stored)} in [collection]"
    else:
        return "Build into another --store, or start again with --overwrite."
    return f"Continue with {option}, or build into another --store."


def compare_fingerprints(
    path: Path, stored: Fingerprint, new: Fingerprint, *, allow_version_change: bool
) -> dict[str, str]:
    """Compares the store's fingerprint with this run's.

    Returns:
        The differing fields, as ``stored -> new``: only library versions and the device kind, and
        only with ``allow_version_change``.

    Raises:
        StoreMismatchError: another field differs, or ``allow_version_change`` is False.
    """
    changed: dict[str, str] = {}
    for name in sorted(stored.keys() | new.keys()):
        before, now = stored.get(name, _UNSAID.get(name)), new.get(name)
        if before == now or name.endswith(_INFORMATIVE):
            continue
        if not (name.startswith(VERSION) or name == "device_kind"):
            raise StoreMismatchError(path, name, before, now, _advice(name, before))
        if not allow_version_change:
            advice = (
                "Go back to the stored one for byte-identical rows, or accept with "
                "--allow-version-change; it is recorded with each later chunk."
            )
            raise StoreMismatchError(path, name, before, now, advice)
        changed[name] = f"{before} -> {now}"
    return changed
