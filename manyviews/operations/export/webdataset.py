"""``webdataset``: tar files for sequential reading, one record per sample."""

from __future__ import annotations

import math

from webdataset import TarWriter

from manyviews.operations.export.folder import OutFolder
from manyviews.operations.export.plan import Export

SHARD_BYTES = 500_000_000


def write(export: Export, folder: OutFolder) -> None:
    """Writes ``features-00000.tar`` and so on.

    A record holds all chosen views of a sample: ``<feature>.npy`` ``[v, D]`` for each feature, and
    ``json`` with ``stem``, ``index``, ``views`` (their numbers), ``bad``, ``present``, ``zscore``
    and ``labels``. Its key is the sample's index, because a key ends at the first dot, and stems
    may contain dots.
    """
    for number, chunks in enumerate(export.shards(SHARD_BYTES)):
        name = f"features-{number:05d}.tar"
        with folder.open(name) as sink:
            writer = TarWriter(sink, user="manyviews", group="manyviews", mtime=0.0)
            for block in export.blocks(chunks):
                for place, index in enumerate(block.samples.tolist()):
                    facts = {
                        "stem": block.stems[place],
                        "index": index,
                        "views": block.views.tolist(),
                        "bad": bool(block.bad[place]),
                        "zscore": export.request.zscore,
                    }
                    if block.present is not None:
                        facts["present"] = block.present[place].tolist()
                    if block.labels is not None:
                        labels = block.labels[place].tolist()
                        # JSON has no NaN, which is the row of a sample without a label.
                        facts["labels"] = None if math.isnan(labels[0]) else labels
                    rows = {f"{name}.npy": x[place] for name, x in block.features.items()}
                    writer.write({"__key__": f"{index:09d}", "json": facts, **rows})
            writer.close()
        folder.shards[name] = export.rows_of(chunks) // len(export.views)
