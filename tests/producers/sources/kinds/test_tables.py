"""Tables: the bytes and texts that were written, ids as they are, errors with row numbers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import BadSampleError, ConfigError, InputError, StorageError
from producers.sources.inputs import stat_inputs
from producers.sources.kinds import scan_collection
from producers.sources.scan import Inputs, require_inputs
from tests.producers.sources.kinds.kit import (
    ITEMS,
    Item,
    assert_equal,
    collection,
    picture,
    read,
    write_csv,
    write_files,
    write_parquet,
)


def text_file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t"), ("T.CSV", ",")])
def test_paths_and_texts_of_a_csv_file(tmp_path: Path, name: str, delimiter: str) -> None:
    write_files(tmp_path, ITEMS, texts=False)
    write_csv(tmp_path / name, ITEMS, delimiter=delimiter)
    assert_equal(read(collection("table", tmp_path / name)), ITEMS)


@pytest.mark.parametrize("options", [{}, {"row_group_size": 2}, {"compression": "zstd"}])
def test_bytes_and_lists_of_texts_of_a_parquet_file(tmp_path: Path, options: Any) -> None:
    items = [*ITEMS, Item("several", picture(7), ("one", "two", "three"))]
    write_parquet(tmp_path / "t.parquet", items, **options)
    assert_equal(read(collection("table", tmp_path / "t.parquet")), items)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "path", "dictionary"])
def test_every_type_of_images_and_texts(tmp_path: Path, kind: str) -> None:
    write_files(tmp_path, ITEMS, texts=False)
    names = [next(tmp_path.glob(f"{item.id}.*")).name for item in ITEMS if "/" not in item.id]
    items = [item for item in ITEMS if "/" not in item.id]
    images = [item.image for item in items]
    column: Any = {
        "binary": lambda: pa.array(images, pa.binary()),
        "large_binary": lambda: pa.array(images, pa.large_binary()),
        "struct": lambda: pa.array([{"path": name} for name in names]),
        "path": lambda: pa.array(names),
        "dictionary": lambda: pa.array(names).dictionary_encode(),
    }[kind]()
    texts = pa.array([item.texts[0] for item in items], pa.large_string())
    if kind == "dictionary":
        texts = texts.dictionary_encode()
    pq.write_table(
        pa.table({"key": [item.id for item in items], "image": column, "caption": texts}),
        tmp_path / "t.parquet",
    )
    assert_equal(read(collection("table", tmp_path / "t.parquet")), items)


def test_a_jsonl_file_with_strings_lists_and_numbers(tmp_path: Path) -> None:
    write_files(tmp_path, ITEMS[:1], texts=False)
    rows = [
        {"id": "0012", "image": "0012.png", "text": "one", "labels": ["a, b", 'c"']},
        {"id": 12, "text": ["x", "", None, "y"], "image": None, "labels": []},
        {"id": "last", "text": "z", "other": {"deep": [1]}, "image": {"path": None}},
    ]
    path = text_file(tmp_path, "t.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    found = read(collection("table", path))
    assert found.ids == ["0012", "12", "last"]
    assert found.texts == [("one",), ("x", "y"), ("z",)]
    assert found.images == [ITEMS[0].image, None, None]
    assert found.scan.labels is not None
    assert found.scan.labels() == [["a, b", 'c"'], [], None]


def test_ids_of_a_csv_file_stay_strings_and_nothing_is_null_but_the_empty_cell(
    tmp_path: Path,
) -> None:
    content = "id,text\n0012,NA\n1e3,null\n012,nan\ntrue,\ufeffx\n"
    found = read(collection("table", text_file(tmp_path, "t.csv", "\ufeff" + content)))
    assert found.ids == ["0012", "1e3", "012", "true"]
    assert found.texts == [("NA",), ("null",), ("nan",), ("\ufeffx",)]


def test_the_number_of_the_row_is_the_id_where_there_is_none(tmp_path: Path) -> None:
    for name, texts in (("a.csv", "x\ny\n"), ("b.csv", "z\n")):
        text_file(tmp_path, name, "text\n" + texts)
    found = read(collection("table", tmp_path / "*.csv"))
    assert found.ids == ["00000000", "00000001", "00000002"]
    assert found.texts == [("x",), ("y",), ("z",)]


def test_a_pattern_of_files_in_sorted_order_with_their_own_folders(tmp_path: Path) -> None:
    for folder, items in (("b", ITEMS[3:5]), ("a", ITEMS[:2])):
        write_files(tmp_path / folder, items, texts=False)
        write_csv(tmp_path / folder / "t.csv", items)
    expected = [*ITEMS[:2], *ITEMS[3:5]]
    found = read(collection("table", tmp_path / "*" / "t.csv"))
    assert_equal(found, expected)
    assert_equal(
        read(collection("table", f"{tmp_path}/{{b,a}}/t.csv")), expected[2:] + expected[:2]
    )
    assert found.scan.places.names(found.scan.samples[3])[0] == "row 1 of t.csv"


def test_order_by_id(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", ITEMS[::-1])
    given = collection("table", tmp_path / "t.parquet")
    assert_equal(read(given), ITEMS[::-1])
    found = read(collection("table", tmp_path / "t.parquet", order="id"))
    assert_equal(found, sorted(ITEMS, key=lambda item: item.id))
    assert found.scan.places.sizes("image") == [len(item.image or b"") for item in ITEMS]


def test_several_columns_of_texts_are_read_in_their_order(tmp_path: Path) -> None:
    table = {"plot": ["p", "", "q"], "tagline": [["a", "b"], ["c"], None], "image": ["", "", ""]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    for text in (("plot", "tagline"), ("tagline", "plot")):
        found = read(collection("table", tmp_path / "t.parquet", text=text))
        expected = [("p", "a", "b"), ("c",), ("q",)]
        assert found.texts == (expected if text[0] == "plot" else [("a", "b", "p"), *expected[1:]])
        assert found.scan.modalities == ("text",)


def test_absent_inputs(tmp_path: Path) -> None:
    items = [
        Item("both", picture(1), ("t",)),
        Item("image", picture(2)),
        Item("text", None, ("t",)),
    ]
    write_parquet(tmp_path / "t.parquet", items)
    write_files(tmp_path, items, texts=False)
    write_csv(tmp_path / "t.csv", items)
    for name in ("t.parquet", "t.csv"):
        found = read(collection("table", tmp_path / name))
        assert_equal(found, items)
        assert found.scan.modalities == ("image", "text")
    write_parquet(tmp_path / "t.parquet", [Item("a", picture(1)), Item("b", picture(2), ("", ""))])
    assert read(collection("table", tmp_path / "t.parquet")).scan.modalities == ("image",)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "", "-20"], [1, None, -20]),
        (["1", "2.5", ""], [1.0, 2.5, None]),
        (["007", "1", ""], ["007", "1", None]),
        (["Drama", "", "1"], ["Drama", None, "1"]),
        (['["a", "b, c"]', "[]", ""], [["a", "b, c"], [], None]),
        (["[a]", "", "x"], ["[a]", None, "x"]),
    ],
)
def test_labels_of_a_csv_file(tmp_path: Path, cells: list[str], expected: list[Any]) -> None:
    rows = ['t,"{}"'.format(cell.replace('"', '""')) for cell in cells]
    path = text_file(tmp_path, "t.csv", "\n".join(["text,label", *rows]))
    found = scan_collection(collection("table", path))
    assert found.labels is not None
    assert found.labels() == expected
    assert [type(a) for a in found.labels()] == [type(b) for b in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 3]), [1, None, 3]),
        (pa.array([0.5, float("nan"), None]), [0.5, None, None]),
        (pa.array([["a"], [], None]), [["a"], [], None]),
        (pa.array([[1, 2], [3], None]), [["1", "2"], ["3"], None]),
        (pa.array(["x", "", None]), ["x", None, None]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array([True, False, None]), [1, 0, None]),
    ],
)
def test_labels_and_splits_of_a_parquet_file(
    tmp_path: Path, values: pa.Array, expected: list[Any]
) -> None:
    table = {"text": ["c", "a", "b"], "id": ["c", "a", "b"], "genres": values}
    table["split"] = ["train", None, "test"]
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    found = scan_collection(collection("table", path, labels="genres", order="id"))
    assert found.labels is not None
    assert found.splits is not None
    assert found.labels() == [expected[1], expected[2], expected[0]]
    assert found.splits() == [None, "test", "train"]
    without = scan_collection(collection("table", path))
    assert without.labels is None


# Errors ---------------------------------------------------------------------------------------

CSV: list[tuple[str, type[Exception], list[str]]] = [
    ("id,text\na,x\nb,y\na,z\n", InputError, ["'a' occurs twice", "row 0", "row 2"]),
    ("id,text\na,x\n,y\n", InputError, ["id of row 1 is empty"]),
    ('id,text\na,x\n"b\nc",y\n', InputError, ["id of row 1", "line breaks"]),
    ("id,text,image\na,x,\nb,,\nc,,\n", InputError, ["row 1 has neither", "1 more rows"]),
    ("id,text\na,x\nb,y,z\n", InputError, ["Expected 2 columns, got 3"]),
    ("id,text\n", InputError, ["no rows"]),
    ("", InputError, ["cannot be read", "Empty CSV"]),
    (
        "a,b\n1,2\n",
        ConfigError,
        ["image or text or caption", "a, b", 'image = "COLUMN"'],
    ),
    ("id,text,caption\na,x,y\n", ConfigError, ["text and caption", "[collection]"]),
    ("id,text,text\na,x,y\n", ConfigError, ["more than one column 'text'"]),
    ("id,image\na,https://x.org/1.jpg\n", ConfigError, ["row 0", "URL", "img2dataset"]),
    ("id,image\na,no.jpg\nb,none.png\n", InputError, ["none of the first paths", "no.jpg"]),
]


@pytest.mark.parametrize(("content", "error", "words"), CSV)
def test_errors_of_csv_files(
    tmp_path: Path, content: str, error: type[Exception], words: list[str]
) -> None:
    path = text_file(tmp_path, "t.csv", content)
    for _ in range(2):  # the cached form leads to the same error
        with pytest.raises(error) as raised:
            scan_collection(collection("table", path))
        assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"id,text\na,x\nb,\xff\xfe\n", ["row 1", "'text'", "UTF-8"]),
        ("t.csv", "id,text\na,x\n".encode("utf-16"), ["UTF-16"]),
        ("t.csv", b"id,text,\xff\na,x,y\n", ["UTF-8", "names of the columns"]),
        ("t.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', ["row 1", "UTF-8"]),
        ("t.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', ["row 1", "surrogate"]),
        ("t.jsonl", b'{"text": "x"}\n{"text": \n', ["Row 1", "not JSON"]),
        ("t.jsonl", b'{"text": "x"}\n[1]\n', ["Row 1", "[1]", "a JSON object"]),
        ("t.jsonl", b'{"text": "x"}\n{"text": 5}\n', ["Row 1", "5", "list of strings"]),
        ("t.jsonl", b'{"text": "x"}\n{"text": ["a", {}]}\n', ["Row 1", "list of strings"]),
        ("t.jsonl", b'{"image": {"bytes": "x"}, "id": true}\n', ["Row 0", "true", "integer"]),
        ("t.jsonl", b'{"image": {"bytes": "aGk="}}\n', ["Row 0", "'image'", "no bytes"]),
        ("t.jsonl", b'{"text": "x", "label": {"a": 1}}\n', ["Row 0", "'label'", "a number"]),
        ("t.parquet", b"PAR1 nothing", ["cannot be read", "Parquet"]),
        ("t.png", b"", ["no table", ".parquet"]),
    ],
)
def test_errors_of_other_files(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    path = text_file(tmp_path, name, content)
    with pytest.raises(InputError) as raised:
        scan_collection(collection("table", path))
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_named_column_that_is_missing_and_a_column_of_a_wrong_type(tmp_path: Path) -> None:
    table = {"id": ["a"], "text": [1.5], "plot": ["x"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"no column 'poster'; its columns: id, text, plot"):
        scan_collection(collection("table", tmp_path / "t.parquet", image="poster"))
    with pytest.raises(ConfigError, match=r"(?s)'text' .* type double.*strings or lists of str"):
        scan_collection(collection("table", tmp_path / "t.parquet"))
    assert read(collection("table", tmp_path / "t.parquet", text=("plot",))).texts == [("x",)]


def test_a_text_of_a_parquet_file_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"x", b"y", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 2"):
        scan_collection(collection("table", tmp_path / "t.parquet"))


def test_tables_that_differ_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["b"], "image": [b"x"]}), tmp_path / "2.parquet")
    with pytest.raises(ConfigError, match=r"2\.parquet has other columns"):
        scan_collection(collection("table", tmp_path / "*.parquet"))
    pq.write_table(pa.table({"text": [["b"]]}), tmp_path / "2.parquet")
    with pytest.raises(ConfigError, match=r"2\.parquet has columns of other types"):
        scan_collection(collection("table", tmp_path / "*.parquet"))
    with pytest.raises(InputError, match=r"There is no file .*3\.parquet"):
        scan_collection(collection("table", f"{tmp_path}/{{1..3}}.parquet"))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_parquet_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, ITEMS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match="cannot be read"):
        scan_collection(collection("table", path))


def test_a_damaged_page_of_a_parquet_file_is_an_error_and_never_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(path, ITEMS, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    place = data.index(ITEMS[3].image or b"?") + 30
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"(?i)crc"):
        scan_collection(collection("table", path))


# The cached form, and changes -----------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    write_parquet(path, ITEMS)
    return path


def test_the_table_is_turned_into_an_arrow_file_once(
    parquet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = scan_collection(collection("table", parquet))
    cache: Path = getattr(found.places, "cache")  # noqa: B009
    assert cache.parent == tmp_path / "cache/manyviews/tables"
    assert cache.stat().st_size > 6 * 1000
    written = cache.stat().st_mtime_ns
    assert_equal(read(collection("table", parquet)), ITEMS)
    assert cache.stat().st_mtime_ns == written
    # A changed table replaces it, a damaged copy is written again.
    write_parquet(parquet, ITEMS[1:])
    assert_equal(read(collection("table", parquet)), ITEMS[1:])
    (replaced,) = cache.parent.iterdir()
    assert replaced.name != cache.name
    replaced.write_bytes(replaced.read_bytes()[:1000])
    assert_equal(read(collection("table", parquet)), ITEMS[1:])


def test_only_the_columns_that_are_read_are_copied(tmp_path: Path) -> None:
    table = {"text": ["x"] * 100, "embedding": [os.urandom(10_000) for _ in range(100)]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = scan_collection(collection("table", tmp_path / "t.parquet"))
    assert getattr(found.places, "cache").stat().st_size < 20_000  # noqa: B009


def test_a_user_without_a_folder_for_caches(
    parquet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="Set XDG_CACHE_HOME"):
        scan_collection(collection("table", parquet))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/fdinfo")
    with pytest.raises(StorageError):
        scan_collection(collection("table", parquet))


def test_without_pyarrow_the_error_names_what_to_install(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'manyviews\[sources\]'"):
        scan_collection(collection("table", parquet))


def test_a_table_that_changes_after_the_scan_is_read_as_scanned(parquet: Path) -> None:
    found = scan_collection(collection("table", parquet))
    write_parquet(parquet, ITEMS[::-1])
    assert Inputs(found).image(found.samples[0]) == ITEMS[0].image


def test_a_cached_form_that_is_gone_or_changed_gives_no_other_rows(parquet: Path) -> None:
    found = scan_collection(collection("table", parquet))
    early = Inputs(found)
    cache: Path = getattr(found.places, "cache")  # noqa: B009
    shutil.move(cache, cache.with_suffix(".moved"))
    assert early.image(found.samples[5]) == ITEMS[5].image  # still mapped
    with pytest.raises(BadSampleError, match="missing"):
        Inputs(found).image(found.samples[0])
    with pytest.raises(StorageError, match="gone or have changed"):
        require_inputs(found)


CHANGES: list[Callable[[Path], None]] = [
    lambda path: write_parquet(path, ITEMS[::-1]),
    lambda path: os.utime(path, ns=(1, 1)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_table_has_other_stats(parquet: Path, change: Callable[[Path], None]) -> None:
    before = stat_inputs(scan_collection(collection("table", parquet)))
    assert (stat_inputs(scan_collection(collection("table", parquet))) == before).all()
    change(parquet)
    after = stat_inputs(scan_collection(collection("table", parquet)))
    assert (before[:, :2] != after[:, :2]).any(1).all()
    assert (before[:, 2:] != after[:, 2:]).any(1).all()


def test_an_image_that_changes_beside_its_table_has_other_stats(tmp_path: Path) -> None:
    write_files(tmp_path, ITEMS, texts=False)
    write_csv(tmp_path / "t.csv", ITEMS)
    found = scan_collection(collection("table", tmp_path / "t.csv"))
    before = stat_inputs(found)
    os.utime(tmp_path / "café.png", ns=(5, 5))
    assert (stat_inputs(found) != before).any(1).tolist() == [i.id == "café" for i in ITEMS]
    (tmp_path / "café.png").unlink()
    with pytest.raises(BadSampleError, match="missing"):
        Inputs(found).image(found.samples[3])
    require_inputs(found)  # the others are still there
