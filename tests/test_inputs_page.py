"""``docs/inputs.md`` compared with the input files and the output of ``--json``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from consumers.config_file import read_toml
from featurestore.errors import InputError
from featurestore.imdb.genres import _KEYS, CLASS_NAMES
from featurestore.imdb.splits import read_split
from manyviews import main
from producers import decode
from producers.sources import collection, files, pairs, recognize, unused
from producers.sources.collection import CollectionConfig
from producers.sources.ids import require_ids
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "inputs.md").read_text("utf-8")
PREFIX = "mm_imdb1_globals_aug70"
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "number": (int, float),
    "string": (str,),
    "bool": (bool,),
    "list": (list,),
    "object": (dict,),
    "null": (type(None),),
}
COMMANDS = (
    *("build", "check", "status", "verify", "labels", "probe", "views", "materialize", "report"),
)


def section(title: str) -> str:
    [text] = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


@cache
def documented(command: str) -> Mapping[str, str]:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([a-z ]+) \|", section(f"`{command} --json`"), re.MULTILINE
    )
    assert len(dict(rows)) == len(rows) > 0
    return dict(rows)


def found_in(
    value: object, rows: Mapping[str, str], path: str = ""
) -> Iterator[tuple[str, object]]:
    """Yields path and value of everything that a row can describe."""
    if isinstance(value, dict) and (not path or any(r.startswith(f"{path}.") for r in rows)):
        for key, inner in value.items():
            yield from found_in(inner, rows, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(row.startswith(f"{path}[].") for row in rows):
        for inner in value:
            yield from found_in(inner, rows, f"{path}[]")
    else:
        yield path, value


@pytest.fixture(scope="module")
def printed(
    demo_data: Path,
    demo_store: Path,
    checkpoints: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The JSON output of each command for a small data set."""
    folder = tmp_path_factory.mktemp("printed")
    data, split = demo_data / "dataset", demo_data / "split.json"
    store = shutil.copytree(demo_store, folder / "store")
    same = [x for name, place in checkpoints.items() for x in ("--model", f"{name}={place}")]
    two = ("--features", "clip_image,clip_text", "--devices", "cpu,cpu", "--producers", 1, *same)
    two = (*two, "--data-dir", data, "--views", 4)
    out, labels = folder / "out", folder / "labels"
    asked: dict[str, tuple[object, ...]] = {
        "build": ("--data-dir", data, "--store", store, "--resume", "--worker", "0/1", *same),
        "check": (*two, "--store", folder / "none", "--split-json", split),
        "status": ("--store", store),
        "materialize": ("--store", store, "--out-dir", out),
        "labels": ("--data-dir", data, "--out-dir", labels, "--augment", "--embeddings-dir", out),
        "verify": ("--store", store, "--verify-inputs", "--data-dir", data, "--materialized", out),
        "probe": ("--store", store, "--labels-dir", labels, "--split-json", split),
        "views": ("--data-dir", data, "--stem", "0107922", "--views", 8),
        "report": ("--store", store, "--out", folder / "page.html"),
    }
    found: dict[str, Any] = {"labels_dir": labels, "out": out}
    lines: list[str] = []

    def echo(text: str = "", err: bool = False, **_: Any) -> None:
        if not err:
            lines.append(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.echo", echo)
        for command, arguments in asked.items():
            lines.clear()
            with pytest.raises(SystemExit) as ended:
                main.main([command, *map(str, arguments), "--json"])
            assert ended.value.code in (0, 3), (command, lines)
            [line] = lines
            found[command] = json.loads(line)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_in_the_page_with_its_type(command: str, printed: dict[str, Any]) -> None:
    rows = documented(command)
    found = list(found_in(printed[command], rows))
    # A group that the page describes as a whole is one object.
    assert {path for path, _ in found} == set(rows)
    for path, value in found:
        kinds = [kind for name in rows[path].split(" or ") for kind in TYPES[name]]
        assert type(value) in kinds, (path, value)


def test_the_page_has_every_command_with_json() -> None:
    headed = set(re.findall(r"^### `(\w+) --json`$", PAGE, re.MULTILINE))
    assert headed == set(COMMANDS)
    takes = {
        name
        for name, command in main.cli.commands.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert takes - headed <= {"export"}, "described on its own page"


def test_the_folder() -> None:
    text = section("The folder")
    assert ", ".join(f"`{suffix}`" for suffix in pairs.IMAGE_SUFFIXES) in text
    assert ", ".join(f"`{suffix}`" for suffix in pairs.TEXT_SUFFIXES) in text
    for cap in (files.MAX_IMAGE_BYTES, files.MAX_TEXT_BYTES):
        assert f"{cap >> 20} MiB" in text
    assert f"{decode.MAX_PIXELS:,}" in text
    assert f"{decode.MAX_SIDE:,}" in text
    others = {"unlisted"}  # of image folders with metadata
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    assert listed == set(unused.REASONS) - others
    assert all(f"`{reason}`" in PAGE for reason in others)


def test_the_kinds_of_collections(tmp_path: Path) -> None:
    kinds = re.findall(r"^\| `([a-z-]+)` \|", section("Collections"), re.MULTILINE)
    assert sorted(kinds) == sorted(collection.KINDS)
    for suffix in recognize.TABLE_SUFFIXES:
        assert f"`{suffix}`" in section("Collections")
    text = section("The table [collection]")
    keys = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert keys == [field.name for field in fields(CollectionConfig)]
    [example] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "manyviews.toml").write_text(example)
    read = read_toml(tmp_path / "manyviews.toml")["collection"]
    assert (read.path, read.text) == (str(tmp_path / "posters.parquet"), ("plot", "tagline"))
    rules = re.findall(r"`clean_text` is `(\w+)` by default,\s`(\w+)` .*? or `(\w+)`", PAGE)
    assert sorted(rules[0]) == sorted(get_args(collection.CleanText))


@pytest.mark.parametrize(
    ("character", "is_allowed"), [("/", True), ("é", True), ("\n", False), ("\ud800", False)]
)
def test_the_characters_of_ids(character: str, is_allowed: bool) -> None:
    try:
        require_ids([f"a{character}b"], str)
    except InputError:
        assert not is_allowed
    else:
        assert is_allowed


def test_a_synopsis_and_genres() -> None:
    text = section("A synopsis")
    assert ", ".join(f"`{key}`" for key in _KEYS) in text
    [example] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    decoded = decode.text(example.encode())
    assert decoded.reason is None
    assert decoded.text == "A robot learns to laugh. Nobody else does."
    [said] = re.findall(r"reason: (.*?)detail:", decode.DecodedText.__doc__ or "", re.DOTALL)
    reasons = re.findall(r"``([a-z0-9-]+)``", said)
    assert len(reasons) == 8
    assert all(f"`{word}`" in text for word in (*reasons, *files.UNREADABLE))
    assert ", ".join(CLASS_NAMES) in " ".join(section("Genres").split())


def test_the_split(tmp_path: Path) -> None:
    [example] = re.findall(r"```json\n(.*?)```", section("split.json"), re.DOTALL)
    (tmp_path / "split.json").write_text(example)
    split = read_split(tmp_path / "split.json", ["0100003", "0107922", "0108101", "0109830"])
    assert [part.tolist() for part in (split.train, split.val, split.test)] == [[1, 2], [0], [3]]


def test_the_label_files(printed: dict[str, Any]) -> None:
    text = section("What `labels` writes")
    names = [
        name.replace("P_", f"{PREFIX}_", 1)
        for name in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    ]
    labels, out = printed["labels_dir"], printed["out"]
    written = {p.name for p in labels.iterdir()} | {p.name for p in out.glob("*_labels*")}
    assert set(names) == written
    base, noisy = np.load(labels / names[0]), np.load(out / names[4])
    assert (base.dtype, base.shape) == (np.float32, (48, 23))
    assert (noisy.dtype, noisy.shape) == (np.float32, (48 * 4, 23))
    np.testing.assert_array_equal(noisy[::4], base)
    assert set(np.unique(base)) == {0.0, 1.0}
    assert len((labels / names[1]).read_bytes().split(b"\n")) == 48
    assert json.loads((labels / names[2]).read_bytes()) == list(CLASS_NAMES)
    for name, first, count in (
        (labels / names[3], "`sha256`", 3),
        (out / names[5], "`total_rows`", 8),
    ):
        keys = re.findall(r"`([a-z_0-9]+)`", text[text.index(first) :].partition("|")[0])
        assert len(keys) == count
        assert set(keys) <= set(json.loads(name.read_bytes()))
