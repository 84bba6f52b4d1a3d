"""``verify`` checks samples without an input: zero rows, and moments without them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c

from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.verify.repair import repair
from featurestore.verify.store import verify
from tests.featurestore.stores import (
    StoreAndRows,
    commit,
    make_generic_store,
    make_records,
    make_store,
    tree,
    without,
)

LEDGER = "records/ledger.jsonl"
# The whole second chunk has no text; sample 9 has neither input.
ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
BAD = {3: [BadInput(3, "image", "truncated", "it ends")]}
DIGEST = "a" * 64
IMAGE, TEXT, WORDS = range(3)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("sound") / "store"
    return path, make_generic_store(path, ABSENT, bad=BAD)


@pytest.fixture
def copy(sound: StoreAndRows, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    shutil.copytree(sound[0], path)
    return path


def rewrite(path: Path, chunk: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a line of the ledger, with a checksum that fits."""
    lines = (path / LEDGER).read_bytes().splitlines()
    body = json.loads(lines[chunk])
    change(body)
    body.pop("crc32c")
    text = json.dumps(body)[:-1].encode()
    lines[chunk] = text + b', "crc32c": "%08x"}' % crc32c(text)
    (path / LEDGER).write_bytes(b"".join(line + b"\n" for line in lines))


def write_payload(path: Path, file: str, values: np.ndarray) -> None:
    """Replaces a chunk file, and its checksums in the file and in the ledger."""
    payload = values.tobytes()
    (path / file).write_bytes(payload + crc32c(payload).to_bytes(4, "little"))
    chunk = int(file.rpartition("/c.")[2].partition(".")[0])

    def change(body: dict[str, Any]) -> None:
        body["files"][file] = [len(payload) + 4, f"{crc32c(payload):08x}"]

    rewrite(path, chunk, change)


def problems(path: Path) -> list[str]:
    return [str(finding) for finding in verify(path).findings]


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_sound_store_with_absent_inputs_has_no_findings(tmp_path: Path, codec: str) -> None:
    make_generic_store(tmp_path / "store", ABSENT, bad=BAD, codec=codec)
    report = verify(tmp_path / "store")
    assert (report.findings, report.notices) == ([], [])


def sample(index: int, position: int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        body["samples"][index % 4][position] = value
        if value is None and position == TEXT:
            body["samples"][index % 4][WORDS] = 0

    return change


@pytest.mark.parametrize(
    ("index", "position", "value", "expected"),
    [
        (0, TEXT, None, "clip_text/c.0.0.0 (chunk 0): 4 rows of samples without text not zero"),
        (0, IMAGE, None, "clip_image/c.0.0.0 (chunk 0): 4 rows of samples without image not zero"),
        (1, TEXT, DIGEST, "records/moments/clip_text/c.0.0.0 (chunk 0): 128 of 128 dimensions"),
        (2, IMAGE, DIGEST, "records/moments/clip_image/c.0.0.0 (chunk 0): 64 of 64 dimensions"),
        (9, IMAGE, DIGEST, "records/moments/clip_image/c.2.0.0 (chunk 2): 64 of 64 dimensions"),
        (1, WORDS, 5, "sample 1 has 5 words and no text"),
        (3, IMAGE, None, "sample 3: its image is both absent and bad"),
    ],
)
def test_flipped_presence_is_found(
    copy: Path, index: int, position: int, value: object, expected: str
) -> None:
    rewrite(copy, index // 4, sample(index, position, value))
    found = problems(copy)
    assert any(expected in problem for problem in found), found


def test_a_text_in_a_chunk_without_texts_is_found(copy: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        body["samples"][0] = [body["samples"][0][0], DIGEST, 7]

    rewrite(copy, 1, change)
    expected = "every row is zero, and 1 of its samples have text"
    assert problems(copy) == [f"clip_text/c.1.0.0 (chunk 1): {expected}"]


def test_rows_of_a_sample_without_the_input_must_be_zeros(copy: Path, sound: StoreAndRows) -> None:
    rows = sound[1]["clip_text"][4:8].copy()
    rows[2, 1, 5] = 1e-30
    write_payload(copy, "clip_text/c.1.0.0", rows)
    found = problems(copy)
    assert found == ["clip_text/c.1.0.0 (chunk 1): 1 row of samples without text not zero"]


def test_moments_of_no_rows_must_be_zeros(copy: Path) -> None:
    values = np.zeros((1, 2, 128))
    values[0, 1, 3] = 1e-300
    write_payload(copy, "records/moments/clip_text/c.1.0.0", values)
    found = problems(copy)
    assert found == ["records/moments/clip_text/c.1.0.0 (chunk 1): moments of no rows are not zero"]


def test_moments_that_count_the_zeros_are_found(copy: Path, sound: StoreAndRows) -> None:
    rows = sound[1]["clip_text"][:4].reshape(-1, 128).astype(np.float64)
    values = np.stack([rows.mean(axis=0), rows.var(axis=0) * len(rows)])[None]
    write_payload(copy, "records/moments/clip_text/c.0.0.0", values)
    assert "128 of 128 dimensions do not fit the rows" in problems(copy)[0]


def test_mm_imdb_never_lacks_an_input(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    rewrite(tmp_path / "store", 0, sample(1, TEXT, None))
    assert any(
        "sample 1: its text's SHA-256 is None" in each for each in problems(tmp_path / "store")
    )


def test_images_that_were_looked_for_need_a_reason(tmp_path: Path) -> None:
    absent = {0: "image", 1: "image", 2: "image", 3: "image"}
    make_generic_store(tmp_path / "store", absent)
    assert problems(tmp_path / "store") == []
    rewrite(tmp_path / "store", 0, sample(1, IMAGE, ""))
    expected = "sample 1: its image was not read, and no reason is given"
    assert any(expected in each for each in problems(tmp_path / "store"))


@pytest.mark.parametrize(
    "modalities", [{"clip_image": "sound"}, {"resnet_image": "image"}, {"clip_image": None}]
)
def test_modalities_are_checked(copy: Path, modalities: dict[str, object]) -> None:
    document = json.loads((copy / "zarr.json").read_bytes())
    record = document["attributes"]["manyviews"]
    record["shape"]["modalities"] = modalities
    record.pop("crc32c")
    record["crc32c"] = f"{crc32c(json.dumps(record, sort_keys=True).encode()):08x}"
    (copy / "zarr.json").write_text(json.dumps(document))
    assert "zarr.json: its manyviews attributes: modalities" in problems(copy)[0]


def test_swapped_modalities_are_found(copy: Path) -> None:
    document = json.loads((copy / "zarr.json").read_bytes())
    record = document["attributes"]["manyviews"]
    record["shape"]["modalities"] = {"clip_image": "text", "clip_text": "image"}
    record.pop("crc32c")
    record["crc32c"] = f"{crc32c(json.dumps(record, sort_keys=True).encode()):08x}"
    (copy / "zarr.json").write_text(json.dumps(document))
    assert verify(copy).damaged_chunks == [0, 1]  # in the last chunk, sample 9 has neither


def test_a_repair_and_a_rebuild_restore_absent_inputs(copy: Path, sound: StoreAndRows) -> None:
    before = tree(copy)
    rewrite(copy, 1, sample(4, IMAGE, None))
    with (copy / "clip_text/c.2.0.0").open("r+b") as file:
        file.write(b"\1\2\3\4")
    assert repair(copy, verify(copy)) == [1, 2]
    assert sorted(verify(copy).committed) == [0]
    with StoreWriter(copy, take_lock(copy)) as writer:
        records = without(make_records(writer.spec, BAD), ABSENT)
        commit(writer, [2, 1], sound[1], records)
        writer.finish()
    assert verify(copy).findings == []
    assert tree(copy) == before
    assert FeatureStore(copy).absent == {"image": 2, "text": 6}
