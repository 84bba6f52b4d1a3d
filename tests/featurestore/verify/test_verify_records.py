"""``verify`` on stores whose chunks are committed by records, before and while they are sealed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import featurestore.verify.files as reading
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from manyviews import main
from tests.featurestore import kills
from tests.featurestore.kills import killed_at
from tests.featurestore.stores import commit, make_records, make_store, record, tree

pytestmark = pytest.mark.usefixtures("unsynced")

LEDGER = "records/ledger.jsonl"
COMMITS = "records/commits"
SEALS = "every chunk is committed, 4 of 6 by records: `build --resume` seals the store"


def name(chunk: int) -> str:
    return f"{COMMITS}/{chunk:08d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """The sealed store of six chunks, the same with chunks 0 and 3 as lines only, and the rows."""
    root = tmp_path_factory.mktemp("records")
    rows = make_store(root / "sealed", samples=22)
    make_store(root / "unsealed", samples=22, chunks=[3, 0])
    record(root / "unsealed", [5, 1, 2, 4], rows)
    return root / "sealed", root / "unsealed", rows


@pytest.fixture
def copy(made: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "store"))


@pytest.fixture
def sealed(made: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "store"))


def seal(path: Path) -> None:
    with StoreWriter(path, take_lock(path)) as writer:
        writer.finish()


def repaired(path: Path) -> list[int]:
    lock = take_lock(path)
    try:
        return repair(path, verify(path))
    finally:
        lock.release()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_complete_store_that_is_not_sealed_is_sound(copy: Path) -> None:
    report = verify(copy)
    assert (report.findings, report.notices) == ([], [SEALS])
    assert sorted(report.committed) == list(range(6))
    assert report.files == 6 * 4
    assert (report.missing, report.damaged_chunks) == ([], [])


def test_an_incomplete_store_with_records_is_not_damaged(copy: Path) -> None:
    (copy / name(2)).unlink()
    report = verify(copy)
    assert report.findings == []
    assert report.missing == [2]
    assert "1 of 6 chunks to be built" in report.notices


def test_each_byte_of_a_record_counts(copy: Path) -> None:
    file = copy / name(1)
    whole = file.read_bytes()
    for at in [*range(0, len(whole), 7), len(whole) - 1]:
        flip(file, at)
        assert [(f.file, f.chunk) for f in verify(copy).findings] == [(name(1), 1)], at
        file.write_bytes(whole)
    for data in (b"", whole[:-1], whole + b"\n"):
        file.write_bytes(data)
        [finding] = verify(copy).findings
        assert str(finding) == f"{name(1)} (chunk 1): it is not what was committed"


@pytest.mark.parametrize(
    "damage", ["remove", "cut", "flip"], ids=["a file is gone", "a file is cut", "a flipped bit"]
)
def test_the_files_of_a_record_are_checked(copy: Path, damage: str) -> None:
    file = copy / "clip_text/c.4.0.0"
    if damage == "flip":
        flip(file, 99)
    else:
        file.unlink()
        if damage == "cut":
            file.write_bytes(b"short")
    assert [(f.file, f.chunk) for f in verify(copy).findings] == [("clip_text/c.4.0.0", 4)]


def test_a_record_of_another_chunk_than_its_name(copy: Path) -> None:
    (copy / name(2)).write_bytes((copy / name(1)).read_bytes())
    [finding] = verify(copy).findings
    assert str(finding) == f"{name(2)} (chunk 2): it names chunk 1"


def test_a_record_of_a_chunk_that_the_store_does_not_have(copy: Path) -> None:
    (copy / name(6)).write_bytes((copy / name(1)).read_bytes())
    [finding] = verify(copy).findings
    assert str(finding) == f"{name(6)}: it is the record of chunk 6 of 6"
    assert repaired(copy) == []
    assert verify(copy).findings == []


@pytest.mark.parametrize(
    "stray", ["000000002", "2", "00000002.host-7-0123abcd.partial", "00000002.partial", "x"]
)
def test_other_files_beside_the_records_are_strays(copy: Path, stray: str) -> None:
    (copy / COMMITS / stray).write_bytes(b"x")
    report = verify(copy)
    assert report.findings == []
    expected = f"{COMMITS}/{stray} was not committed and is never read"
    assert report.notices == [SEALS, expected]
    assert FeatureStore(copy).complete  # readers agree that it decides nothing


def test_a_late_record_repeats_a_line(sealed: Path) -> None:
    (sealed / COMMITS).mkdir()
    (sealed / name(3)).write_bytes((sealed / LEDGER).read_bytes().splitlines()[3])
    report = verify(sealed)
    assert report.findings == []
    assert report.notices == ["1 record repeats a line of the ledger; the next build removes it"]
    assert report.files == 6 * 4


@pytest.mark.parametrize("kind", ["other bytes", "damaged"])
def test_a_late_record_with_other_bytes_is_a_finding(
    made: tuple[Path, Path, dict[str, np.ndarray]], sealed: Path, kind: str
) -> None:
    line = (sealed / LEDGER).read_bytes().splitlines()[3]
    (sealed / COMMITS).mkdir()
    (sealed / name(3)).write_bytes(line[:-20] if kind == "damaged" else line[:-4] + b'0"}')
    report = verify(sealed)
    [finding] = report.findings
    assert (finding.file, finding.chunk) == (name(3), None)  # the chunk is that of the ledger
    assert finding.problem == "it differs from the ledger's line of chunk 3, which is valid"
    assert repaired(sealed) == []
    assert tree(sealed) == tree(made[0])


# Repair -----------------------------------------------------------------------------------------


def damage_record(path: Path) -> None:
    flip(path / name(1), 30)


def damage_file(path: Path) -> None:
    flip(path / "clip_image/c.1.0.0", 30)


def damage_line(path: Path) -> None:
    flip(path / LEDGER, 30)


def damage_all(path: Path) -> None:
    damage_record(path)
    damage_line(path)
    flip(path / "clip_image/c.4.0.0", 30)
    flip(path / "clip_image/c.0.0.0", 30)
    (path / name(17)).write_bytes((path / name(2)).read_bytes())


DAMAGES: dict[Callable[[Path], None], list[int]] = {
    damage_record: [1],
    damage_file: [1],
    damage_line: [3],
    damage_all: [0, 1, 3, 4],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_repair_drops_exactly_the_damaged_chunks(
    made: tuple[Path, Path, dict[str, np.ndarray]], copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy)
    assert repaired(copy) == DAMAGES[damage]
    assert verify(copy).findings == []
    assert FeatureStore(copy).ledger.missing == DAMAGES[damage]
    record(copy, DAMAGES[damage], made[2])
    seal(copy)
    assert tree(copy) == tree(made[0])


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(each, marks=pytest.mark.nightly) for each in list(DAMAGES)[:-1]),
        damage_all,
    ],
)
def test_a_repair_is_killed_at_every_operation(
    made: tuple[Path, Path, dict[str, np.ndarray]],
    copy: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    damage(copy)
    at, was_killed = 0, True
    while was_killed:
        at += 1
        path = Path(shutil.copytree(copy, tmp_path / f"at {at}"))
        was_killed = killed_at(at, kills.repair_store, path)
        # Only damage may be lost; what is damaged is not committed again.
        report = verify(path)
        assert set(range(6)) - set(DAMAGES[damage]) <= set(report.committed), at
        if report.findings:
            repaired(path)
        assert verify(path).findings == [], at
        assert FeatureStore(path).ledger.missing == DAMAGES[damage], at
        with StoreWriter(path, take_lock(path)) as writer:
            commit(writer, DAMAGES[damage], made[2], make_records(writer.spec))
            writer.finish()
        assert tree(path) == tree(made[0]), at
        shutil.rmtree(path)
    assert at > 4


def test_a_damaged_line_is_not_replaced_by_a_late_record(
    made: tuple[Path, Path, dict[str, np.ndarray]], sealed: Path
) -> None:
    """The record of a chunk that was built again later may be older than its line."""
    lines = (sealed / LEDGER).read_bytes().splitlines()
    (sealed / COMMITS).mkdir()
    (sealed / name(3)).write_bytes(lines[3])
    flip(sealed / "clip_text/c.3.0.0", 40)
    assert repaired(sealed) == [3]
    assert FeatureStore(sealed).ledger.missing == [3]


def test_records_of_an_extension_are_checked_and_repaired(
    made: tuple[Path, Path, dict[str, np.ndarray]], sealed: Path
) -> None:
    folder = sealed / "records/extension"
    rows = make_store(folder, dims={"blip2_text": 128}, samples=22, chunks=[])
    record(folder, [4, 2], rows)
    report = verify(sealed)
    assert report.findings == []
    assert report.extension is not None
    assert sorted(report.extension.committed) == [2, 4]
    flip(folder / name(2), 50)
    assert [f.file for f in verify(sealed).findings] == [f"records/extension/{name(2)}"]
    assert repaired(sealed) == []
    assert FeatureStore(folder).ledger.committed == [4]
    shutil.rmtree(folder)
    assert tree(sealed) == tree(made[0])


def test_a_repair_is_refused_while_workers_run(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = take_lock(copy, worker=True, shared=True)
    assert main.run_command(["verify", "--store", str(copy), "--repair"]) == 1
    assert f"process {os.getpid()} on {os.uname().nodename}" in capfd.readouterr().err
    assert main.run_command(["verify", "--store", str(copy)]) == 0
    worker.release()


# While others write -----------------------------------------------------------------------------


def test_a_seal_at_any_moment_of_a_check_is_no_damage(
    made: tuple[Path, Path, dict[str, np.ndarray]],
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is sealed before the first, the second, ... access of the check to a file."""
    read, names = reading.StoreFiles.read_if_present, reading.StoreFiles.names
    count, at = 0, 0

    def step(path: Path) -> None:
        nonlocal count
        count += 1
        if count == at:
            seal(path)

    def late_read(files: reading.StoreFiles, file: str) -> bytes | None:
        step(files.root)
        return read(files, file)

    def late_names(files: reading.StoreFiles, folder: str) -> list[str]:
        step(files.root)
        return names(files, folder)

    monkeypatch.setattr(reading.StoreFiles, "read_if_present", late_read)
    monkeypatch.setattr(reading.StoreFiles, "names", late_names)
    while count >= at:
        at, count = at + 1, 0
        path = Path(shutil.copytree(copy, tmp_path / f"at {at}"))
        report = verify(path)
        assert report.findings == [], at
        assert sorted(report.committed) == list(range(6)), at
        assert not any("was not committed" in notice for notice in report.notices), at
        shutil.rmtree(path)
    assert at > 20


def test_a_record_that_appears_during_a_check_is_no_stray(
    made: tuple[Path, Path, dict[str, np.ndarray]], copy: Path
) -> None:
    late = (copy / name(2)).read_bytes()
    (copy / name(2)).unlink()

    def appear(*_: int) -> None:
        (copy / name(2)).write_bytes(late)

    report = verify(copy, progress=appear)
    assert report.findings == []
    assert not any(COMMITS in notice for notice in report.notices)


def test_chunks_recorded_again_meanwhile_are_no_damage(
    made: tuple[Path, Path, dict[str, np.ndarray]], copy: Path
) -> None:
    """Inputs changed: the chunk is dropped, and a worker commits it with other rows."""
    looks: list[int] = []

    def remake(done: int, _total: int) -> None:
        looks.append(done)
        if len(looks) == 1:
            with StoreWriter(copy, take_lock(copy)) as writer:
                writer.ledger.drop([5])
            record(copy, [5], {key: values + 1 for key, values in made[2].items()})

    report = verify(copy, progress=remake)
    assert report.findings == []
    assert looks == [1, 2, 3, 4, 5, 6] * 2


def test_damage_in_a_store_that_workers_write_is_found_once(
    made: tuple[Path, Path, dict[str, np.ndarray]], copy: Path
) -> None:
    late, looks = (copy / name(2)).read_bytes(), []
    (copy / name(2)).unlink()
    flip(copy / "clip_text/c.1.0.0", 100)

    def grow(done: int, _total: int) -> None:
        looks.append(done)
        (copy / name(2)).write_bytes(late)

    report = verify(copy, progress=grow)
    assert looks == [1, 2, 3, 4, 5]
    assert [f.file for f in report.findings] == ["clip_text/c.1.0.0"]
