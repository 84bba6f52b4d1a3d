"""Run an export: check the request, write to a temporary folder, describe, rename."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore import __version__
from featurestore.errors import InputError
from featurestore.storage.space import free_bytes
from manyviews.operations.export.folder import DESCRIPTION, OutFolder, check_free_name, out_folder
from manyviews.operations.export.formats import Format, check, load_writer
from manyviews.operations.export.plan import Export, Progress, plan
from manyviews.operations.export.request import ZSCORE, ExportRequest


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    Attributes:
        out_dir: the output folder.
        rows: number of rows, samples times views.
        files: size of each file in bytes by name, in the order of writing.
    """

    out_dir: Path
    rows: int
    files: dict[str, int]


def export(request: ExportRequest, progress: Progress | None = None) -> Exported:
    """Exports a complete store; memory does not grow with the number of samples.

    The folder gets its name once it is complete and durable. Equal stores and library versions
    give equal bytes.

    Args:
        request: the options.
        progress: callback (chunks done, all chunks), or None.

    Raises:
        ConfigError: the format, dtype, views or features are not available, or a value is too
            large for the dtype.
        InputError: the store is not complete, the split or labels do not match it, ``out_dir`` is
            not empty, or there is too little disk space.
        StoreLockedError: another process is exporting to the same folder.
        CorruptStoreError: a chunk is damaged.
        StorageError: a write failed.
    """
    form = check(request.format, request.dtype)
    chosen = plan(request, progress)
    check_free_name(request.out_dir.resolve())
    _check_space(chosen, form)
    writer = load_writer(form)
    with out_folder(request.out_dir) as folder:
        writer(chosen, folder)
        if request.zscore != "none":
            folder.write(ZSCORE, _zscore_file(chosen))
        folder.write_json(DESCRIPTION, describe(chosen, folder))
    sizes = {name: facts.bytes for name, facts in folder.files.items()}
    return Exported(request.out_dir, chosen.rows, sizes)


def _check_space(chosen: Export, form: Format) -> None:
    stems = sum(len(s) for s in chosen.store.stems) * len(chosen.views)
    members = chosen.store.spec.samples * (len(chosen.dims) + 1)
    needed = chosen.rows * chosen.row_bytes + stems + members * form.overhead_bytes
    free = free_bytes(chosen.request.out_dir.resolve().parent)
    if free is not None and needed > free:
        raise InputError(
            f"{chosen.request.out_dir} needs {needed:,} bytes and its file system has {free:,} "
            "free.\nFree some space, choose another --out-dir, or export fewer --views or "
            "--features."
        )


def _zscore_file(chosen: Export) -> bytes:
    """The content of ``ZSCORE``: ``<feature>.mu`` and ``<feature>.sigma``, float32 ``[D]``."""
    out = io.BytesIO()
    arrays: dict[str, Any] = {}
    for name, scale in chosen.scales.items():
        if scale is not None:
            arrays |= {f"{name}.mu": scale.mu, f"{name}.sigma": scale.sigma}
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def describe(chosen: Export, folder: OutFolder) -> dict[str, Any]:
    """The content of ``DESCRIPTION``: equal exports have equal descriptions."""
    store, request = chosen.store, chosen.request
    stems = store.stems
    return {
        "manyviews": __version__,
        "format": request.format,
        "samples": store.spec.samples,
        "views": chosen.views.tolist(),
        "rows": chosen.rows,
        "features": dict(chosen.dims),
        "dtype": request.dtype,
        "zscore": request.zscore,
        "scaling": request.scaling,
        "labels": None if chosen.labels is None else list(chosen.labels.classes),
        **({"absent": chosen.absent} if chosen.absent else {}),
        "placeholders": [
            {"index": b.index, "stem": stems[b.index], "input": b.modality, "reason": b.reason}
            for b in store.bad_inputs
        ],
        "fingerprint": store.fingerprint,
        "shards": folder.shards,
        "files": {name: facts._asdict() for name, facts in folder.files.items()},
    }
