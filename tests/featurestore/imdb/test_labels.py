import errno
import hashlib
import itertools
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ConfigError, InputError, StorageFullError, StoreLockedError
from featurestore.imdb.label_files import load_labels, verify_labels
from featurestore.imdb.labels import (
    CLASS_NAMES,
    augmented_labels,
    genres_vector,
    read_ids,
    read_labels,
    write_augmented_labels,
    write_labels,
)
from featurestore.imdb.labels_manifest import verify_augmented
from featurestore.records import Salt, view_seed
from featurestore.storage.digests import read_record
from featurestore.system import durable
from tests.featurestore.kills import killed_at

P = "mm_imdb1_globals_aug70"
# Copied from the published list, not from the code.
NAMES = """
    Action Adventure Animation Biography Comedy Crime Documentary Drama Family Fantasy Film-Noir
    History Horror Music Musical Mystery Romance Sci-Fi Short Sport Thriller War Western
""".split()  # noqa: SIM905 - as the published page has it
STEMS = ["0000001", "0000002", "0000003"]
DOCUMENTS = [{"genres": ["Drama", "War"]}, {"genres": ["Comedy"]}, {"genres": ["Sci-Fi", "Drama"]}]


def named(document: object) -> list[str]:
    row, _ = genres_vector(document)
    assert row.shape == (23,)
    assert row.dtype == np.float32
    assert set(row.tolist()) <= {0.0, 1.0}
    return [NAMES[i] for i in np.flatnonzero(row)]


def numpy_noise(labels: np.ndarray, views: int, base: int) -> np.ndarray:
    """The published rule, implemented independently of the code: float32 [N * V, 23]."""
    rows = []
    for i, label in enumerate(labels):
        rows.append(label)
        for v in range(1, views):
            digest = hashlib.sha256(f"{base}:{i}:{v}:labels".encode()).hexdigest()
            rng = np.random.default_rng(int(digest[:8], 16))
            noise = rng.normal(0, 0.1, 23).astype(np.float32)
            noise = np.minimum(np.maximum(noise, np.float32(-0.2)), np.float32(0.2))
            rows.append(np.minimum(np.maximum(label + noise, np.float32(0)), np.float32(1)))
    return np.array(rows, np.float32)


@pytest.mark.parametrize(
    ("index", "view", "salt", "seed"),
    [
        (0, 1, "image", 4239926553),
        (0, 1, "text", 2199293484),
        (0, 1, "labels", 3883996548),
        (7, 69, "image", 2414661109),
        (25958, 69, "text", 486677006),
    ],
)
def test_seeds_are_the_published_ones(index: int, view: int, salt: Salt, seed: int) -> None:
    assert view_seed(123, index, view, salt) == seed


def test_class_names_are_the_published_ones() -> None:
    assert list(CLASS_NAMES) == NAMES


@pytest.mark.parametrize("key", ["genres", "Genres", "genre", "labels"])
def test_each_published_key_is_read(key: str) -> None:
    assert named({"plot": "", key: ["Horror"]}) == ["Horror"]


def test_the_first_key_that_is_a_list_wins() -> None:
    assert named({"labels": ["War"], "genre": ["Music"], "Genres": ["Crime"]}) == ["Crime"]
    assert named({"genres": "Drama", "Genres": None, "genre": ["War"]}) == ["War"]
    assert named({"genres": [], "labels": ["War"]}) == []


@pytest.mark.parametrize("spelling", ["Sci-Fi", " sci-fi\n", "SCIENCE FICTION", "Sci Fi", "sci fi"])
def test_spellings_of_science_fiction(spelling: str) -> None:
    assert named({"genres": [spelling]}) == ["Sci-Fi"]


@given(st.sets(st.sampled_from(NAMES)), st.data())
def test_any_set_of_genres_in_any_order_and_case(genres: set[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(sorted(genres)))
    changes: list[Callable[[str], str]] = [str, str.lower, str.upper, lambda s: f"\t{s} "]
    change = data.draw(st.sampled_from(changes))
    row, unknown = genres_vector({"genres": [change(g) for g in order] * 2})
    assert {NAMES[i] for i in np.flatnonzero(row)} == genres
    assert unknown == []


def test_unknown_genres_are_returned_and_ignored() -> None:
    row, unknown = genres_vector({"genres": ["Reality-TV ", "Drama", "drama-ish", "reality-tv"]})
    assert [NAMES[i] for i in np.flatnonzero(row)] == ["Drama"]
    assert unknown == ["reality-tv", "drama-ish", "reality-tv"]


def test_unknown_genres_are_safe_to_print() -> None:
    _, unknown = genres_vector({"genres": ["\x1b[2J", "\ud800", 3, None, ["Drama"], "x" * 10**6]})
    assert unknown == ["\\x1b[2j", "\\ud800", "(int)", "(NoneType)", "(list)", "x" * 80]


@pytest.mark.parametrize(
    "document", [None, [], ["Drama"], "Drama", 3, {}, {"genres": {"Drama": 1}}]
)
def test_documents_without_genres(document: object) -> None:
    assert named(document) == []


@pytest.mark.parametrize("base", [123, 7])
def test_noise_is_numpys_own(base: int) -> None:
    labels = np.stack([genres_vector(d)[0] for d in DOCUMENTS])
    blocks = list(augmented_labels(labels, 70, base))
    assert {(b.shape, b.dtype) for b in blocks} == {((70, 23), np.dtype(np.float32))}
    assert np.concatenate(blocks).tobytes() == numpy_noise(labels, 70, base).tobytes()


def test_noise_known_answer() -> None:
    # Computed once with NumPy: seed 3883996548, sample 0, view 1, a zero row and a one row.
    noise = np.random.default_rng(3883996548).normal(0, 0.1, 23).astype(np.float32).clip(-0.2, 0.2)
    zero, one = (next(augmented_labels(np.full((1, 23), x, np.float32), 2)) for x in (0, 1))
    assert np.array_equal(zero[1], np.where(noise > 0, noise, 0))
    assert np.array_equal(one[1], np.where(noise < 0, np.float32(1) + noise, 1))
    assert np.array_equal(zero[0], np.zeros(23))
    assert np.array_equal(one[0], np.ones(23))


def test_view_zero_is_exact_even_outside_the_unit_interval() -> None:
    labels = np.full((1, 23), 1.5, np.float32)
    (block,) = augmented_labels(labels, 3)
    assert np.array_equal(block[0], labels[0])
    assert block[1:].max() <= 1


def test_files_are_the_published_bytes(tmp_path: Path) -> None:
    write_labels(STEMS, DOCUMENTS, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    expected = np.zeros((3, 23), np.float32)
    for row, genres in enumerate(d["genres"] for d in DOCUMENTS):
        expected[row, [NAMES.index(g) for g in genres]] = 1
    np.save(tmp_path / "expected.npy", expected)
    assert (folder / "labels_all_23.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert (folder / "ids_all.txt").read_bytes() == b"0000001\n0000002\n0000003"
    assert (folder / "class_names_23.json").read_bytes() == json.dumps(NAMES, indent=2).encode()
    assert sorted(p.name for p in folder.iterdir()) == [
        "class_names_23.json",
        "ids_all.txt",
        "labels_all_23.digests.json",
        "labels_all_23.npy",
    ]
    assert json.loads((folder / "labels_all_23.digests.json").read_bytes())["sha256"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("class_names_23.json", "labels_all_23.npy", "ids_all.txt")
    }


def test_report(tmp_path: Path) -> None:
    stems = ["a", "b", "c", "d", "e"]
    documents = [
        {"genres": ["Adult", "Drama", "News"]},
        {"genres": ["news"]},
        None,
        ["Drama"],
        {"plot": "no genres at all"},
    ]
    report = write_labels(stems, iter(documents), tmp_path)
    assert report.samples == 5
    assert report.unknown_genres == (("news", 2), ("adult", 1))
    assert report.without_genre == ("b", "e")
    assert report.unreadable == ("c", "d")
    assert np.load(tmp_path / "labels_all_23.npy").sum(1).tolist() == [1, 0, 0, 0, 0]


def test_a_data_set_without_a_known_genre_is_refused(tmp_path: Path) -> None:
    """Every label would be zero, which only a failed training would reveal."""
    documents = [{"genres": ["News", "Adult"]}, {"genre": "Drama"}, None, {"Genres": ["news"]}]
    with pytest.raises(InputError) as caught:
        write_labels(["a", "b", "c", "d"], documents, tmp_path / "out")
    message = str(caught.value)
    assert "None of 4 synopses names one of the 23 genres" in message
    assert "'news' x 2, 'adult' x 1; 1 cannot be read" in message
    assert '"genres": ["Drama", "War"]' in message
    assert len(message.splitlines()) <= 4
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no genres at all"):
        write_labels(["a"], [{}], tmp_path / "out")
    assert write_labels(["a", "b"], [{}, {"genres": ["War"]}], tmp_path / "out").samples == 2


@pytest.mark.parametrize("stem", ["two\nlines", "two\rlines", "\n"])
def test_a_stem_with_a_line_break_is_refused_by_name(tmp_path: Path, stem: str) -> None:
    with pytest.raises(InputError) as caught:
        write_labels(["a", stem], [{}, {}], tmp_path / "out")
    assert repr(stem) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_samples_and_a_wrong_number_of_documents(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        write_labels([], [], tmp_path)
    with pytest.raises(ValueError, match="zip"):
        write_labels(["a", "b"], [{"genres": ["War"]}], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_stems_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    stems = [b"caf\xe9".decode("utf-8", "surrogateescape"), "東京", "a\u2028b"]
    write_labels(stems, DOCUMENTS, tmp_path)
    assert (tmp_path / "ids_all.txt").read_bytes() == b"caf\xe9\n" + "東京\na\u2028b".encode()
    assert read_ids(tmp_path) == stems
    assert read_labels(tmp_path, stems).shape == (3, 23)


def test_one_final_line_feed_is_forgiven_and_white_space_belongs_to_the_stem(
    tmp_path: Path,
) -> None:
    (tmp_path / "ids_all.txt").write_bytes(b" a\nb \n")
    assert read_ids(tmp_path) == [" a", "b "]


@pytest.fixture
def labels_dir(tmp_path: Path) -> Path:
    write_labels(STEMS, DOCUMENTS, tmp_path / "labels")
    return tmp_path / "labels"


def test_read_back(labels_dir: Path) -> None:
    labels = read_labels(labels_dir, STEMS)
    assert labels.dtype == np.float32
    assert [named(d) for d in DOCUMENTS] == [
        [NAMES[i] for i in np.flatnonzero(row)] for row in labels
    ]
    labels[0, 0] = 1  # a copy, not a view of the file


@pytest.mark.parametrize(
    ("stems", "message"),
    [
        (["0000001", "0000009", "0000003"], "row 1 is '0000002', expected '0000009'"),
        (STEMS[::-1], "row 0 is '0000001', expected '0000003'"),
        (STEMS[:2], "lists 3 samples, expected 2"),
        ([*STEMS, "0000004"], "lists 3 samples, expected 4"),
    ],
)
def test_labels_of_other_samples_are_refused(
    labels_dir: Path, stems: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_labels(labels_dir, stems)
    # Only links can explain labels that lack samples of the store.
    assert ("--follow-links" in str(caught.value)) == (len(stems) > len(STEMS))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 23), np.float32), r"\(2, 23\), expected float32 \(3, 23\)"),
        (np.zeros((3, 22), np.float32), "labels of 22 classes"),
        (np.zeros((3, 23), np.float64), "float64"),
        (np.full((3, 23), np.nan, np.float32), "not finite"),
    ],
)
def test_damaged_labels_are_refused(labels_dir: Path, array: np.ndarray, message: str) -> None:
    np.save(labels_dir / "labels_all_23.npy", array)
    with pytest.raises(InputError, match=message):
        read_labels(labels_dir, STEMS)


@pytest.mark.parametrize("name", ["ids_all.txt", "labels_all_23.npy"])
def test_missing_label_files_are_named(labels_dir: Path, name: str) -> None:
    (labels_dir / name).unlink()
    with pytest.raises(InputError, match=name):
        read_labels(labels_dir, STEMS)


def test_labels_for_new_stems_never_pair_with_the_old(
    labels_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_contents: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.imdb.labels.replace_files", crash)
    with pytest.raises(KeyboardInterrupt):
        write_labels(["x", "y", "z"], DOCUMENTS, labels_dir)
    with pytest.raises(InputError, match=r"ids_all\.txt"):
        read_labels(labels_dir, STEMS)


def test_augmented_files(labels_dir: Path, tmp_path: Path) -> None:
    write_augmented_labels(labels_dir, tmp_path, 70)
    expected = numpy_noise(np.load(labels_dir / "labels_all_23.npy"), 70, 123)
    np.save(tmp_path / "expected.npy", expected)
    written = (tmp_path / f"{P}_labels.npy").read_bytes()
    assert written == (tmp_path / "expected.npy").read_bytes()
    manifest = {
        "total_rows": 210,
        "original_rows": 3,
        "views_per_sample": 70,
        "dims": {"labels": 23},
        "dtype": "float32",
        "labels_noise_std": 0.1,
        "labels_noise_clip": 0.2,
        "labels_clamped_to_01": True,
        "index_csv": f"{P}_aug_index.csv",
        "source_labels_npy": f"{labels_dir}/labels_all_23.npy",
        "source_ids_txt": f"{labels_dir}/ids_all.txt",
        "normalized": False,
        "seed": 123,
        "stems_sha256": hashlib.sha256(b"\0".join(s.encode() for s in STEMS)).hexdigest(),
        "source_sha256": {
            name: hashlib.sha256((labels_dir / name).read_bytes()).hexdigest()
            for name in ("labels_all_23.npy", "ids_all.txt")
        },
        "sha256": {f"{P}_labels.npy": hashlib.sha256(written).hexdigest()},
    }
    manifest["crc32c"] = f"{crc32c(json.dumps(manifest, sort_keys=True).encode()):08x}"
    text = (tmp_path / f"{P}_labels_manifest.json").read_text()
    assert text == json.dumps(manifest, indent=2)


def test_a_second_run_into_a_folder_is_refused(
    labels_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0

    def meet(operation: str, path: Path, size: int) -> int:
        nonlocal writes
        writes += operation == "write"
        if writes == 2:
            writes += 1
            with pytest.raises(
                StoreLockedError, match=r"labels_manifest\.json is being written by"
            ):
                write_augmented_labels(labels_dir, tmp_path, 70, seed=7)
        return size

    monkeypatch.setattr(durable, "hook", meet)
    write_augmented_labels(labels_dir, tmp_path, 70)
    expected = numpy_noise(np.load(labels_dir / "labels_all_23.npy"), 70, 123)
    assert np.array_equal(np.load(tmp_path / f"{P}_labels.npy"), expected)
    assert writes > 2


def test_prefix_views_and_seed(labels_dir: Path, tmp_path: Path) -> None:
    write_augmented_labels(labels_dir, tmp_path, 1, prefix="x", seed=5)
    assert np.array_equal(np.load(tmp_path / "x_labels.npy"), read_labels(labels_dir, STEMS))
    write_augmented_labels(labels_dir, tmp_path, 3, prefix="x", seed=5)
    expected = numpy_noise(read_labels(labels_dir, STEMS), 3, 5)
    assert np.array_equal(np.load(tmp_path / "x_labels.npy"), expected)


def embeddings(folder: Path, **changes: object) -> None:
    digest = hashlib.sha256(b"\0".join(s.encode() for s in STEMS)).hexdigest()
    manifest = {"original_rows": 3, "views_per_sample": 2, "stems_sha256": digest} | changes
    (folder / f"{P}_manifest.json").write_text(json.dumps(manifest))


def test_labels_fit_their_embeddings(labels_dir: Path, tmp_path: Path) -> None:
    embeddings(tmp_path)
    write_augmented_labels(labels_dir, tmp_path, 2)
    assert np.load(tmp_path / f"{P}_labels.npy").shape == (6, 23)


@pytest.mark.parametrize(
    ("key", "value"),
    [("original_rows", 4), ("stems_sha256", "f" * 64)],
)
def test_embeddings_of_other_samples_are_refused(
    labels_dir: Path, tmp_path: Path, key: str, value: int | str
) -> None:
    embeddings(tmp_path, **{key: value})
    with pytest.raises(InputError, match=rf"(?s){key} of the embeddings: '?{value}.*of the labels"):
        write_augmented_labels(labels_dir, tmp_path, 2)
    assert not (tmp_path / f"{P}_labels.npy").exists()


@pytest.mark.parametrize("key", ["views_per_sample", "seed"])
def test_another_value_than_the_embeddings_is_a_mistake(
    labels_dir: Path, tmp_path: Path, key: str
) -> None:
    embeddings(tmp_path, **{"seed": 9, key: 5})
    option = "views" if key == "views_per_sample" else "seed"
    asked: dict[str, Any] = {option: 4}
    with pytest.raises(ConfigError, match=rf"(?s)--{option} 4 .*says 5.*Leave --{option} out") as e:
        write_augmented_labels(labels_dir, tmp_path, **asked)
    assert e.value.exit_code == 2
    assert not (tmp_path / f"{P}_labels.npy").exists()


def test_views_and_seed_are_those_of_the_embeddings(labels_dir: Path, tmp_path: Path) -> None:
    embeddings(tmp_path, views_per_sample=4, seed=7)
    for said in (dict[str, Any](), {"views": 4}, {"seed": 7}):
        write_augmented_labels(labels_dir, tmp_path, **said)
        expected = numpy_noise(np.load(labels_dir / "labels_all_23.npy"), 4, 7)
        assert np.array_equal(np.load(tmp_path / f"{P}_labels.npy"), expected)


def test_the_papers_views_and_seed_before_there_are_embeddings(
    labels_dir: Path, tmp_path: Path
) -> None:
    write_augmented_labels(labels_dir, tmp_path)
    expected = numpy_noise(np.load(labels_dir / "labels_all_23.npy"), 70, 123)
    assert np.array_equal(np.load(tmp_path / f"{P}_labels.npy"), expected)


@pytest.mark.parametrize("value", ["70", 2.0, True, [2]])
def test_a_manifest_without_a_number_of_views(
    labels_dir: Path, tmp_path: Path, value: object
) -> None:
    embeddings(tmp_path, views_per_sample=value)
    with pytest.raises(InputError, match="views_per_sample must be a number"):
        write_augmented_labels(labels_dir, tmp_path)


def test_labels_of_other_classes_get_advice_that_helps(labels_dir: Path) -> None:
    """Running `labels` again would not change the number of columns."""
    np.save(labels_dir / "labels_all_23.npy", np.zeros((3, 20), np.float32))
    with pytest.raises(InputError) as caught:
        read_labels(labels_dir, STEMS)
    message = str(caught.value)
    assert "20 classes" in message
    assert "labels.npy" in message
    assert "`labels --data`" in message
    assert "same data folder" not in message
    assert len(message.splitlines()) <= 4


def test_a_manifest_of_the_paper_has_no_stem_hash(labels_dir: Path, tmp_path: Path) -> None:
    (tmp_path / f"{P}_manifest.json").write_text('{"original_rows": 3, "views_per_sample": 2}')
    write_augmented_labels(labels_dir, tmp_path, 2)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_embeddings_manifest(labels_dir: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / f"{P}_manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"_manifest\.json"):
        write_augmented_labels(labels_dir, tmp_path, 2)


def test_augmented_labels_need_a_folder_and_a_view(labels_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        write_augmented_labels(labels_dir, tmp_path / "none", 2)
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        write_augmented_labels(labels_dir, tmp_path, 0)


def test_an_interrupted_run_leaves_no_manifest(
    labels_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_augmented_labels(labels_dir, tmp_path, 2)

    def stop(*_args: object) -> object:
        yield np.zeros((2, 23), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.imdb.labels.augmented_labels", stop)
    with pytest.raises(KeyboardInterrupt):
        write_augmented_labels(labels_dir, tmp_path, 2)
    assert not (tmp_path / f"{P}_labels_manifest.json").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_memory_does_not_grow_with_views(labels_dir: Path, tmp_path: Path) -> None:
    stems = [f"{i:04d}" for i in range(400)]
    write_labels(stems, [{"genres": ["Drama"]}] * 400, labels_dir)
    tracemalloc.start()
    write_augmented_labels(labels_dir, tmp_path, 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written = (tmp_path / f"{P}_labels.npy").stat().st_size
    assert written == 128 + 400 * 20 * 23 * 4
    assert peak < written / 2


# --- changes since the labels were written ---


def flip(path: Path, at: int = -1, change: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= change
    path.write_bytes(data)


RECORD = "labels_all_23.digests.json"


@pytest.mark.parametrize(
    "name", ["labels_all_23.npy", "ids_all.txt", "class_names_23.json", RECORD]
)
def test_a_flip_of_any_byte_of_a_label_file_is_named(labels_dir: Path, name: str) -> None:
    path = labels_dir / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at, 1 << at % 8)
        with pytest.raises(InputError, match=re.escape(name)) as caught:
            read_labels(labels_dir, STEMS)
        assert len(str(caught.value).splitlines()) <= 4
        assert [f.file for f in verify_labels(labels_dir)] == [name]
        path.write_bytes(whole)
    assert verify_labels(labels_dir) == []
    assert read_labels(labels_dir, STEMS).shape == (3, 23)


def test_a_label_that_was_edited_is_named_with_what_to_do(labels_dir: Path) -> None:
    path = labels_dir / "labels_all_23.npy"
    labels = np.load(path)
    labels[0, 3] = 1
    np.save(path, labels)
    with pytest.raises(InputError) as caught:
        read_labels(labels_dir, STEMS)
    message = str(caught.value)
    assert f"{path} is not what `labels` wrote: expected SHA-256 " in message
    assert f"found {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" in message
    assert "manyviews labels" in message
    assert f"remove {labels_dir / RECORD}" in message
    with pytest.raises(InputError, match="is not what `labels` wrote"):
        write_augmented_labels(labels_dir, labels_dir, 2)
    (labels_dir / RECORD).unlink()
    assert read_labels(labels_dir, STEMS)[0, 3] == 1


def test_labels_of_the_published_scripts_have_no_record(labels_dir: Path, tmp_path: Path) -> None:
    (labels_dir / RECORD).unlink()
    assert read_labels(labels_dir, STEMS).shape == (3, 23)
    write_augmented_labels(labels_dir, tmp_path, 2)


def test_classes_in_another_order_are_refused(labels_dir: Path) -> None:
    """Each column would be read as another genre."""
    (labels_dir / RECORD).unlink()
    path = labels_dir / "class_names_23.json"
    path.write_text(json.dumps([*NAMES[1:], NAMES[0]]))
    with pytest.raises(InputError, match="in another order"):
        read_labels(labels_dir, STEMS)
    path.unlink()  # the file is optional
    assert read_labels(labels_dir, STEMS).shape == (3, 23)


def test_a_full_disk_leaves_the_old_labels(
    labels_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in labels_dir.iterdir()}

    def full(operation: str, path: Path, size: int) -> int:
        if operation == "write" and path.name.startswith(RECORD):
            raise OSError(errno.ENOSPC, "No space left on device")
        return size

    monkeypatch.setattr(durable, "hook", full)
    with pytest.raises(StorageFullError):
        write_labels(STEMS, DOCUMENTS[::-1], labels_dir)
    assert {p.name: p.read_bytes() for p in labels_dir.iterdir()} == before
    assert read_labels(labels_dir, STEMS).shape == (3, 23)


def test_a_kill_between_the_renames_is_seen(labels_dir: Path) -> None:
    """The record is renamed last: until then the older one matches none of the new files."""
    for n in itertools.count(1):
        write_labels(STEMS, DOCUMENTS, labels_dir)
        old = (labels_dir / "labels_all_23.npy").read_bytes()
        if not killed_at(n, write_labels, STEMS, DOCUMENTS[::-1], labels_dir):
            break
        new = (labels_dir / "labels_all_23.npy").read_bytes() != old
        renamed = json.loads((labels_dir / RECORD).read_bytes())["sha256"]["labels_all_23.npy"]
        if (
            new
            and renamed
            != hashlib.sha256((labels_dir / "labels_all_23.npy").read_bytes()).hexdigest()
        ):
            with pytest.raises(InputError, match="is not what `labels` wrote"):
                read_labels(labels_dir, STEMS)
        else:
            read_labels(labels_dir, STEMS)
    assert n > 12
    assert read_labels(labels_dir, STEMS)[0].tolist() != np.zeros(23).tolist()


@pytest.mark.parametrize("name", [f"{P}_labels.npy", f"{P}_labels_manifest.json"])
def test_a_flip_of_any_byte_of_augmented_labels_is_named(
    labels_dir: Path, tmp_path: Path, name: str
) -> None:
    write_augmented_labels(labels_dir, tmp_path, 2)
    path = tmp_path / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at, 1 << at % 8)
        assert [f.file for f in verify_augmented(tmp_path, P)] == [name], at
        path.write_bytes(whole)
    assert verify_augmented(tmp_path, P) == []


def test_augmented_labels_of_other_files_in_their_folder_are_named(
    labels_dir: Path, tmp_path: Path
) -> None:
    write_augmented_labels(labels_dir, labels_dir, 2)
    assert verify_augmented(labels_dir, P) == []
    write_labels(STEMS, DOCUMENTS[::-1], labels_dir)
    [finding] = verify_augmented(labels_dir, P)
    assert str(finding) == (
        f"{P}_labels.npy: it was made from another labels_all_23.npy than the one beside it"
    )
    write_augmented_labels(labels_dir, tmp_path, 2)
    embeddings(tmp_path, seed=7)
    [finding] = verify_augmented(tmp_path, P)
    assert str(finding).endswith("its seed is 123, and that of the embeddings 7")


def test_a_seed_that_a_flip_changed_is_not_used(labels_dir: Path, tmp_path: Path) -> None:
    """The noise would have another seed than the views in the same folder."""
    record = {"original_rows": 3, "views_per_sample": 2, "seed": 123, "sha256": {}}
    record["crc32c"] = f"{crc32c(json.dumps(record, sort_keys=True).encode()):08x}"
    path = tmp_path / f"{P}_manifest.json"
    path.write_text(json.dumps(record))
    write_augmented_labels(labels_dir, tmp_path)
    path.write_text(json.dumps(record).replace("123", "122"))
    with pytest.raises(InputError, match=r"checksum does not match(?s:.*)materialize"):
        write_augmented_labels(labels_dir, tmp_path)


@pytest.mark.parametrize("name", ["ids_all.txt", "labels_all_23.npy"])
def test_the_digest_is_of_what_was_read(
    labels_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another process may replace a file between its reading and the comparison."""
    good = (labels_dir / name).read_bytes()
    other = good.replace(b"0000002", b"0000009") if name == "ids_all.txt" else good[:-1] + b"\x40"
    (labels_dir / name).write_bytes(other)

    def replaced(path: Path) -> dict[str, object]:
        (labels_dir / "new").write_bytes(good)
        (labels_dir / "new").replace(labels_dir / name)
        return read_record(path)

    monkeypatch.setattr("featurestore.labels.record.read_record", replaced)
    with pytest.raises(InputError, match=f"{name} is not what `labels` wrote"):
        _ = read_ids(labels_dir) if name == "ids_all.txt" else load_labels(labels_dir, len(STEMS))
