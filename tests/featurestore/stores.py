"""Small real stores for the tests, and ways to end a process at a chosen disk operation."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr

from featurestore.records import BadInput, Modality, Sample, SampleRecord, stems_sha256
from featurestore.storage.creation import create
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.shape import StoreSpec, choose_chunk
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import SharedWriter, StoreWriter, take_lock
from featurestore.system import durable

DIMS = {"clip_image": 64, "clip_text": 128}
MODALITIES: Mapping[str, Modality] = {"clip_image": "image", "clip_text": "text"}
KILLED = 9
StoreAndRows = tuple[Path, dict[str, np.ndarray]]


def make_samples(stems: Sequence[str]) -> list[Sample]:
    return [Sample(i, stem, f"{stem}.jpg", f"{stem}.json") for i, stem in enumerate(stems)]


def make_fingerprint(spec: StoreSpec, stems: Sequence[str]) -> Fingerprint:
    fingerprint: Fingerprint = {
        "samples": spec.samples,
        "stems_sha256": stems_sha256(stems),
        "views": spec.views,
        "seed": 123,
        "chunk": spec.chunk,
        "codec": spec.codec,
        "image_recipe": "simclr-2",
        "text_recipe": "mask-1",
        "text_recipe.share": "0.15",
        "text_recipe.token": '"[MASK]"',
        "features": ",".join(spec.dims),
        "device_kind": "cpu",
    }
    for name in spec.dims:
        fingerprint |= {
            f"{name}.model": f"models/{name}",
            f"{name}.weights_sha256": hashlib.sha256(name.encode()).hexdigest(),
            f"{name}.dtype": "torch.float32",
            f"{name}.batch_size": 8,
        }
    return fingerprint | {"version.torch": "2.13.0", "version.pillow": "12.0.0"}


def make_rows(spec: StoreSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows whose offset and spread differ per dimension, so that a z-score changes every value."""
    rng = np.random.default_rng(seed)
    rows = {}
    for name, dim in spec.dims.items():
        offset, spread = rng.normal(0, 5, dim), rng.uniform(0.1, 3, dim)
        values = rng.normal(size=(spec.samples, spec.views, dim)) * spread + offset
        rows[name] = values.astype(np.float32)
    return rows


def make_records(
    spec: StoreSpec, bad: Mapping[int, Sequence[BadInput]] | None = None
) -> list[SampleRecord]:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    bad = bad or {}
    return [
        SampleRecord(i, digest(f"image {i}"), digest(f"text {i}"), 3 * i, tuple(bad.get(i, ())))
        for i in range(spec.samples)
    ]


def without(records: Sequence[SampleRecord], absent: Mapping[int, str]) -> list[SampleRecord]:
    """The records with some inputs absent: ``image``, ``text`` or ``both`` by sample."""
    changed = list(records)
    for index, modality in absent.items():
        if modality != "text":
            changed[index] = replace(changed[index], image_sha256=None)
        if modality != "image":
            changed[index] = replace(changed[index], text_sha256=None, words=0)
    return changed


def make_generic_store(
    path: Path,
    absent: Mapping[int, str],
    *,
    samples: int = 11,
    views: int = 4,
    chunk: int = 4,
    dims: Mapping[str, int] = DIMS,
    bad: Mapping[int, Sequence[BadInput]] | None = None,
    chunks: Sequence[int] | None = None,
    codec: str = "none",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Creates a store of a collection where some samples lack an input.

    Args:
        path: the store's folder.
        absent: ``image``, ``text`` or ``both`` by sample.
        samples: N.
        views: V.
        chunk: K.
        dims: D by feature; a name that ends in ``text`` is computed from the text.
        bad: the bad inputs by sample.
        chunks: the chunks to commit, by default all.
        codec: ``none`` or ``zstd``.
        seed: of the rows.

    Returns:
        The rows, float32 ``[N, V, D]`` by feature, zeros where the input is absent.
    """
    modalities: dict[str, Modality] = {
        name: "text" if name.endswith("text") else "image" for name in dims
    }
    spec = StoreSpec(
        samples, views, choose_chunk(chunk, views, dims), dict(dims), codec, modalities
    )
    stems = [f"folder/{i:03d}" for i in range(samples)]
    records = without(make_records(spec, bad), absent)
    rows = make_rows(spec, seed)
    for name in dims:
        rows[name][~spec.present(name, records)] = 0
    fingerprint = make_fingerprint(spec, stems) | {"preset": "generic", "clean_text": "first"}
    listed = [Sample(i, stem) for i, stem in enumerate(stems)]
    with create(path, spec, fingerprint, listed, take_lock(path)) as writer:
        commit(writer, range(spec.chunks) if chunks is None else chunks, rows, records)
        writer.finish()
    return rows


def commit(
    writer: StoreWriter,
    chunks: Iterable[int],
    rows: Mapping[str, np.ndarray],
    records: Sequence[SampleRecord],
) -> None:
    for chunk in chunks:
        of = writer.spec.samples_of(chunk)
        part = slice(of.start, of.stop)
        writer.commit_chunk(chunk, {n: r[part] for n, r in rows.items()}, records[part], {})


def make_store(
    path: Path,
    *,
    samples: int = 11,
    views: int = 4,
    chunk: int = 4,
    dims: Mapping[str, int] = DIMS,
    seed: int = 0,
    bad: Mapping[int, Sequence[BadInput]] | None = None,
    stems: Sequence[str] | None = None,
    chunks: Sequence[int] | None = None,
    rows: Mapping[str, np.ndarray] | None = None,
    codec: str = "none",
    recipes: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Creates a store with the given chunks, by default all; returns rows, float32 [N, V, D]."""
    stems = [f"{i:07d}" for i in range(samples)] if stems is None else stems
    spec = StoreSpec(len(stems), views, choose_chunk(chunk, views, dims), dict(dims), codec)
    made = make_rows(spec, seed) if rows is None else dict(rows)
    lock = take_lock(path)
    fingerprint = make_fingerprint(spec, stems) | dict(recipes or {})
    with create(path, spec, fingerprint, make_samples(stems), lock) as writer:
        wanted = range(spec.chunks) if chunks is None else chunks
        commit(writer, wanted, made, make_records(spec, bad))
        writer.finish()
    return made


def remake(path: Path, chunk: int, rows: Mapping[str, np.ndarray]) -> None:
    """Rebuilds a chunk of a complete store, as ``build --remake-changed`` does."""
    with StoreWriter(path, take_lock(path)) as writer:
        writer.ledger.drop([chunk])
        commit(writer, [chunk], rows, make_records(writer.spec))
        writer.finish()


def record(
    path: Path,
    chunks: Iterable[int],
    rows: Mapping[str, np.ndarray],
    records: Sequence[SampleRecord] | None = None,
) -> None:
    """Commits chunks by records, as a worker does; the store is not sealed."""
    lock = take_lock(path, worker=True, shared=True)
    with SharedWriter.of(FeatureStore(path), lock) as writer:
        commit(writer, chunks, rows, make_records(writer.spec) if records is None else records)


def zarr_rows(path: Path, name: str) -> np.ndarray:
    """The values of an array of a store, read with zarr alone."""
    array = zarr.open_group(path, mode="r")[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a store except its logs and lock; names of folders end in a slash."""
    return {
        str(p.relative_to(root)) + "/" * p.is_dir(): b"" if p.is_dir() else p.read_bytes()
        for p in sorted(root.rglob("*"))
        if not p.is_relative_to(root / "records" / "runs")
    }


def die_at(n: int) -> None:
    """Makes this process die at disk operation ``n``, see :func:`killed_at`."""
    count = 0

    def die(operation: str, path: Path, size: int) -> int:
        nonlocal count
        count += 1
        if count == n and operation == "write" and size > 1:
            return size // 2  # the rest is written by the next operation
        if count > n or (count == n and operation != "write"):
            os._exit(KILLED)
        return size

    durable.hook = die
    os.fsync = lambda fd: None  # written data survives a process without a sync


def killed_at(n: int, action: Callable[[], object]) -> bool:
    """Runs ``action`` in a child that dies, without any clean-up, at disk operation ``n``.

    It dies before the operation; of a write, the first half still reaches the file.

    Returns:
        Whether it died there; False where it needs fewer operations.
    """
    with warnings.catch_warnings():
        # Newer Pythons warn about forks with threads; the child starts none and takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            die_at(n)
            action()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, KILLED), f"the child failed with {code}"
    return code == KILLED


def unseal(path: Path, kept: Iterable[int] = ()) -> None:
    """Turns lines of a complete store's ledger into records, as before it was sealed.

    Args:
        path: the store's folder.
        kept: the chunks that stay lines of the ledger.
    """
    ledger, commits = path / "records/ledger.jsonl", path / "records/commits"
    lines, kept = ledger.read_bytes().splitlines(), set(kept)
    commits.mkdir()
    for chunk, line in enumerate(lines):
        if chunk not in kept:
            (commits / f"{chunk:08d}").write_bytes(line)
    ledger.write_bytes(b"".join(line + b"\n" for i, line in enumerate(lines) if i in kept))
