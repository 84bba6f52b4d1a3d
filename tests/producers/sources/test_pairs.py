"""Pairing by formats, hostile names and file kinds, and reading with a cap."""

import errno
import hashlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.errors import BadSampleError, InputError, StorageError
from featurestore.records import Sample
from producers.sources import unused
from producers.sources.files import image_path, read_capped, text_path
from producers.sources.pairs import scan
from producers.sources.scan import Scan


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def stems(found: Scan) -> list[str]:
    return [sample.stem for sample in found.samples]


def test_pairs_are_sorted_by_code_point(tmp_path: Path) -> None:
    fill(
        tmp_path,
        *(
            f"{stem}{kind}"
            for stem in ("9", "10", "b", "B", "é", "🎬")
            for kind in (".jpg", ".json")
        ),
    )
    found = scan(tmp_path)
    assert stems(found) == ["10", "9", "B", "b", "é", "🎬"]
    assert found.samples[1] == Sample(1, "9", "9.jpg", "9.json")
    assert found.path == tmp_path
    assert (found.unmatched_images, found.unmatched_texts, found.left_out) == ((), (), ())
    assert found.stems_sha256 == hashlib.sha256("10\x009\0B\0b\0é\0🎬".encode()).hexdigest()
    assert image_path(tmp_path, found.samples[0]) == tmp_path / "10.jpg"
    assert text_path(tmp_path, found.samples[0]) == tmp_path / "10.json"


def test_suffix_precedence(tmp_path: Path) -> None:
    order = [".jpg", ".jpeg", ".JPG", ".JPEG"]
    fill(tmp_path, *(f"s{first}{suffix}" for first in range(4) for suffix in order[first:]))
    fill(tmp_path, *(f"s{first}{suffix}" for first in range(4) for suffix in (".JSON", ".json")))
    fill(tmp_path, "t.JPG", "t.JSON")
    found = scan(tmp_path)
    assert [sample.image_name for sample in found.samples] == [
        "s0.jpg",
        "s1.jpeg",
        "s2.JPG",
        "s3.JPEG",
        "t.JPG",
    ]
    assert [sample.text_name for sample in found.samples][3:] == ["s3.json", "t.JSON"]
    assert {reason for _, reason in found.left_out} == {"shadowed"}
    assert [name for name, _ in found.left_out][:4] == ["s0.JPEG", "s0.JPG", "s0.JSON", "s0.jpeg"]
    assert len(found.left_out) == 3 + 2 + 1 + 4


def test_unmatched_and_all_that_is_not_used_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.json", "b.jpeg", "c.jpg", "d.JSON", "A.json")
    fill(tmp_path, "e.Jpg", "e.png", "e.jpg.txt", "notes.txt", ".gitignore", "jpg", "json")
    (tmp_path / "sub").mkdir()
    fill(tmp_path / "sub", "x.jpg", "x.json")
    found = scan(tmp_path)
    assert stems(found) == ["a"]
    assert found.unmatched_images == ("b.jpeg", "c.jpg")
    assert found.unmatched_texts == ("A.json", "d.JSON")
    assert found.left_out == (
        (".gitignore", "dotfile"),
        ("e.Jpg", "suffix"),
        ("e.jpg.txt", "suffix"),
        ("e.png", "suffix"),
        ("jpg", "suffix"),
        ("json", "suffix"),
        ("notes.txt", "suffix"),
        ("sub", "directory"),
    )
    assert found.alike == ()


HOSTILE = [
    b"a\nb",
    b"a;rm -rf",
    b" ",
    b"%2e%2e",
    b"con",
    b"a..",
    b"a.jpg",
    b"zarr.json",
    b"-x",
    b"\xff\xfe",
    b"caf\xc3\xa9",
    b"cafe\xcc\x81",
    b"x" * 250,
]


def test_hostile_names_survive(tmp_path: Path) -> None:
    for stem in HOSTILE:
        for suffix in (b".jpg", b".json"):
            with open(os.path.join(os.fsencode(tmp_path), stem + suffix), "wb") as file:  # noqa: PTH118, PTH123
                file.write(stem)
    found = scan(tmp_path)
    assert sorted(os.fsencode(stem) for stem in stems(found)) == sorted(HOSTILE)
    assert stems(found) == sorted(stems(found))
    joined = b"\0".join(os.fsencode(stem) for stem in stems(found))
    assert found.stems_sha256 == hashlib.sha256(joined).hexdigest()
    for sample in found.samples:
        assert read_capped(image_path(tmp_path, sample), 1000) == os.fsencode(sample.stem)
        assert image_path(tmp_path, sample).parent == tmp_path


def test_dotfiles_are_left_out(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "a.jpg",
        "a.json",
        ".jpg",
        ".json",
        "..x.jpg",
        "..x.json",
        "...jpg",
        ".a.jpg",
        ".b",
    )
    found = scan(tmp_path)
    assert stems(found) == ["a"]
    names = sorted([".jpg", ".json", "..x.jpg", "..x.json", "...jpg", ".a.jpg", ".b"])
    assert found.left_out == tuple((name, "dotfile") for name in names)


def test_only_regular_files_count(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.json", "dir.json", "fifo.json", "socket.json")
    (tmp_path / "dir.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
        found = scan(tmp_path)  # opening the FIFO would block here forever
    assert stems(found) == ["a"]
    assert dict(found.left_out) == {
        "dir.jpg": "directory",
        "fifo.jpg": "not-a-file",
        "socket.jpg": "not-a-file",
    }
    assert found.unmatched_texts == ("dir.json", "fifo.json", "socket.json")


def test_an_unusable_file_does_not_shadow_a_usable_one(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpeg", "a.json")
    (tmp_path / "a.jpg").mkdir()
    found = scan(tmp_path)
    assert found.samples[0].image_name == "a.jpeg"
    assert found.left_out == (("a.jpg", "directory"),)


def test_symlinks_are_followed_only_inside_the_folder(tmp_path: Path) -> None:
    inside, evil = tmp_path / "x", tmp_path / "x_evil"  # a name prefix is not containment
    (inside / "sub").mkdir(parents=True)
    evil.mkdir()
    fill(evil, "secret.jpg")
    fill(inside, "real.jpg", "sub/deep.jpg", *(f"{i}.json" for i in ("in", "deep", "abs")))
    os.mkfifo(inside / "sub/pipe")
    links: dict[str, str | Path] = {
        "in.jpg": "real.jpg",
        "deep.jpg": "sub/deep.jpg",
        "abs.jpg": inside / "real.jpg",
        "evil.jpg": "../x_evil/secret.jpg",
        "zero.jpg": "/dev/zero",
        "gone.jpg": "nowhere",
        "loop.jpg": "loop.jpg",
        "ping.jpg": "pong.jpg",
        "pong.jpg": "ping.jpg",
        "through.jpg": "real.jpg/x",
        "folder.jpg": "sub",
        "pipe.jpg": "sub/pipe",
        "up.jpg": "..",
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    (tmp_path / "alias").symlink_to(inside)
    for data_dir in (inside, tmp_path / "alias"):
        found = scan(data_dir)
        assert stems(found) == ["abs", "deep", "in"]
        assert dict(found.left_out) == {
            "evil.jpg": "outside",
            "zero.jpg": "outside",
            "up.jpg": "outside",
            "gone.jpg": "dangling",
            "loop.jpg": "dangling",
            "ping.jpg": "dangling",
            "pong.jpg": "dangling",
            "through.jpg": "dangling",
            "folder.jpg": "directory",
            "pipe.jpg": "not-a-file",
            "sub": "directory",
        }


def test_hard_links_are_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.json", "b.json")
    (tmp_path / "b.jpg").hardlink_to(tmp_path / "a.jpg")
    assert stems(scan(tmp_path)) == ["a", "b"]


def test_order_of_the_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *(f"{i}{suffix}" for i in range(40) for suffix in (".jpg", ".JPEG", ".json")))
    expected = scan(tmp_path)
    real = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(os, "scandir", Reversed)
    assert scan(tmp_path) == expected


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        scan(tmp_path / "none")
    fill(tmp_path, "file")
    with pytest.raises(InputError, match="is not a folder"):
        scan(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot be read"):
        scan(tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            scan(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_no_pair_says_what_was_seen(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "c.json", ".d.json")
    with pytest.raises(InputError) as caught:
        scan(tmp_path)
    message = str(caught.value)
    assert "2 images and 1 texts seen, 1 entries left out" in message
    assert "0000001.jpg beside 0000001.json" in message
    assert len(message.splitlines()) <= 4


def message_of(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        scan(folder)
    assert len(str(caught.value).splitlines()) <= 4
    return str(caught.value)


def test_no_pair_names_the_suffix_that_posters_have(tmp_path: Path) -> None:
    """The format is detected from the bytes, but only certain suffixes are used."""
    fill(tmp_path, *(f"{i}.png" for i in range(40)), *(f"{i}.json" for i in range(40)), "x.txt")
    message = message_of(tmp_path)
    assert "0 images and 40 texts seen, 41 entries left out" in message
    assert "41 files with another suffix (.png 40, .txt 1), such as '0.png'" in message
    assert "Rename posters such as '0.png' to .jpg" in message


def test_no_pair_names_the_subfolder_that_holds_them(tmp_path: Path) -> None:
    for name in ("a", "train", "z"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "a", "x.jpg", "y.jpg")
    fill(tmp_path / "train", "x.jpg", "x.json")
    message = message_of(tmp_path)
    assert "3 subfolders, such as 'a'" in message
    assert f"Subfolders are not entered: name {tmp_path / 'train'} instead." in message


def test_no_pair_of_links_that_lead_nowhere(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").symlink_to(f"../.git/annex/objects/{i}")
        (tmp_path / f"{i}.json").symlink_to(f"../.git/annex/objects/{i}t")
    message = message_of(tmp_path)
    assert "6 links to missing files, such as" in message
    assert "git annex get" in message


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_stems_that_look_the_same_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.json", f"{COMPOSED}.jpg", f"{DECOMPOSED}.json")
    fill(tmp_path, "Poster.jpg", "poster.json", f"Ü-{DECOMPOSED}.jpg", f"ü-{COMPOSED}.json")
    fill(tmp_path, "b.jpg", "c.json", "ALONE.jpg", "Alone.jpg", "alone.json")
    found = scan(tmp_path)
    assert stems(found) == ["a"]
    assert set(found.alike) == {
        (f"{COMPOSED}.jpg", f"{DECOMPOSED}.json", "Unicode form"),
        ("Poster.jpg", "poster.json", "case"),
        (f"Ü-{DECOMPOSED}.jpg", f"ü-{COMPOSED}.json", "case"),
        ("ALONE.jpg", "alone.json", "case"),
    }
    assert len(found.unmatched_images) == 6  # they are unmatched all the same


def test_names_that_are_not_utf8_look_like_nothing_else(tmp_path: Path) -> None:
    for name in (b"a\xff.jpg", b"a\xff.json", b"b\xff.jpg", b"b\xfe.json"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert scan(tmp_path).alike == ()


def test_no_pair_of_two_unicode_forms_says_so(tmp_path: Path) -> None:
    """As when a Mac's archive is unpacked beside another's files."""
    fill(tmp_path, f"{COMPOSED}.jpg", f"{DECOMPOSED}.json")
    message = message_of(tmp_path)
    assert "differ only in Unicode form: rename one" in message
    assert f"{COMPOSED}.jpg" in message


def reason(path: Path, cap: int = 10) -> str:
    with pytest.raises(BadSampleError) as caught:
        read_capped(path, cap)
    return caught.value.reason


def test_read_capped(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    assert read_capped(tmp_path / "f", 10) == b"0123456789"
    assert reason(tmp_path / "f", 9) == "too-large"
    assert reason(tmp_path / "none") == "missing"
    assert reason(tmp_path) == "not-a-file"
    assert reason(tmp_path / "f" / "g") == "unreadable"
    (tmp_path / "loop").symlink_to("loop")
    assert reason(tmp_path / "loop") == "unreadable"


def test_read_capped_never_blocks_on_what_replaced_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert reason(tmp_path / "fifo") == "not-a-file"
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert reason(tmp_path / "zero") == "not-a-file"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        assert reason(tmp_path / "socket") == "not-a-file"


def test_read_capped_reads_files_of_many_blocks_and_no_more_than_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * 2**20 + 17)
    (tmp_path / "f").write_bytes(data)
    assert read_capped(tmp_path / "f", len(data)) == data
    counted: list[int] = []
    real = os.read

    def counting(fd: int, n: int) -> bytes:
        counted.append(n)
        return real(fd, n)

    monkeypatch.setattr(os, "read", counting)
    assert reason(tmp_path / "f", 1000) == "too-large"
    assert counted == []
    # A file that grows between its size and its bytes being asked, as /proc's do always.
    assert reason(Path("/proc/self/status"), 100) == "too-large"
    assert sum(counted) <= 101


def test_read_capped_closes_what_it_opened(tmp_path: Path) -> None:
    fill(tmp_path, "f")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        read_capped(tmp_path / "f", 1)
        reason(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_read_capped_does_not_blame_a_file_for_what_the_machine_lacks(tmp_path: Path) -> None:
    """Otherwise the sample would get a placeholder, and the build would continue."""
    (tmp_path / "f").write_bytes(b"sound")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(StorageError, match="Too many open files") as caught:
            read_capped(tmp_path / "f", 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.path == tmp_path / "f"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_exhausted_machine_is_no_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Otherwise every input would fail, and the store would be full of placeholders."""

    def exhausted(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(StorageError, match=os.strerror(number)):
        read_capped(tmp_path / "a", 10)


def test_what_was_left_out_is_said_in_one_line() -> None:
    one = unused.counted_reasons([("notes.txt", "suffix")])
    assert one == "1 file with another suffix: 'notes.txt'"
    more = unused.counted_reasons([("a", "directory"), ("b", "directory"), ("c.txt", "suffix")])
    assert more == "1 file with another suffix: 'c.txt'; 2 subfolders, such as 'a'"
