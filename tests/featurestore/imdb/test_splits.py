import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import InputError
from featurestore.imdb.splits import read_split

STEMS = ["0000010", "0000110", "0012345", "1234567", "9999999"]


def write(folder: Path, document: object) -> Path:
    path = folder / "split.json"
    path.write_text(json.dumps(document))
    return path


def read(
    folder: Path, stems: list[str] = STEMS, /, **parts: object
) -> tuple[list[int], list[int], list[int]]:
    split = read_split(write(folder, {"train": [], "dev": [], "test": []} | parts), stems)
    return split.train.tolist(), split.val.tolist(), split.test.tolist()


def test_indices_are_sorted_unique_int64(tmp_path: Path) -> None:
    parts = {"train": ["1234567", "0000010", "1234567"], "dev": ["9999999"], "test": ["0012345"]}
    split = read_split(write(tmp_path, parts), STEMS)
    assert split.train.tolist() == [0, 3]
    assert split.val.tolist() == [4]
    assert split.test.tolist() == [2]
    assert {a.dtype for a in (split.train, split.val, split.test)} == {np.dtype(np.int64)}


def test_integers_and_short_strings_are_zero_padded(tmp_path: Path) -> None:
    assert read(tmp_path, train=[10, "110"], test=[12345]) == ([0, 1], [], [2])


def test_a_string_that_is_a_stem_means_that_stem(tmp_path: Path) -> None:
    stems = ["0010", "10"]
    assert read(tmp_path, stems, train=["10"], test=["0010"]) == ([1], [], [0])
    assert read(tmp_path, stems, train=[10]) == ([0], [], [])


def test_val_replaces_dev_and_dev_takes_precedence(tmp_path: Path) -> None:
    only_val = {"train": [], "val": ["9999999"], "test": []}
    assert read_split(write(tmp_path, only_val), STEMS).val.tolist() == [4]
    assert read(tmp_path, val=["9999999"], dev=["1234567"])[1] == [3]


def test_stems_that_are_not_utf8(tmp_path: Path) -> None:
    stems = ["caf\udce9", "東京"]
    assert read(tmp_path, stems, train=stems[:1], test=stems[1:]) == ([0], [], [1])


def test_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"train": ["0000010"], "dev": [], "test": []}')
    assert read_split(path, STEMS).train.tolist() == [0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 99_999), min_size=3, max_size=40), st.data())
def test_any_partition_is_read_back(tmp_path: Path, numbers: set[int], data: st.DataObject) -> None:
    stems = sorted(f"{n:05d}" for n in numbers)
    part_of = [data.draw(st.integers(0, 3)) for _ in stems]
    spellings: list[Callable[[str], object]] = [str, int, lambda stem: stem.lstrip("0")]
    spell = data.draw(st.sampled_from(spellings))
    named = [[s for s, p in zip(stems, part_of, strict=True) if p == part] for part in range(4)]
    shuffled = [data.draw(st.permutations(stems_of)) for stems_of in named[:3]]
    train, dev, test = ([spell(stem) for stem in part] for part in shuffled)
    expected = tuple([stems.index(stem) for stem in stems_of] for stems_of in named[:3])
    assert read(tmp_path, stems, train=train, dev=dev, test=test) == expected


@pytest.mark.parametrize("entry", ["7654321", 7, -10, "", 10.0, True, None, ["0000010"], {"a": 1}])
def test_unknown_entries_are_an_error(tmp_path: Path, entry: object) -> None:
    with pytest.raises(InputError, match="1 of 2 entries of test name no sample"):
        read(tmp_path, test=["0000010", entry])


def test_a_truth_value_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 1 entries"):
        read(tmp_path, ["0001", "True"], train=[True])


def test_at_most_five_unknown_stems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, train=[f"x{i}" for i in range(7)])
    message = str(caught.value)
    assert "7 of 7" in message
    assert [f"'x{i}'" in message for i in range(7)] == [True] * 5 + [False] * 2


def test_hostile_entries_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, train=["\x1b[2J\n" + "x" * 10**6])
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("pair", [("train", "dev"), ("train", "test"), ("dev", "test")])
def test_overlap_is_an_error_however_it_is_spelt(tmp_path: Path, pair: tuple[str, str]) -> None:
    first, second = pair
    with pytest.raises(InputError, match=r"1 sample is both in .*'0000010'"):
        read(tmp_path, **{first: ["0000010", "0000110"], second: [10]})


@pytest.mark.parametrize("missing", ["train", "dev", "test"])
def test_missing_part(tmp_path: Path, missing: str) -> None:
    parts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    del parts[missing]
    with pytest.raises(InputError, match=f"no key {missing}"):
        read_split(write(tmp_path, parts), STEMS)


@pytest.mark.parametrize("value", [None, "0000010", {"0000010": 1}, 10])
def test_a_part_must_be_a_list(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="train must be a list"):
        read(tmp_path, train=value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"train": [', "not valid JSON"),
        (b'{"train": ["\xff"]}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "found a list"),
        (b"null", "found a NoneType"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_split(path, STEMS)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Could not read .*split\.json: No such file"):
        read_split(tmp_path / "split.json", STEMS)
    with pytest.raises(InputError, match="Could not read"):
        read_split(tmp_path, STEMS)


def test_full_size_takes_linear_time(tmp_path: Path) -> None:
    # 26,000 stems against lists of 26,000: a search through a list would take minutes.
    stems = [f"{n:07d}" for n in range(25_959)]
    train, val, test = read(tmp_path, stems, train=stems[:15_552], dev=stems[15_552:18_160])
    assert (len(train), len(val), len(test)) == (15_552, 2_608, 0)
