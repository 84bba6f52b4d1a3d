"""The choices that a build makes by itself for a collection other than MM-IMDb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumers.checkpoints.locating import locate
from consumers.config import CompleteConfig
from consumers.decisions import declared_backbones
from featurestore.wording import amount, human_bytes
from producers.recipes.image_views import IMAGE_RECIPE
from producers.recipes.text_views import TEXT_RECIPE
from producers.sources.scan import Scan


def choices(config: CompleteConfig, found: Scan) -> dict[str, Any]:
    """What was recognized, and what a build of it computes: plain values.

    Args:
        config: the complete configuration.
        found: the collection.
    """
    recipes = {"image": IMAGE_RECIPE, "text": TEXT_RECIPE}
    return {
        "kind": found.collection.kind,
        "path": str(found.path),
        "samples": len(found.samples),
        "modalities": list(found.modalities),
        "clean_text": found.collection.clean_rule,
        "features": list(config.features),
        "views": config.views,
        "recipes": {modality: recipes[modality] for modality in found.modalities},
    }


def choice_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The choices as (label, text)."""
    inputs = " and ".join(f"{modality}s" for modality in facts["modalities"])
    recipes = ", ".join(f"{modality}s by {name}" for modality, name in facts["recipes"].items())
    lines = [
        ("kind", f"{facts['kind']}: {amount(facts['samples'], 'sample')} with {inputs}"),
        ("features", ", ".join(facts["features"])),
        ("views", f"{amount(facts['views'], 'view')} of every sample: {recipes}"),
    ]
    if "text" in facts["modalities"]:
        which = {
            "join": "all texts of a sample, joined by a space",
            "first": "the first text of a sample",
            "longest": "the longest text of a sample",
        }[facts["clean_text"]]
        lines.append(("clean text", f"{which} (clean_text in [collection])"))
    return lines


def downloads(config: CompleteConfig) -> dict[str, int]:
    """The size in bytes of each model that a build fetches, by name; 0 if it is unknown."""
    own = declared_backbones(config, config.features)
    fetched: dict[str, int] = {}
    for name in config.features:
        if name in own:
            continue
        located = locate(model_of(config, name), name)
        if located.where == "hub":
            fetched[located.model] = located.bytes
    return fetched


def model_of(config: CompleteConfig, feature: str) -> str:
    """The hub id or folder of one of the paper's features."""
    from consumers.backbones import registry

    return config.models.get(feature) or registry.info(feature).model()


def download_line(fetched: Mapping[str, int]) -> str:
    """What a build fetches, in one line; empty if nothing."""
    if not fetched:
        return ""
    sizes = [
        f"{model} ({human_bytes(size) if size else 'size unknown'})"
        for model, size in fetched.items()
    ]
    return f"fetched from the hub: {', '.join(sizes)}"
