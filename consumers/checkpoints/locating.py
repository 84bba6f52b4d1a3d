"""Finds the place and size of a checkpoint, without loading or fetching it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from consumers.checkpoints import checkpoints
from consumers.checkpoints.checkpoints import Checkpoint
from featurestore.errors import ConfigError
from featurestore.wording import one_line


@dataclass(frozen=True, slots=True)
class Located:
    """The facts of a checkpoint that are known before it is loaded.

    Attributes:
        model: hub id or local folder, as given.
        where: ``folder``, ``cache`` (the hub's, on this machine), ``hub`` (to be fetched), or
            ``missing``.
        bytes: size of the files that loading reads or fetches; 0 if unknown.
        checkpoint: the checkpoint, if its files are on this machine.
        problem: message of the error that loading would raise; ``""`` if it can be loaded.
    """

    model: str
    where: str
    bytes: int = 0
    checkpoint: Checkpoint | None = None
    problem: str = ""


def locate(model: str, feature: str, *, open_clip: bool = False) -> Located:
    """Looks for a checkpoint in the order of loading: local folder, the hub's cache, the hub.

    Args:
        model: a local folder or a hub id.
        feature: name of the feature that uses it, for messages.
        open_clip: whether open_clip loads it, which has its own weight files.
    """
    try:
        found = checkpoints.resolve_folder(model, feature, open_clip=open_clip)
        if found is not None:
            found.check_weights()
            return Located(model, "folder", _size(found), found)
    except ConfigError as error:
        return Located(model, "missing", problem=str(error))
    try:
        found = checkpoints.resolve_cached(model, feature, open_clip=open_clip)
        if found is not None:
            found.check_weights()
            return Located(model, "cache", _size(found), found)
        problem = ""
    except ConfigError as error:
        problem = str(error)  # an interrupted download: loading fetches what is missing
    return _on_the_hub(model, feature, open_clip, problem)


def _on_the_hub(model: str, feature: str, open_clip: bool, cached: str) -> Located:
    """Looks on the hub; ``cached`` is the problem of the model in the hub's cache, or ``""``."""
    try:
        size = checkpoints.bytes_on_the_hub(model, open_clip=open_clip)
    except checkpoints.hub_errors() as error:
        problem = one_line(error)
        if cached:
            text = (
                f"In the hub's cache {cached.partition(chr(10))[0]}\n"
                f"  It cannot be fetched from here: {problem}\n"
                f"Fetch it where there is network, hf download {model}, "
                f"or give a folder: --model {feature}=DIR."
            )
        else:
            text = (
                f"{model} is no local folder, and is neither in the hub's cache nor available "
                f"from the hub: {problem}\n"
                f"Check the name and the network, or give a folder: --model {feature}=DIR."
            )
        return Located(model, "missing", problem=text)
    return Located(model, "hub", size)


def _size(checkpoint: Checkpoint) -> int:
    return sum((checkpoint.folder / name).stat().st_size for name in checkpoint.files)


def count_parameters(checkpoint: Checkpoint, parts: Sequence[str] = ()) -> int | None:
    """Number of weights in a checkpoint's safetensors files; reads their headers only.

    Args:
        checkpoint: a checkpoint on this machine.
        parts: prefixes of the names to count; all names if it is empty or no name matches.

    Returns:
        The number, or None for weights in another format, which must be loaded to be counted.
    """
    from safetensors import SafetensorError, safe_open

    counts: dict[str, int] = {}
    for name in checkpoint.weights():
        if name.endswith(".index.json"):
            continue
        if not name.endswith(".safetensors"):
            return None
        try:
            with safe_open(checkpoint.folder / name, framework="np") as file:
                for key in file.keys():  # noqa: SIM118  it is no mapping
                    counts[key] = prod(file.get_slice(key).get_shape())
        except (OSError, SafetensorError):
            return None
    chosen = [n for key, n in counts.items() if not parts or key.startswith(tuple(parts))]
    return sum(chosen or counts.values())
