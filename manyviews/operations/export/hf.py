"""``hf``: a folder for ``datasets.load_from_disk``, which memory-maps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from manyviews.operations.export.arrow import schema_of, table_of
from manyviews.operations.export.folder import OutFolder
from manyviews.operations.export.plan import Export

SHARD_BYTES = 500_000_000


def write(export: Export, folder: OutFolder) -> None:
    """Writes ``data-00000-of-NNNNN.arrow``, ``dataset_info.json`` and ``state.json``.

    ``Dataset.from_generator`` and ``save_to_disk`` would write every row twice, first into a cache.
    Therefore the library's ``ArrowWriter`` writes the rows, and the two documents are those of an
    empty data set with the same columns, as the library saves it.
    """
    schema = schema_of(export)
    features = datasets.Features.from_arrow_schema(schema)
    shards = export.shards(SHARD_BYTES)
    for number, chunks in enumerate(shards):
        name = f"data-{number:05d}-of-{len(shards):05d}.arrow"
        with folder.open(name) as sink:
            writer = ArrowWriter(features=features, stream=sink)
            for block in export.blocks(chunks):
                writer.write_table(table_of(block, schema))
            writer.finalize(close_stream=False)
        folder.shards[name] = export.rows_of(chunks)
    info, state = _documents(features, folder.path)
    info["description"] = f"{export.request.scaling}."
    digests = "".join(folder.files[name].sha256 for name in folder.shards)
    # The library would draw a random fingerprint; this one depends on the content alone.
    state["_fingerprint"] = hashlib.sha256(digests.encode()).hexdigest()[:16]
    state["_data_files"] = [{"filename": name} for name in folder.shards]
    folder.write_json("dataset_info.json", info)
    folder.write_json("state.json", state)


def _documents(features: Any, beside: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``dataset_info.json`` and ``state.json`` of a data set without rows."""
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    with TemporaryDirectory(dir=beside) as scratch, _quiet():
        empty.save_to_disk(scratch)
        names = ("dataset_info.json", "state.json")
        info, state = (json.loads((Path(scratch) / name).read_bytes()) for name in names)
    return info, state


@contextmanager
def _quiet() -> Iterator[None]:
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
