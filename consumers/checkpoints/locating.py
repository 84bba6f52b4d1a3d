"""Where a checkpoint is, and how large it is, without loading or fetching it."""

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
    """What is known of a checkpoint before it is loaded.

    Attributes:
        model: the hub id or local folder, as it was named.
        where: ``folder``, ``cache`` (the hub's, on this machine), ``hub`` (to be fetched), or
            ``missing``.
        bytes: of the files that loading reads or fetches; 0 where nobody knows.
        checkpoint: its files, where they are on this machine.
        problem: why it cannot be loaded, in the words of the error; ``""`` where it can.
    """

    model: str
    where: str
    bytes: int = 0
    checkpoint: Checkpoint | None = None
    problem: str = ""


def locate(model: str, feature: str, *, open_clip: bool = False) -> Located:
    """Looks for a checkpoint where loading would: a local folder, the hub's cache, the hub.

    Args:
        model: a local folder or a hub id.
        feature: the feature that it is for; messages name it.
        open_clip: whether open_clip is to load it, which has weights of its own.
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
    """Looks there; ``cached`` is what is wrong with the hub's cache, where it holds the model."""
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
    """How many weights a checkpoint's safetensors files hold; reads their headers only.

    Args:
        checkpoint: on this machine.
        parts: prefixes of the names to count; all where there are none or none of them occurs.

    Returns:
        Their number, or None where the weights are in another format, which tells it only when
        it is loaded.
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
