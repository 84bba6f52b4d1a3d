"""Checks a store's own record and its Zarr documents, as specified in ``docs/store.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from featurestore.system.refusals import status_of
from featurestore.verify.files import StoreFiles

GROUPS = ("zarr.json", "records/zarr.json", "records/moments/zarr.json")
EXTENSION = "records/extension"

_SCHEMA = 3
# Keys of a Zarr document that have no effect if they are empty.
_SILENT = ("storage_transformers", "consolidated_metadata")


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """The record that a store keeps of itself in its root document.

    Attributes:
        document: the root document.
        samples: the number of samples.
        views: the number of views per sample.
        rows: the number of samples per chunk; the last chunk may have fewer.
        dims: the number of dimensions by feature.
        codec: the codec of the features' chunks, ``none`` or ``zstd``.
        samples_sha256: hex SHA-256 of the list of samples.
        stems_sha256: hex SHA-256 of the samples' stems.
        modalities: the input that features are computed from, ``image`` or ``text``, by feature.
        may_lack: whether samples of the collection may lack an input.
    """

    document: dict[str, Any]
    samples: int
    views: int
    rows: int
    dims: dict[str, int]
    codec: str
    samples_sha256: str
    stems_sha256: str
    modalities: dict[str, str]
    may_lack: bool

    @property
    def chunks(self) -> int:
        """The number of chunks of the complete store."""
        return -(-self.samples // self.rows)

    def arrays(self) -> Iterator[tuple[str, list[int], int, str]]:
        """Name, shape, chunk length and dtype of each array."""
        for name, dim in self.dims.items():
            yield name, [self.samples, self.views, dim], self.rows, "float32"
            yield f"records/moments/{name}", [self.chunks, 2, dim], 1, "float64"

    def compression(self, dtype: str) -> list[dict[str, Any]]:
        """The compression codecs of an array; moments are never compressed."""
        if self.codec == "none" or dtype == "float64":
            return []
        return [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}]


def read_record(root: Path, files: StoreFiles) -> StoreRecord | None:
    """Reads the store's own record; None if it is damaged, which is a finding."""
    pending = root / EXTENSION / "final/zarr.json"
    if status_of(root / "zarr.json") is None and status_of(pending) is not None:
        files.find("zarr.json", "an extension is being merged; build --resume finishes it")
        return None
    document = files.object("zarr.json")
    if not document:
        return None
    try:
        return _parsed(document)
    except (KeyError, TypeError, ValueError) as e:
        files.find("zarr.json", f"its manyviews attributes: {e}")
        return None


def _parsed(document: dict[str, Any]) -> StoreRecord:
    """The record in a root document; raises KeyError, TypeError or ValueError if it is damaged."""
    record = document["attributes"]["manyviews"]
    if record["schema"] != _SCHEMA:
        raise ValueError(f"schema {record['schema']!r}, this version reads {_SCHEMA}")
    rest = {key: value for key, value in record.items() if key != "crc32c"}
    crc = google_crc32c.value(json.dumps(rest, sort_keys=True).encode("ascii"))
    if record["crc32c"] != f"{crc:08x}":
        raise ValueError("they do not match their checksum")
    shape, fingerprint = record["shape"], record["fingerprint"]
    sizes = (shape["samples"], shape["views"], shape["chunk"])
    dims, codec = dict(shape["dims"]), shape.get("codec", "none")
    digests = record["samples_sha256"], fingerprint["stems_sha256"]
    modalities = dict(shape.get("modalities", {}))
    if not all(type(size) is int and size > 0 for size in (*sizes, *dims.values())):
        raise ValueError(f"shape {shape}")
    if sizes != tuple(fingerprint[key] for key in ("samples", "views", "chunk")):
        raise ValueError("shape and fingerprint disagree")
    if codec not in ("none", "zstd") or codec != fingerprint.get("codec", "none"):
        raise ValueError(f"codec {codec!r}")
    if not modalities.keys() <= dims.keys() or not set(modalities.values()) <= {"image", "text"}:
        raise ValueError(f"modalities {modalities} of {sorted(dims)}")
    may_lack = fingerprint.get("preset") == "generic"
    return StoreRecord(document, *sizes, dims, codec, *digests, modalities, may_lack)


def check_documents(record: StoreRecord, files: StoreFiles) -> None:
    """Checks the Zarr documents, which other libraries use to read the arrays."""
    for file in GROUPS:
        document = record.document if file == "zarr.json" else files.object(file)
        # The content of the root's attributes is checked by ``read_record``.
        attributes = document.get("attributes") if file == "zarr.json" else {}
        _compare(files, file, document, {"node_type": "group", "attributes": attributes})
    for name, shape, rows, dtype in record.arrays():
        file = f"{name}/zarr.json"
        grid = {"name": "regular", "configuration": {"chunk_shape": [rows, *shape[1:]]}}
        axes = ("chunk", "moment") if rows == 1 and dtype == "float64" else ("sample", "view")
        expected = {
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": grid,
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN",
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                *record.compression(dtype),
                {"name": "crc32c"},
            ],
            "attributes": {},
            "dimension_names": [*axes, "dim"],
        }
        _compare(files, file, files.object(file), expected)


def _compare(
    files: StoreFiles, file: str, document: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Compares a Zarr document with its expected content; other keys must have no effect."""
    if not document:
        return  # unreadable, which is already a finding
    expected = {"zarr_format": 3, **expected}
    for key in sorted(document.keys() | expected.keys()):
        actual, value = document.get(key), expected.get(key)
        if actual != value and (key in expected or actual or key not in _SILENT):
            files.find(file, f"{key} is {actual!r}, expected {value!r}")
