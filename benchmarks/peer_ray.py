"""Ray Data: a manifest read, views made in tasks, embedded in one actor, written as Parquet.

Started by ``benchmarks/peers.py``, in order and with row checkpoints, which is how a build that
must survive would be set up. The actor asks for less than the tasks do, because Ray would otherwise
make the views in the actor, on one core; half a logical CPU leaves a task to every core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.checkpoint import CheckpointConfig

from benchmarks import peer_recipe as common

Row = dict[str, Any]
_PER_BLOCK = 2  # samples; without this, a manifest so small is one block, and so one task


class Views:
    """Makes a sample's views: uint8 [V, 3, S, S]."""

    def __init__(self, data: str, model: str, views: int) -> None:
        self._data, self._model, self._views = data, model, views

    def __call__(self, row: Row) -> Row:
        """Takes a row of the manifest; adds ``pixels``."""
        from PIL import Image

        processor, recipe = _tools(self._model)
        poster = Image.open(common.poster_file(self._data, row["sid"])).convert("RGB")
        pictures = common.make_views(recipe, poster, row["index"], self._views)
        options = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        return {"sid": row["sid"], "pixels": processor(images=pictures, **options)["pixel_values"]}


class Embed:
    """The image tower, in an actor."""

    def __init__(self, model: str, marks: str) -> None:
        import torch

        processor, self._network = common.load_clip(model)
        mean, std = (torch.tensor(v) for v in (processor.image_mean, processor.image_std))
        self._mean, self._std = mean[:, None, None], std[:, None, None]
        common.mark(marks, "ready")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One sample a batch, [1, V, 3, S, S]; its features become a list of V * D numbers."""
        import torch

        pixels = torch.from_numpy(np.array(batch["pixels"][0])).float()
        with torch.inference_mode():
            features = self._network(pixel_values=(pixels / 255 - self._mean) / self._std)
        return {"sid": batch["sid"], "features": features.image_embeds.numpy().reshape(1, -1)}


_made: dict[str, tuple[Any, Any]] = {}


def _tools(model: str) -> tuple[Any, Any]:
    """Processor and recipe, once per process."""
    if model not in _made:
        processor, _ = common.load_clip(model)
        _made[model] = processor, common.make_recipe()
    return _made[model]


def run(task: dict[str, Any]) -> None:
    """Writes Parquet files with ``sid`` and ``features`` to ``out``; checkpoints lie beside it."""
    out = Path(task["out"])
    names = common.stems(task["data"])
    manifest = _manifest(names, out.parent / "manifest.parquet")
    ray.init(num_cpus=task["workers"] + 1, include_dashboard=False, _temp_dir=task["scratch"])
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    checkpoint = str(out.parent / "checkpoint")
    context.checkpoint_config = CheckpointConfig(id_column="sid", checkpoint_path=checkpoint)
    rows = ray.data.read_parquet(manifest).repartition(-(-len(names) // _PER_BLOCK))
    rows = rows.map(Views(task["data"], task["model"], task["views"]).__call__)
    arguments = {"model": task["model"], "marks": task["marks"]}
    rows = rows.map_batches(
        Embed, fn_constructor_kwargs=arguments, batch_size=1, concurrency=1, num_cpus=0.5
    )
    rows.write_parquet(str(out))
    common.mark(task["marks"], "done")
    ray.shutdown()


def _manifest(names: list[str], file: Path) -> str:
    pq.write_table(pa.table({"sid": names, "index": list(range(len(names)))}), file)
    return str(file)


if __name__ == "__main__":
    run(common.task())
