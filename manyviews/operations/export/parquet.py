"""``parquet``: one row per view, for pandas, Polars, DuckDB, Spark and Arrow."""

from __future__ import annotations

import pyarrow.parquet as pq

from manyviews.operations.export.arrow import schema_of, table_of
from manyviews.operations.export.folder import OutFolder
from manyviews.operations.export.plan import Export

SHARD_BYTES = 500_000_000
_SMALL_COLUMNS = ["stem", "index", "view"]


def write(export: Export, folder: OutFolder) -> None:
    """Writes ``features-00000-of-NNNNN.parquet`` with row groups of about 64 MB.

    Features are not compressed: compression saves a tenth of the size and slows reading.
    """
    schema = schema_of(export)
    shards = export.shards(SHARD_BYTES)
    for number, chunks in enumerate(shards):
        name = f"features-{number:05d}-of-{len(shards):05d}.parquet"
        with folder.open(name) as sink:
            writer = pq.ParquetWriter(
                sink,
                schema,
                compression="none",
                use_dictionary=_SMALL_COLUMNS,
                write_statistics=_SMALL_COLUMNS,
            )
            for block in export.blocks(chunks):
                writer.write_table(table_of(block, schema))
            writer.close()
        folder.shards[name] = export.rows_of(chunks)
