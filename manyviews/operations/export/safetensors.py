"""``safetensors``: shards of tensors; the only export format that supports bfloat16."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save

from manyviews.operations.export.folder import OutFolder
from manyviews.operations.export.plan import Export

# The library assembles a file in memory: a shard is held twice.
SHARD_BYTES = 250_000_000


def write(export: Export, folder: OutFolder) -> None:
    """Writes ``features-00000-of-NNNNN.safetensors`` and ``stems.json``.

    A shard holds one tensor per column: ``index`` int64, ``view`` int32, ``bad`` bool, ``present``
    bool ``[rows, F]``, each feature ``[rows, D]``, and ``labels`` float32 ``[rows, 23]``.
    """
    shards = export.shards(SHARD_BYTES)
    for number, chunks in enumerate(shards):
        name = f"features-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(export, chunks, folder, name)
        folder.shards[name] = export.rows_of(chunks)
    folder.write_json("stems.json", export.store.stems)


def _write_shard(export: Export, chunks: range, folder: OutFolder, name: str) -> None:
    # A separate function, so that its arrays are freed before the next shard is assembled.
    with folder.open(name) as sink:
        # A single metadata entry: the library writes several in an arbitrary order.
        sink.write(save(_tensors(export, chunks), metadata={"format": "pt"}))


def _tensors(export: Export, chunks: range) -> dict[str, torch.Tensor]:
    rows, start = export.rows_of(chunks), 0
    arrays: dict[str, np.ndarray] = {}
    for block in export.blocks(chunks):
        for name, values in block.columns().items():
            if name not in arrays:
                arrays[name] = np.empty((rows, *values.shape[1:]), values.dtype)
            arrays[name][start : start + len(values)] = values
        start += len(block.samples) * len(block.views)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if export.request.dtype == "bfloat16":
        tensors |= {name: tensors[name].view(torch.bfloat16) for name in export.dims}
    return tensors
