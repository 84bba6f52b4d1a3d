"""Exports: each format read back with its library, interruptions, and refusals."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import shutil
import socket
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore.errors import (
    ConfigError,
    CorruptStoreError,
    InputError,
    StorageFullError,
    StoreLockedError,
)
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.records import BadInput
from featurestore.system import durable
from manyviews import main
from manyviews.operations.export import formats, hf, parquet, plan, run, safetensors, webdataset
from manyviews.operations.export.plan import narrow
from manyviews.operations.export.request import ExportRequest, parse_views
from manyviews.operations.export.run import export
from tests.conftest import tree_digest
from tests.featurestore.stores import killed_at, make_store

STEMS = ["0000001", "a.b", "c d", *(f"x{i}" for i in range(16)), "Æ雨"]
DIMS = {"clip_image": 8, "clip_text": 16}
VIEWS = 16
BAD = {3: [BadInput(3, "image", "truncated", "cut short")]}
FORMATS = list(formats.FORMATS)
Columns = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with ``store``, ``labels`` and ``split.json``, and the store's rows."""
    folder = tmp_path_factory.mktemp("export")
    options: dict[str, Any] = {"stems": STEMS, "dims": DIMS, "views": VIEWS, "chunk": 8}
    rows = make_store(folder / "store", bad=BAD, **options)
    (folder / "labels").mkdir()
    labels = np.random.default_rng(0).random((len(STEMS), 23)) < 0.2
    np.save(folder / "labels/labels_all_23.npy", labels.astype(np.float32))
    (folder / "labels/ids_all.txt").write_text("\n".join(STEMS))
    split = {"train": STEMS[:10], "dev": STEMS[10:12], "test": STEMS[12:]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder, rows


@pytest.fixture
def request_of(made: tuple[Path, Any], tmp_path: Path) -> Callable[..., ExportRequest]:
    def request(format: str = "npy", **changes: Any) -> ExportRequest:
        asked = ExportRequest(store=made[0] / "store", out_dir=tmp_path / "out", format=format)
        return replace(asked, **changes)

    return request


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes blocks of one chunk and shards of two, as many as a full-size store has."""
    for module in (parquet, safetensors, hf, webdataset):
        monkeypatch.setattr(module, "SHARD_BYTES", 2 * 8 * VIEWS * 201)
    monkeypatch.setattr(plan, "BLOCK_BYTES", 1)


# Readers of each format --------------------------------------------------------------------------


def read_npy(folder: Path) -> Columns:
    found = {p.stem: np.load(p, mmap_mode="r") for p in folder.glob("*.npy")}
    stems = json.loads((folder / "stems.json").read_text())
    return found | {"stem": [stems[i] for i in found["index"]]}


def read_parquet(folder: Path) -> Columns:
    import pyarrow.parquet as pq

    return of_arrow(pq.read_table(folder))


def read_hf(folder: Path) -> Columns:
    from datasets import load_from_disk

    found = load_from_disk(str(folder))
    assert found.with_format("numpy")[0]["clip_text"].shape == (DIMS["clip_text"],)
    return of_arrow(found.data.table)


def of_arrow(table: Any) -> Columns:
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if hasattr(column.type, "list_size"):
            column = column.chunk(0) if hasattr(column, "chunk") else column
            columns[name] = (
                column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
            )
        else:
            columns[name] = np.array(column.to_pylist())
    return columns | {"stem": list(columns["stem"])}


def read_safetensors(folder: Path) -> Columns:
    from safetensors.torch import load_file

    described = json.loads((folder / "_export.json").read_text())
    shards = [load_file(folder / name) for name in described["shards"]]
    assert [len(s["index"]) for s in shards] == list(described["shards"].values())
    joined = {name: torch.cat([s[name] for s in shards]) for name in shards[0]}
    stems = json.loads((folder / "stems.json").read_text())
    whole = {n: t if t.dtype == torch.bfloat16 else t.numpy() for n, t in joined.items()}
    return whole | {"stem": [stems[i] for i in whole["index"]]}


def read_webdataset(folder: Path) -> Columns:
    from webdataset import WebDataset

    columns: dict[str, list[Any]] = {}
    urls = [str(p) for p in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # it leaves open files to the garbage collector
        records = list(WebDataset(urls, shardshuffle=False).decode())
        gc.collect()
    for record in records:
        facts = record["json"]
        assert record["__key__"] == f"{facts['index']:09d}"
        for place, view in enumerate(facts["views"]):
            row = {"stem": facts["stem"], "index": facts["index"], "bad": facts["bad"]}
            row |= {"view": view} | {n: facts[n] for n in ("present", "labels") if n in facts}
            row |= {n.removesuffix(".npy"): record[n][place] for n in record if ".npy" in n}
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    stems = columns.pop("stem")
    return {name: np.array(values) for name, values in columns.items()} | {"stem": stems}


READERS = {
    "npy": read_npy,
    "parquet": read_parquet,
    "safetensors": read_safetensors,
    "hf": read_hf,
    "webdataset": read_webdataset,
}


def test_every_format_has_a_reader_here() -> None:
    assert set(READERS) == set(FORMATS)


# Round trips -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("format", FORMATS)
def test_exported_values_equal_the_store(made: Any, request_of: Any, format: str) -> None:
    folder, rows = made
    request = request_of(format, zscore="none", labels_dir=folder / "labels")
    done = export(request)
    n = len(STEMS)
    assert done.rows == n * VIEWS
    assert done.files == {p.name: p.stat().st_size for p in request.out_dir.iterdir()}
    found = READERS[format](request.out_dir)
    assert found.keys() == {"stem", "index", "view", "bad", "labels", *DIMS}
    for name, dim in DIMS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], rows[name].reshape(-1, dim))
    assert found["stem"] == [s for s in STEMS for _ in range(VIEWS)]
    assert found["index"].tolist() == np.repeat(np.arange(n), VIEWS).tolist()
    assert found["view"].tolist() == list(range(VIEWS)) * n
    assert np.flatnonzero(found["bad"]).tolist() == [3 * VIEWS + v for v in range(VIEWS)]
    labels = np.load(folder / "labels/labels_all_23.npy")
    np.testing.assert_array_equal(found["labels"], labels.repeat(VIEWS, axis=0))
    if format != "npy":
        assert len(json.loads((request.out_dir / "_export.json").read_text())["shards"]) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_selected_views_of_one_feature_scaled_as_float16(
    made: Any, request_of: Any, format: str
) -> None:
    folder, rows = made
    views = (0, 1, 7)
    request = request_of(format, views=views, features=("clip_text",), dtype="float16")
    export(replace(request, zscore="train", split_json=folder / "split.json"))
    found = READERS[format](request.out_dir)
    assert found.keys() == {"stem", "index", "view", "bad", "clip_text"}
    trained = [i for i in range(10) if i not in BAD]  # without the placeholder
    train = rows["clip_text"][trained].astype(np.float64)
    scaled = (rows["clip_text"] - train.mean((0, 1))) / (train.std((0, 1)) + 1e-6)
    assert found["clip_text"].dtype == np.float16
    expected = scaled[:, views].reshape(-1, DIMS["clip_text"])
    np.testing.assert_allclose(found["clip_text"], expected, rtol=2**-10, atol=1e-3)
    stats = np.load(request.out_dir / "_zscore.npz")
    np.testing.assert_allclose(stats["clip_text.mu"], train.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats["clip_text.sigma"], train.std((0, 1)), rtol=1e-5)


def test_bfloat16_equals_torch(made: Any, request_of: Any) -> None:
    request = request_of("safetensors", dtype="bfloat16", zscore="none")
    export(request)
    found = read_safetensors(request.out_dir)
    for name, dim in DIMS.items():
        expected = torch.from_numpy(made[1][name]).reshape(-1, dim).to(torch.bfloat16)
        assert torch.equal(found[name], expected)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_store_gives_the_same_bytes(request_of: Any, tmp_path: Path, format: str) -> None:
    first, second = (request_of(format, out_dir=tmp_path / name) for name in ("a", "b"))
    export(first)
    export(second)
    assert tree_digest(first.out_dir) == tree_digest(second.out_dir)


def test_the_description(made: Any, request_of: Any) -> None:
    request = request_of("parquet", views=(0, 2), labels_dir=made[0] / "labels")
    export(request)
    described = json.loads((request.out_dir / "_export.json").read_text())
    assert described["views"] == [0, 2]
    assert described["features"] == DIMS
    assert (described["rows"], described["labels"]) == (2 * len(STEMS), list(CLASS_NAMES))
    assert described["placeholders"] == [
        {"index": 3, "stem": "x0", "input": "image", "reason": "truncated"}
    ]
    assert described["fingerprint"]["seed"] == 123
    for name, facts in described["files"].items():
        data = (request.out_dir / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_parquet_has_sensible_row_groups(request_of: Any, monkeypatch: Any) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(plan, "BLOCK_BYTES", 2 * 8 * VIEWS * 110)  # two chunks
    request = request_of("parquet")
    export(request)
    (file,) = request.out_dir.glob("*.parquet")
    metadata = pq.ParquetFile(file).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [
        16 * VIEWS,
        4 * VIEWS,
    ]


def test_the_hugging_face_export_uses_no_network(request_of: Any, monkeypatch: Any) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was reached for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    request = request_of("hf")
    export(request)
    from datasets import load_from_disk

    assert len(load_from_disk(str(request.out_dir))) == len(STEMS) * VIEWS


def _said_by_parquet(folder: Path) -> str:
    import pyarrow.parquet as pq

    (file,) = folder.glob("*.parquet")
    said: bytes = pq.read_schema(file).metadata[b"zscore"]
    return said.decode()


def _said_by_hf(folder: Path) -> str:
    from datasets import load_from_disk

    return str(load_from_disk(str(folder)).info.description)


def _said_by_webdataset(folder: Path) -> str:
    with tarfile.open(next(folder.glob("*.tar"))) as tar:
        member = tar.extractfile("000000000.json")
        assert member is not None
        return str(json.loads(member.read())["zscore"])


@pytest.mark.parametrize(("zscore", "words"), [("all", "z-scored rows"), ("none", "raw rows")])
@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("parquet", _said_by_parquet),
        ("hf", _said_by_hf),
        ("webdataset", _said_by_webdataset),
        ("npy", lambda _: ""),
    ],
)
def test_an_export_says_whether_rows_are_z_scored(
    request_of: Any, capsys: Any, format: str, said: Any, zscore: str, words: str
) -> None:
    """In its output, in ``_export.json``, and in the files if the format has metadata."""
    request = request_of(format)
    arguments = ["--store", request.store, "--format", format, "--out-dir", request.out_dir]
    code = main.run_command(["export", *map(str, arguments), "--zscore", zscore, "--json"])
    assert code == 0
    output, errors = capsys.readouterr()
    assert words in errors
    assert json.loads(output)["zscore"] == zscore
    assert words in json.loads((request.out_dir / "_export.json").read_text())["scaling"]
    in_file = said(request.out_dir)
    assert in_file == zscore or words in in_file or format == "npy"


# Interruptions -----------------------------------------------------------------------------------


def test_killed_at_every_disk_operation(request_of: Any, tmp_path: Path) -> None:
    # The format whose library has no threads of its own, and may be forked.
    request = request_of("webdataset", views=(0,), features=("clip_image",), zscore="none")
    export(replace(request, out_dir=tmp_path / "whole"))
    whole = tree_digest(tmp_path / "whole")
    died, n = True, 0
    while died:  # each run finds the remains of the previous one
        n += 1
        if request.out_dir.exists():
            shutil.rmtree(request.out_dir)
        died = killed_at(n, lambda: export(request))
        if request.out_dir.exists() or not died:
            assert tree_digest(request.out_dir) == whole
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "out"}
    assert n > 20


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Simulates a disk with a given number of free bytes."""

    def fill(room: int) -> None:
        left = room

        def hook(operation: str, path: Path, size: int) -> int:
            nonlocal left
            if operation == "write":
                if left < size:
                    raise OSError(errno.ENOSPC, "No space left on device")
                left -= size
            return size

        durable.hook = hook

    before = durable.hook
    yield fill
    durable.hook = before


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("room", [1000, 20_000])
def test_a_full_disk(
    request_of: Any, full_disk: Any, tmp_path: Path, format: str, room: int
) -> None:
    full_disk(room)
    with pytest.raises(StorageFullError):
        export(request_of(format))
    assert list(tmp_path.iterdir()) == []
    full_disk(10**9)
    export(request_of(format))


def test_two_exports_to_one_folder(request_of: Any, tmp_path: Path, monkeypatch: Any) -> None:
    request = request_of()

    def second(*_: object) -> None:
        with pytest.raises(StoreLockedError, match="is being written by process"):
            export(request)

    export(request, progress=second)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "csv"}, "--format must be one of npy, parquet"),
        ({"dtype": "bfloat16"}, "npy supports float32 or float16.*\n.*--format safetensors"),
        ({"views": (0, 16)}, "--views must name views 0 to 15 of .*, found 16"),
        ({"features": ("clip_image", "clip_image")}, "each feature once"),
        ({"features": ("other",)}, "holds clip_image, clip_text, but not 'other'"),
        ({"zscore": "train"}, "needs the split"),
        ({"zscore": "some"}, "zscore is one of"),
    ],
)
def test_unavailable_formats_and_columns_are_refused(
    request_of: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(request_of(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "views"),
    [("0", (0,)), ("0-3,20", (0, 1, 2, 3, 20)), (" 5, 1-2 ", (1, 2, 5)), ("3,2-4", (2, 3, 4))],
)
def test_ranges_of_views(text: str, views: tuple[int, ...]) -> None:
    assert parse_views(text) == views


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2", "1-", "1.5", "0-99999999999"])
def test_invalid_ranges_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a list like 0-9,20"):
        parse_views(text)


def huge_store(folder: Path, **options: Any) -> Path:
    rows = np.zeros((8, 16, 64), np.float32)
    rows[5, 3, 7] = -70_000.5
    stems = [f"s{i}" for i in range(8)]
    make_store(
        folder, stems=stems, rows={"huge": rows}, dims={"huge": 64}, views=16, chunk=8, **options
    )
    return folder


def test_float16_overflow_is_refused_with_the_value(tmp_path: Path) -> None:
    request = ExportRequest(
        store=huge_store(tmp_path / "s"), out_dir=tmp_path / "o", format="npy", dtype="float16"
    )
    message = "huge of sample 's5', view 3, holds -70,000.5, which is beyond float16"
    with pytest.raises(ConfigError, match=message):
        export(replace(request, zscore="none"))
    export(replace(request, zscore="none", views=(0, 1)))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("value", "short", "infinite"),
    [
        (65_519.99, 65_504, False),
        (65_520, np.inf, True),
        (-65_520, -np.inf, True),
        (1e-9, 0, False),
    ],
)
def test_the_largest_float16(value: float, short: float, infinite: bool) -> None:
    found, over = narrow(np.array([[0, value]], np.float32), "float16")
    assert found[0, 1] == short
    assert over == ((0, 1) if infinite else None)


def test_rounding_is_to_the_nearest_and_to_even() -> None:
    """Compared with NumPy for float16, and with integer arithmetic on the bits for bfloat16."""
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values)]
    found, _ = narrow(values, "bfloat16")
    bits = values.view(np.uint32)
    # The upper half, plus one if the lower is above its middle, or at it while the upper is odd.
    np.testing.assert_array_equal(found, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    halves = (bits & 0xFFFFE000) | 0x1000
    for half in (values, halves.view(np.float32)):
        found, _ = narrow(half, "float16")
        with np.errstate(over="ignore"):
            expected = half.astype(np.float16)
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))
    most = np.array([3.4e38], np.float32)  # nearer to infinity than to bfloat16's largest
    assert narrow(most, "bfloat16")[1] == (0,)


def test_an_incomplete_store(tmp_path: Path) -> None:
    make_store(tmp_path / "s", samples=20, views=16, chunk=8, dims=DIMS, chunks=[0])
    with pytest.raises(InputError, match="1 of 3 chunks committed"):
        export(ExportRequest(store=tmp_path / "s", out_dir=tmp_path / "o", format="npy"))


def test_a_damaged_chunk(made: Any, tmp_path: Path) -> None:
    shutil.copytree(made[0] / "store", tmp_path / "s")
    chunk = tmp_path / "s/clip_text/c.1.0.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="chunk 1"):
        export(ExportRequest(store=tmp_path / "s", out_dir=tmp_path / "o", format="parquet"))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_folders_of_other_programs_are_not_touched(request_of: Any, tmp_path: Path) -> None:
    request = request_of()
    request.out_dir.mkdir()
    (request.out_dir / "mine").touch()
    with pytest.raises(InputError, match="is not empty"):
        export(request)
    partial = tmp_path / "new.partial"
    partial.mkdir()
    (partial / "mine").touch()
    with pytest.raises(InputError, match="was not created by an export"):
        export(request_of(out_dir=tmp_path / "new"))
    assert (request.out_dir / "mine").exists()
    assert (partial / "mine").exists()
    with pytest.raises(ConfigError, match="is in the store"):
        export(request_of(out_dir=request.store / "export"))


def test_an_empty_folder_and_a_link_to_one(request_of: Any, tmp_path: Path) -> None:
    request = request_of()
    (tmp_path / "elsewhere").mkdir()
    request.out_dir.symlink_to(tmp_path / "elsewhere")
    export(request)
    assert request.out_dir.is_symlink()
    assert (tmp_path / "elsewhere/clip_image.npy").is_file()


def test_a_mount_point_cannot_be_renamed_to(
    request_of: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: True)
    with pytest.raises(InputError, match="is a mount point"):
        export(request_of())
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space_is_reported_before_writing(
    request_of: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(run, "free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match=r"needs [\d,]+ bytes and its file system has 1,000 free"):
        export(request_of())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", [f for f in FORMATS if formats.FORMATS[f].libraries])
def test_a_missing_library_is_named(request_of: Any, monkeypatch: Any, format: str) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(formats, "version", absent)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[export\]"'):
        export(request_of(format))


def test_a_feature_with_the_name_of_a_column(tmp_path: Path) -> None:
    make_store(tmp_path / "s", samples=8, views=16, chunk=8, dims={"view": 8, "other": 8})
    request = ExportRequest(store=tmp_path / "s", out_dir=tmp_path / "o", format="npy")
    with pytest.raises(ConfigError, match="the name of a column"):
        export(request)
    export(replace(request, features=("other",)))


@pytest.mark.parametrize("format", FORMATS)
def test_stems_that_are_not_utf8_are_refused_by_arrow_formats(tmp_path: Path, format: str) -> None:
    stems = ["caf\udce9", *(f"x{i}" for i in range(7))]
    make_store(tmp_path / "s", stems=stems, views=16, chunk=8, dims={"clip_image": 8})
    request = ExportRequest(
        store=tmp_path / "s", out_dir=tmp_path / "o", format=format, features=("clip_image",)
    )
    if format in ("parquet", "hf"):
        with pytest.raises(InputError, match="is not valid UTF-8"):
            export(request)
    else:
        export(request)
        assert READERS[format](tmp_path / "o")["stem"][0] == stems[0]
