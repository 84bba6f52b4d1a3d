"""The structure of the published pipeline: one process builds, embeds and writes each sample.

Started by ``benchmarks/peers.py``. An image that cannot be read becomes a black one, as there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import peer_recipe as common


def run(task: dict[str, Any]) -> None:
    """Writes ``clip_image.npy``, float32 [N * V, D], to the folder ``out``."""
    names, views = common.stems(task["data"]), task["views"]
    processor, network = common.load_clip(task["model"])
    recipe = common.make_recipe()
    common.mark(task["marks"], "ready")
    shape = (len(names) * views, network.config.projection_dim)
    file = Path(task["out"], "clip_image.npy")
    rows = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    for index, name in enumerate(names):
        pictures = common.make_views(recipe, _poster(task["data"], name), index, views)
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            features = network(pixel_values=pixels).image_embeds
        rows[index * views : (index + 1) * views] = features.numpy()
    rows.flush()
    common.mark(task["marks"], "done")


def _poster(data: str, name: str) -> Image.Image:
    try:
        return Image.open(common.poster_file(data, name)).convert("RGB")
    except OSError:
        return Image.new("RGB", (common.SIZE, common.SIZE))


if __name__ == "__main__":
    run(common.task())
