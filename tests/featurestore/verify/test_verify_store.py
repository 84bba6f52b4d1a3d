"""``verify`` finds every kind of damage, names file and chunk, and never raises."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c

from featurestore.errors import CorruptStoreError
from featurestore.records import BadInput
from featurestore.storage import writer as stores
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from tests.conftest import NIGHTLY
from tests.featurestore.stores import StoreAndRows, commit, make_records, make_store, remake, tree

LEDGER = "records/ledger.jsonl"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("sound") / "store"
    rows = make_store(path, bad={5: [BadInput(5, "image", "truncated", "it ends")]})
    return path, rows


@pytest.fixture
def copy(sound: StoreAndRows, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    shutil.copytree(sound[0], path)
    return path


def make_again(path: Path, rows: dict[str, np.ndarray], chunks: list[int]) -> None:
    with StoreWriter(path, stores.take_lock(path)) as writer:
        assert writer.ledger.missing == chunks
        bad = {5: [BadInput(5, "image", "truncated", "it ends")]}
        commit(writer, chunks, rows, make_records(writer.spec, bad))
        writer.finish()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_sound_store_has_no_findings(sound: StoreAndRows) -> None:
    report = verify(sound[0])
    assert (report.findings, report.notices) == ([], [])
    assert (report.chunks, sorted(report.committed), report.files) == (3, [0, 1, 2], 12)


def test_an_incomplete_store_is_not_damaged(tmp_path: Path) -> None:
    make_store(tmp_path / "store", chunks=[0, 2])
    report = verify(tmp_path / "store")
    assert report.findings == []
    assert report.notices == ["1 of 3 chunks to be built"]


def committed_files(path: Path) -> list[Path]:
    return [p for p in sorted(path.rglob("*")) if p.is_file() and "runs" not in p.parts]


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [remove, cut, flip_middle])
def test_every_file_is_guarded(
    sound: StoreAndRows, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    names = [p.relative_to(sound[0]).as_posix() for p in committed_files(sound[0])]
    assert len(names) == 3 + 2 + 2 * 2 + 12  # groups, records, array documents, chunks
    for name in names:
        path = tmp_path / name.replace("/", "-")
        shutil.copytree(sound[0], path)
        damage(path / name)
        report = verify(path)
        if damage is flip_middle and name.endswith("zarr.json"):
            continue  # white space has no meaning there; the next test alters each field
        if damage is cut and name == LEDGER:
            # Looks like a killed build: the lost chunks must be rebuilt.
            assert report.notices[:2] == [
                "the ledger ends in a torn line, which a build removes",
                "2 of 3 chunks to be built",
            ]
            continue
        assert any(f.file == name for f in report.findings), name


ARRAY_FIELDS = {
    "zarr_format": 2,
    "node_type": "group",
    "shape": [11, 4, 63],
    "data_type": "float64",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 4, 64]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0.0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}],
}


@pytest.mark.parametrize("field", ARRAY_FIELDS)
def test_each_field_of_an_array_is_checked(copy: Path, field: str) -> None:
    file = "clip_image/zarr.json"
    document = json.loads((copy / file).read_bytes())
    assert document[field] != ARRAY_FIELDS[field]
    (copy / file).write_text(json.dumps(document | {field: ARRAY_FIELDS[field]}))
    [finding] = verify(copy).findings
    assert finding.file == file
    assert finding.problem.startswith(f"{field} is ")


def test_each_byte_of_a_ledger_line_counts(sound: StoreAndRows, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(sound[0], path)
    whole = (path / LEDGER).read_bytes()
    first = whole.index(b"\n")
    step = 1 if NIGHTLY else 3
    for at in [*range(0, first, step), first - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x01
        (path / LEDGER).write_bytes(damaged)
        report = verify(path)
        assert [f.file for f in report.findings] == [LEDGER], at
        assert "line 1" in report.findings[0].problem
        assert sorted(report.committed) == [1, 2]


def sign(line: str) -> bytes:
    """The changed line with a matching checksum."""
    body = json.loads(line)
    body.pop("crc32c")
    text = json.dumps(body)[:-1].encode()
    return text + b', "crc32c": "%08x"}' % crc32c(text)


def rewrite_line(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    lines = (path / LEDGER).read_bytes().splitlines()
    body = json.loads(lines[number])
    change(body)
    lines[number] = sign(json.dumps(body))
    (path / LEDGER).write_bytes(b"\n".join(lines) + b"\n")


def test_a_ledger_line_whose_checksum_fits_can_still_be_wrong(copy: Path) -> None:
    rewrite_line(copy, 0, lambda body: body["samples"].pop())
    rewrite_line(copy, 1, lambda body: body["files"].update({"x": [1, "00000000"]}))
    rewrite_line(copy, 2, lambda body: body.update(chunk=7))
    problems = [str(f) for f in verify(copy).findings]
    assert any("chunk 0" in p and "3 samples, expected 4" in p for p in problems)
    assert any("chunk 1" in p and "other files" in p for p in problems)
    assert any("line 3 names chunk 7 of 3" in p for p in problems)


def test_a_chunk_named_twice_is_found(copy: Path) -> None:
    first = (copy / LEDGER).read_bytes().splitlines()[0]
    with (copy / LEDGER).open("ab") as file:
        file.write(first + b"\n")
    assert [f.problem for f in verify(copy).findings] == ["line 4 names chunk 0 again"]


def overwrite_chunk(
    path: Path, name: str, chunk: int, change: Callable[[np.ndarray], object]
) -> None:
    """Replaces rows and all their checksums, so that only the moments differ."""
    file = f"{name}/c.{chunk}.0.0"
    rows = np.frombuffer((path / file).read_bytes()[:-4], "<f4").copy()
    change(rows)
    crc = crc32c(rows.tobytes())
    (path / file).write_bytes(rows.tobytes() + crc.to_bytes(4, "little"))
    size = (path / file).stat().st_size
    rewrite_line(path, chunk, lambda body: body["files"].update({file: [size, f"{crc:08x}"]}))


def test_rows_that_do_not_fit_their_moments_are_found(copy: Path) -> None:
    overwrite_chunk(copy, "clip_image", 1, lambda rows: rows.__setitem__(3, rows[3] + 1))
    [finding] = verify(copy).findings
    assert (finding.file, finding.chunk) == ("records/moments/clip_image/c.1.0.0", 1)
    assert "1 of 64 dimensions" in finding.problem


def test_rows_that_are_not_finite_and_rows_behind_the_end_are_found(copy: Path) -> None:
    overwrite_chunk(copy, "clip_image", 0, lambda rows: rows.__setitem__(3, np.nan))
    overwrite_chunk(copy, "clip_text", 2, lambda rows: rows.__setitem__(-1, 0.0))
    findings = [(f.file, f.chunk, f.problem) for f in verify(copy).findings]
    assert ("clip_image/c.0.0.0", 0, "rows that are not finite were committed") in findings
    assert ("clip_text/c.2.0.0", 2, "there are rows after the last sample") in findings


def test_leftovers_are_noticed_and_no_damage(copy: Path) -> None:
    (copy / "clip_image" / "c.0.0.0.partial").write_bytes(b"half")
    (copy / ".DS_Store").write_bytes(b"x")
    with (copy / LEDGER).open("ab") as file:
        file.write(b'{"chunk": 0, "fil')
    report = verify(copy)
    assert report.findings == []
    assert any("torn line" in n for n in report.notices)
    assert sum("was not committed" in n for n in report.notices) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "ledger"])
def test_repair_drops_what_is_damaged_and_only_that(
    sound: StoreAndRows, copy: Path, damage: str
) -> None:
    golden = tree(sound[0])
    target = copy / "clip_text" / "c.1.0.0"
    if damage == "flip":
        flip(target, 100)
    elif damage == "cut":
        target.write_bytes(b"")
    elif damage == "remove":
        target.unlink()
    else:
        lines = (copy / LEDGER).read_bytes().splitlines()
        lines[1] = lines[1][:40] + b"#" + lines[1][41:]
        (copy / LEDGER).write_bytes(b"\n".join(lines) + b"\n")
    lock = stores.take_lock(copy)
    try:
        assert repair(copy, verify(copy)) == [1]
    finally:
        lock.release()
    assert verify(copy).findings == []
    assert FeatureStore(copy).ledger.missing == [1]
    make_again(copy, sound[1], [1])
    assert verify(copy).findings == []
    assert tree(copy) == golden


def test_what_cannot_be_repaired_says_so_and_changes_nothing(copy: Path) -> None:
    flip(copy / "records" / "samples.jsonl", 3)
    flip(copy / "clip_image" / "c.0.0.0", 3)
    before = tree(copy)
    with pytest.raises(CorruptStoreError, match=r"(?s)samples\.jsonl.*cannot be repaired"):
        repair(copy, verify(copy))
    assert tree(copy) == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda b: b["samples"][1].__setitem__(1, "ab"), "sample 5: its text's SHA-256 is 'ab'"),
        (lambda b: b["samples"][1].__setitem__(2, -1), "sample 5 has -1 words"),
        (lambda b: b["samples"][2].__setitem__(0, ""), "sample 6: its image was not read, and no"),
        (lambda b: b["samples"][3].__setitem__(1, ""), "sample 7: its text was not read, and no"),
        (lambda b: b["bad"][0].__setitem__(0, 3), "a bad input [3, 'image', 'truncated']"),
        (lambda b: b["bad"][0].__setitem__(1, "sound"), "a bad input [5, 'sound', 'truncated']"),
        (lambda b: b["bad"][0].__setitem__(2, ""), "a bad input [5, 'image', '']"),
        (lambda b: b["bad"].append(b["bad"][0]), "an input is listed twice"),
    ],
)
def test_every_sample_was_read_or_has_a_reason(
    copy: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    rewrite_line(copy, 1, change)
    [finding] = verify(copy).findings
    assert (finding.file, finding.chunk) == (LEDGER, 1)
    assert problem in finding.problem


@pytest.mark.parametrize("key", ["samples", "bad", "files", "chunk"])
@pytest.mark.parametrize("value", [None, 3, [3], {"x": 3}, "x"])
def test_a_line_of_another_form_is_a_finding(copy: Path, key: str, value: object) -> None:
    rewrite_line(copy, 1, lambda body: body.update({key: value}))
    assert {f.file for f in verify(copy).findings} == {LEDGER}
    rewrite_line(copy, 2, lambda body: body.pop(key))
    assert any("line 3" in f.problem for f in verify(copy).findings)


def test_posters_that_were_not_read_need_no_reason(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(path)
    for number in range(3):
        rewrite_line(path, number, lambda b: [sample.__setitem__(0, "") for sample in b["samples"]])
    assert verify(path).findings == []


# Extensions -------------------------------------------------------------------------------------


@pytest.fixture
def extended(sound: StoreAndRows, copy: Path) -> tuple[Path, Path]:
    """The store with an unfinished extension: another feature, one of three chunks."""
    folder = copy / "records" / "extension"
    make_store(folder, dims={"blip2_text": 128}, chunks=[0])
    report = verify(copy)
    assert report.findings == []
    assert report.extension is not None
    assert sorted(report.extension.committed) == [0]
    return copy, folder


def test_a_damaged_extension_is_named_and_repaired(
    sound: StoreAndRows, extended: tuple[Path, Path]
) -> None:
    path, folder = extended
    flip(folder / "blip2_text" / "c.0.0.0", 100)
    report = verify(path)
    [finding] = report.findings
    assert finding.file == "records/extension/blip2_text/c.0.0.0"
    assert report.damaged_chunks == []
    lock = stores.take_lock(path)
    assert repair(path, report) == []
    lock.release()
    assert verify(path).findings == []
    assert FeatureStore(folder).ledger.missing == [0, 1, 2]
    assert FeatureStore(path).complete
    shutil.rmtree(folder)
    assert tree(path) == tree(sound[0])


def test_an_irreparable_extension_is_dropped(
    sound: StoreAndRows, extended: tuple[Path, Path]
) -> None:
    path, folder = extended
    flip(folder / "records" / "samples.jsonl", 3)
    report = verify(path)
    assert [f.file for f in report.findings] == ["records/extension/records/samples.jsonl"]
    lock = stores.take_lock(path)
    assert repair(path, report) == []
    lock.release()
    assert not folder.exists()
    assert tree(path) == tree(sound[0])


def test_an_unfinished_merge_is_not_reported_as_loss(extended: tuple[Path, Path]) -> None:
    path, folder = extended
    (folder / "final").mkdir()
    (path / "zarr.json").rename(folder / "final" / "zarr.json")
    before = tree(path)
    report = verify(path)
    assert [(f.file, f.chunk) for f in report.findings] == [("zarr.json", None)]
    assert "build --resume finishes it" in report.findings[0].problem
    with pytest.raises(CorruptStoreError, match=r"Nothing is lost: .build --resume. finishes it"):
        repair(path, report)
    assert tree(path) == before


def test_a_store_that_is_replaced_meanwhile_is_checked_again(copy: Path, tmp_path: Path) -> None:
    """As in the merge of an extension: the check sees chunks of two stores."""
    other, looks = tmp_path / "other", []
    make_store(other, seed=3, dims={"clip_image": 64, "clip_text": 128, "blip2_text": 64})

    def replace(done: int, _total: int) -> None:
        looks.append(done)
        if len(looks) == 2:
            shutil.rmtree(copy)
            shutil.copytree(other, copy)

    report = verify(copy, progress=replace)
    assert looks == [1, 2, 3, 1, 2, 3]
    assert (report.findings, report.notices) == ([], [])
    assert report.files == 3 * 2 * 3


def test_chunks_rebuilt_meanwhile_are_no_damage(tmp_path: Path) -> None:
    rows, looks = make_store(tmp_path / "s"), []

    def replace(done: int, _total: int) -> None:
        looks.append(done)
        if len(looks) == 1:
            remake(tmp_path / "s", 2, {name: values + 1 for name, values in rows.items()})

    report = verify(tmp_path / "s", progress=replace)
    assert looks == [1, 2, 3, 1, 2, 3]
    assert report.findings == []


def test_a_growing_store_with_damage_is_checked_once(tmp_path: Path) -> None:
    rows, looks = make_store(tmp_path / "s", chunks=[0, 1]), []
    flip(tmp_path / "s/clip_text/c.0.0.0", 100)

    def grow(done: int, _total: int) -> None:
        looks.append(done)
        if len(looks) == 1:
            with StoreWriter(tmp_path / "s", stores.take_lock(tmp_path / "s")) as writer:
                commit(writer, [2], rows, make_records(writer.spec))

    report = verify(tmp_path / "s", progress=grow)
    assert looks == [1, 2]
    assert [f.file for f in report.findings] == ["clip_text/c.0.0.0"]
