"""The choices that a build makes by itself for a collection other than MM-IMDb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumers.backbones import declared, registry
from consumers.checkpoints.locating import Located, locate
from consumers.config import CompleteConfig
from featurestore.errors import ConfigError
from featurestore.wording import amount, human_bytes
from producers.sources.scan import Scan


def choices(config: CompleteConfig, found: Scan) -> dict[str, Any]:
    """What was recognized, and what a build of it computes: plain values.

    Args:
        config: the complete configuration.
        found: the collection.
    """
    recipes = {"image": config.image_recipe.name, "text": config.text_recipe.name}
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
    located = [locate_model(config, name) for name in config.features]
    return {model.model: model.bytes for model in located if model and model.where == "hub"}


def locate_model(config: CompleteConfig, feature: str) -> Located | None:
    """Finds the model of a feature without loading it; None if a custom adapter loads it."""
    custom = config.backbones.get(feature)
    if custom is None:
        model = config.models.get(feature) or registry.info(feature).model()
        return locate(model, feature)
    model = config.models.get(feature) or custom.model
    if custom.adapter not in declared.ADAPTERS:
        return None
    try:
        declared.check(feature, custom)
    except ConfigError as error:
        return Located(model, "missing", problem=str(error))
    return locate(model, feature, open_clip=custom.adapter.startswith("open-clip"))


def download_line(fetched: Mapping[str, int]) -> str:
    """The models that a build downloads and their sizes, as one line; empty if there are none.

    Args:
        fetched: bytes to download by name of the model; 0 if the size is unknown.
    """
    if not fetched:
        return ""
    sizes = [
        f"{model} ({human_bytes(size) if size else 'size unknown'})"
        for model, size in fetched.items()
    ]
    return f"fetched from the hub: {', '.join(sizes)}"


def chosen_lines(facts: Mapping[str, Any]) -> list[str]:
    """What was recognized and chosen, a line for each."""
    lines = [f"{label}: {text}" for label, text in choice_lines(facts)]
    return lines + [line for line in (download_line(facts["downloads"]),) if line]
