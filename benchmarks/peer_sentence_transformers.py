"""Masked texts through sentence-transformers' own pool of two processes.

Started by ``benchmarks/peers.py``. ``encode(texts, device=["cpu", "cpu"])`` makes such a pool and
ends it; it is made before, so that its start is not counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks import peer_recipe as common


def run(task: dict[str, Any]) -> None:
    """Writes ``clip_text.npy``, float32 [N * V, D], to the folder ``out``."""
    names = common.stems(task["data"])
    model = SentenceTransformer(task["model"], device="cpu")
    pool = model.start_multi_process_pool(["cpu"] * task["workers"])
    try:
        model.encode(
            ["a text"] * 64, pool=pool, chunk_size=8
        )  # both have loaded the model after it
        common.mark(task["marks"], "ready")
        texts: list[str] = []
        for index, name in enumerate(names):
            texts += common.text_views(common.synopsis(task["data"], name), index, task["views"])
        rows = model.encode(texts, pool=pool, normalize_embeddings=False)
        np.save(Path(task["out"], "clip_text.npy"), rows)
        common.mark(task["marks"], "done")
    finally:  # as encode() does with a pool that it creates
        model.stop_multi_process_pool(pool)


if __name__ == "__main__":
    run(common.task())
