"""The rows of an export as Arrow tables, for Parquet and Hugging Face data sets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurestore.errors import InputError
from manyviews.operations.export.plan import Block, Export


def schema_of(export: Export) -> pa.Schema:
    """The columns ``stem``, ``index``, ``view``, ``bad``, ``present``, features, and ``labels``.

    A feature is a list of D floats, ``present`` one of F booleans. The metadata ``zscore`` and
    ``scaling`` describe the scaling of the rows.

    Raises:
        InputError: a stem is not valid UTF-8, which Arrow requires of strings.
    """
    for stem in export.store.stems:
        if any("\ud800" <= c <= "\udfff" for c in stem):
            raise InputError(
                f"The stem {stem!r} is not valid UTF-8, which Arrow requires.\n"
                "Rename the sample's files and build again, or export as npy, safetensors or "
                "webdataset."
            )
    float_type = pa.from_numpy_dtype(np.dtype(export.request.dtype))
    fields = [
        ("stem", pa.string()),
        ("index", pa.int64()),
        ("view", pa.int32()),
        ("bad", pa.bool_()),
        *((("present", pa.list_(pa.bool_(), len(export.dims))),) if export.absent else ()),
        *((name, pa.list_(float_type, dim)) for name, dim in export.dims.items()),
    ]
    if export.labels is not None:
        fields.append(("labels", pa.list_(pa.float32(), len(export.labels.classes))))
    metadata = {"zscore": export.request.zscore, "scaling": export.request.scaling}
    return pa.schema(fields, metadata=metadata)


def table_of(block: Block, schema: pa.Schema) -> pa.Table:
    """A block's rows as an Arrow table; the features are not copied."""
    repeated = np.arange(len(block.samples)).repeat(len(block.views))
    arrays = {"stem": pa.array(block.stems, pa.string()).take(pa.array(repeated))}
    for name, values in block.columns().items():
        if values.ndim == 1:
            arrays[name] = pa.array(values)
        else:
            flat = pa.array(values.reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table([arrays[name] for name in schema.names], schema=schema)
