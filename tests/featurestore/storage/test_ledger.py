import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import CorruptStoreError
from featurestore.records import BadInput, Modality, SampleRecord
from featurestore.storage.entries import ChunkEntry, format_entry, parse_entry
from featurestore.storage.files import LocalFiles
from featurestore.storage.ledger import Ledger

CHUNKS, ROWS = 4, 2

# Every string that decoding a file name may give: undecodable bytes are low surrogates.
strings = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    ),
    max_size=20,
)


def entry(chunk: int, detail: str = "", changed: dict[str, str] | None = None) -> ChunkEntry:
    first = chunk * ROWS
    bad = (BadInput(first + 1, "image", "truncated", detail),)
    return ChunkEntry(
        chunk,
        {f"clip_image/c.{chunk}.0.0": (4100, 0xF3A99C1), f"m/c.{chunk}": (1028, chunk)},
        [SampleRecord(first, "a" * 64, "", 3), SampleRecord(first + 1, "", "b" * 64, 0, bad)],
        changed or {},
    )


def write(root: Path, data: bytes) -> Path:
    path = root / Ledger.FILE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def lines(*chunks: int) -> bytes:
    return b"".join(format_entry(entry(c)) + b"\n" for c in chunks)


def read(root: Path) -> Ledger:
    return Ledger(LocalFiles(root), CHUNKS, ROWS)


@given(
    details=st.lists(strings, min_size=3, max_size=3),
    hashes=st.lists(st.sampled_from(["", "0" * 64, "f" * 64]), min_size=6, max_size=6),
    words=st.lists(st.integers(0, 10**9), min_size=3, max_size=3),
    files=st.dictionaries(
        strings, st.tuples(st.integers(0, 2**40), st.integers(0, 2**32 - 1)), max_size=4
    ),
    changed=st.dictionaries(strings, strings, max_size=2),
    chunk=st.integers(0, 10**6),
)
def test_an_entry_is_read_back(
    details: list[str],
    hashes: list[str],
    words: list[int],
    files: dict[str, tuple[int, int]],
    changed: dict[str, str],
    chunk: int,
) -> None:
    first = chunk * 3
    modalities: tuple[Modality, ...] = ("image", "text")
    samples = [
        SampleRecord(
            first + i,
            hashes[2 * i],
            hashes[2 * i + 1],
            words[i],
            tuple(BadInput(first + i, m, "reason", details[i]) for m in modalities[:i]),
        )
        for i in range(3)
    ]
    entry = ChunkEntry(chunk, files, samples, changed)
    line = format_entry(entry)
    assert b"\n" not in line
    assert line.isascii()
    assert parse_entry(line, 3) == entry
    assert json.loads(line)["chunk"] == chunk


def test_the_line_is_the_documented_one() -> None:
    line = format_entry(entry(1, "caf\udce9"))
    body = json.loads(line)
    assert list(body) == ["chunk", "files", "samples", "bad", "crc32c"]
    assert body["files"]["clip_image/c.1.0.0"] == [4100, "0f3a99c1"]
    assert body["samples"] == [["a" * 64, "", 3], ["", "b" * 64, 0]]
    assert body["bad"] == [[3, "image", "truncated", "caf\udce9"]]
    assert list(json.loads(format_entry(entry(1, changed={"a": "1 -> 2"}))))[-2] == "changed"


def test_a_ledger_grows_and_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    ledger = read(tmp_path)
    assert (len(ledger), ledger.complete, ledger.missing) == (0, False, [0, 1, 2, 3])
    for chunk in (2, 0, 3):
        ledger.commit(entry(chunk))
    assert path.read_bytes() == lines(2, 0, 3)
    for opened in (ledger, read(tmp_path)):
        assert [e.chunk for e in opened.entries] == [0, 2, 3]
        assert opened.missing == [1]
        assert 2 in opened
        assert 1 not in opened
        assert opened[3] == entry(3)
        assert not opened.complete
    ledger.commit(entry(1))
    assert ledger.complete
    assert read(tmp_path).complete


def test_sort_writes_only_where_the_order_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, lines(2, 0, 3, 1))
    read(tmp_path).seal()
    assert path.read_bytes() == lines(0, 1, 2, 3)
    inode = path.stat().st_ino
    read(tmp_path).seal()
    assert path.stat().st_ino == inode


def test_sort_after_commits_out_of_order(tmp_path: Path) -> None:
    path = write(tmp_path, lines(1))
    ledger = read(tmp_path)
    ledger.commit(entry(0))
    ledger.seal()
    ledger.commit(entry(3))
    ledger.commit(entry(2))
    ledger.seal()
    assert path.read_bytes() == lines(0, 1, 2, 3)


def test_what_is_committed_is_read_back_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, lines(1))
    ledger = read(tmp_path)
    for chunk in (3, 0):
        ledger.commit(entry(chunk))
    assert ledger[3] == entry(3)
    assert ledger[0].bad == list(entry(0).bad)
    ledger.seal()
    ledger.commit(entry(2))
    assert [ledger[c] for c in range(CHUNKS)] == [entry(c) for c in range(CHUNKS)]
    assert pickle.loads(pickle.dumps(ledger))[2] == entry(2)
    assert path.read_bytes() == lines(0, 1, 3, 2)


def test_damage_to_a_committed_line_is_not_written_again_as_sound(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    ledger = read(tmp_path)
    for chunk in (1, 0):
        ledger.commit(entry(chunk))
    damaged = path.read_bytes().replace(b"aaaa", b"aaab", 1)
    path.write_bytes(damaged)
    with pytest.raises(CorruptStoreError, match="line 1: its checksum does not match"):
        ledger.seal()
    assert path.read_bytes() == damaged


def test_a_last_line_torn_at_any_length_is_dropped(tmp_path: Path) -> None:
    whole = lines(0, 1)
    last = lines(3)
    for length in range(1, len(last)):
        path = write(tmp_path, whole + last[:length])
        ledger = read(tmp_path)
        assert ledger.torn_bytes == length
        assert [e.chunk for e in ledger.entries] == [0, 1]
        assert path.read_bytes() == whole + last[:length]  # reading never writes
        assert ledger.recover() == length
        assert ledger.recover() == 0
        assert path.read_bytes() == whole
    ledger.commit(entry(3))
    assert path.read_bytes() == lines(0, 1, 3)


@pytest.mark.parametrize("behind", [b"\x0b", b" ", b"\0", b"\x8a", b"\x0b{", b"\0" * 9])
def test_more_than_a_whole_line_is_no_torn_one(tmp_path: Path, behind: bytes) -> None:
    """A torn append ends within its line, so here the line feed was damaged."""
    write(tmp_path, lines(0, 1) + lines(2)[:-1] + behind)
    with pytest.raises(CorruptStoreError, match="line 3 is whole, but no line feed ends it"):
        read(tmp_path)


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80])
def test_a_flipped_byte_is_damage_at_every_offset(tmp_path: Path, flip: int) -> None:
    data = bytearray(lines(0, 1, 2))
    start, stop = len(lines(0)), len(lines(0, 1))
    for offset in range(start, stop):
        data[offset] ^= flip
        write(tmp_path, bytes(data))
        with pytest.raises(CorruptStoreError, match="line 2") as caught:
            read(tmp_path)
        assert caught.value.file == "records/ledger.jsonl"
        data[offset] ^= flip


def test_a_flipped_byte_of_the_last_line_never_gives_another_entry(tmp_path: Path) -> None:
    data = bytearray(lines(0, 1))
    for offset in range(len(lines(0)), len(data)):
        for bit in (1, 4, 64):
            data[offset] ^= bit
            write(tmp_path, bytes(data))
            with pytest.raises(CorruptStoreError, match=r"line 2"):
                read(tmp_path)
            data[offset] ^= bit


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1, 2",
        b'{"chunk": 1e999, "x": 1}',
        b'{"chunk": null, "x": 1}',
        b"[" * 100_000 + b",",
        b"\xff\xfe,",
        b'{"chunk": 1, "crc32c": "00000000"}',
    ],
)
def test_a_bad_line_is_damage(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, lines(0) + line + b"\n" + lines(2))
    with pytest.raises(CorruptStoreError, match="line 2"):
        read(tmp_path)


def test_duplicates_and_chunks_out_of_range(tmp_path: Path) -> None:
    write(tmp_path, lines(0, 1, 0))
    with pytest.raises(CorruptStoreError, match="line 3 names chunk 0 again"):
        read(tmp_path)
    for chunk in (CHUNKS, -1):
        write(tmp_path, lines(0, chunk))
        with pytest.raises(CorruptStoreError, match=f"line 2 names chunk {chunk} of 4"):
            read(tmp_path)


def test_a_missing_ledger_is_damage(tmp_path: Path) -> None:
    with pytest.raises(CorruptStoreError, match="missing"):
        read(tmp_path)
