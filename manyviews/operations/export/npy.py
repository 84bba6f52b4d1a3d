"""``npy``: one file per column, for ``numpy.load(..., mmap_mode="r")``."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from featurestore.reading.npy import npy_header
from manyviews.operations.export.folder import OutFolder
from manyviews.operations.export.plan import Export


def write(export: Export, folder: OutFolder) -> None:
    """Writes ``<column>.npy`` with all rows for each column, and ``stems.json``.

    ``stems.json`` lists all samples; row ``r`` belongs to ``stems[index[r]]``.
    """
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "index": ((), "<i8"),
        "view": ((), "<i4"),
        "bad": ((), "|b1"),
    }
    if export.absent:
        shapes["present"] = ((len(export.dims),), "|b1")
    floats = np.dtype(export.request.dtype).newbyteorder("<").str
    shapes |= {name: ((dim,), floats) for name, dim in export.dims.items()}
    if export.labels is not None:
        shapes["labels"] = ((len(export.labels.classes),), "<f4")
    with ExitStack() as stack:
        sinks = {name: stack.enter_context(folder.open(f"{name}.npy")) for name in shapes}
        for name, (shape, descr) in shapes.items():
            sinks[name].write(npy_header((export.rows, *shape), descr))
        for block in export.blocks(range(export.store.spec.chunks)):
            for name, values in block.columns().items():
                sinks[name].write(np.ascontiguousarray(values))
    folder.write_json("stems.json", export.store.stems)
