"""A PyTorch ``DataLoader`` whose workers compute the views, as most users would write it.

Started by ``benchmarks/peers.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import peer_recipe as common


class Views(Dataset[torch.Tensor]):
    """Each sample's views, processed: float32 [V, 3, S, S]."""

    def __init__(self, data: str, processor: Any, views: int) -> None:
        self.names = common.stems(data)
        self._data, self._processor, self._views = data, processor, views
        self._recipe = common.make_recipe()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        poster = Image.open(common.poster_file(self._data, self.names[index])).convert("RGB")
        pictures = common.make_views(self._recipe, poster, index, self._views)
        pixels: torch.Tensor = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels


def run(task: dict[str, Any]) -> None:
    """Writes ``clip_image.npy``, float32 [N * V, D], to the folder ``out``."""
    views = task["views"]
    processor, network = common.load_clip(task["model"])
    samples = Views(task["data"], processor, views)
    common.mark(task["marks"], "ready")
    shape = (len(samples) * views, network.config.projection_dim)
    file = Path(task["out"], "clip_image.npy")
    rows = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    loader = DataLoader(samples, batch_size=None, num_workers=task["workers"])
    for index, pixels in enumerate(loader):
        with torch.inference_mode():
            features = network(pixel_values=pixels).image_embeds
        rows[index * views : (index + 1) * views] = features.numpy()
    rows.flush()
    common.mark(task["marks"], "done")


if __name__ == "__main__":
    run(common.task())
