import csv
import errno
import hashlib
import io
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import (
    ConfigError,
    CorruptStoreError,
    InputError,
    StorageError,
    StoreLockedError,
)
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore, record_crc32c
from featurestore.system import durable
from tests.featurestore import kills
from tests.featurestore.kills import killed_at
from tests.featurestore.stores import DIMS, StoreAndRows, make_store

STEMS = ["a,b", 'say "x"', "two\nlines", "caf\udce9", "東京", "cr\rx", " blank ", "é", "8", "9", ""]
BAD = {3: [BadInput(3, "image", "truncated", "")], 7: [BadInput(7, "text", "not-json", "x")]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    path = tmp_path_factory.mktemp("materialize") / "store"
    return path, make_store(path, stems=STEMS, bad=BAD)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def split_file(folder: Path, **parts: list[str]) -> Path:
    path = folder / "split.json"
    path.write_text(json.dumps({"train": [], "dev": [], "test": []} | parts))
    return path


def expected_rows(
    rows: np.ndarray, chosen: slice | list[int] = slice(None)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published formula on NumPy's own moments: (x - mu) / (sigma + 1e-6) in float32."""
    dim = rows.shape[2]
    wide = rows[chosen].reshape(-1, dim).astype(np.float64)
    mu, sigma = wide.mean(0).astype(np.float32), wide.std(0).astype(np.float32)
    return (rows.reshape(-1, dim) - mu) / (sigma + np.float32(1e-6)), mu, sigma


def assert_rows(
    folder: Path, rows: dict[str, np.ndarray], chosen: slice | list[int] = slice(None)
) -> None:
    for name in DIMS:
        expected, mu, sigma = expected_rows(rows[name], chosen)
        actual = np.load(folder / f"{PREFIX}_{name}.npy")
        stats = np.load(folder / f"{PREFIX}_{name}.stats.npz")
        assert stats.files == ["mu", "sigma"]
        for stat, wanted in (("mu", mu), ("sigma", sigma)):
            assert stats[stat].dtype == np.float32
            # Summing in another order may move the last float64 bit, thus one float32 rounding.
            np.testing.assert_array_max_ulp(stats[stat], wanted, maxulp=1)
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
        exact = (rows[name].reshape(expected.shape) - stats["mu"]) / (
            stats["sigma"] + np.float32(1e-6)
        )
        assert exact.dtype == np.float32
        assert actual.tobytes() == exact.tobytes()


def test_rows_and_stats_over_everything(built: StoreAndRows, tmp_path: Path) -> None:
    path, rows = built
    result = materialize(FeatureStore(path), tmp_path / "out")
    assert_rows(tmp_path / "out", rows)
    assert result.out_dir == tmp_path / "out"
    assert result.files == {n: len(data) for n, data in contents(tmp_path / "out").items()}
    assert list(result.files)[-1] == f"{PREFIX}_manifest.json"


def test_train_moments_come_from_the_split_only(built: StoreAndRows, tmp_path: Path) -> None:
    path, rows = built
    train = [0, 1, 4, 5, 10]
    split = split_file(tmp_path, train=[STEMS[i] for i in train], test=[STEMS[2]])
    materialize(FeatureStore(path), tmp_path / "out", zscore="train", split_json=split)
    assert_rows(tmp_path / "out", rows, train)


def test_train_moments_leave_placeholders_out_as_training_does(
    built: StoreAndRows, tmp_path: Path
) -> None:
    path, rows = built
    train = [0, 3, 4, 7, 10]  # 3 has no poster, 7 no synopsis: training excludes both
    split = split_file(tmp_path, train=[STEMS[i] for i in train], test=[STEMS[2]])
    materialize(FeatureStore(path), tmp_path / "out", zscore="train", split_json=split)
    assert_rows(tmp_path / "out", rows, [0, 4, 10])


def test_without_zscore_rows_are_the_stores_and_old_stats_go(
    built: StoreAndRows, tmp_path: Path
) -> None:
    path, rows = built
    materialize(FeatureStore(path), tmp_path)
    materialize(FeatureStore(path), tmp_path, zscore="none")
    for name, dim in DIMS.items():
        actual = np.load(tmp_path / f"{PREFIX}_{name}.npy")
        assert actual.tobytes() == rows[name].reshape(-1, dim).tobytes()
    assert not list(tmp_path.glob("*.npz"))


def test_the_file_is_numpys_own_byte_for_byte(built: StoreAndRows, tmp_path: Path) -> None:
    path, rows = built
    materialize(FeatureStore(path), tmp_path, zscore="none", prefix="p")
    for name, dim in DIMS.items():
        saved = io.BytesIO()
        np.save(saved, rows[name].reshape(-1, dim))
        assert (tmp_path / f"p_{name}.npy").read_bytes() == saved.getvalue()


def test_the_index_is_exact(built: StoreAndRows, tmp_path: Path) -> None:
    materialize(FeatureStore(built[0]), tmp_path)
    data = (tmp_path / f"{PREFIX}_aug_index.csv").read_bytes()
    start = (
        b"aug_idx,orig_idx,view,stem,image_name,text_len\n"
        b'0,0,0,"a,b","a,b.jpg",0\n1,0,1,"a,b","a,b.jpg",0\n'
        b'2,0,2,"a,b","a,b.jpg",0\n3,0,3,"a,b","a,b.jpg",0\n'
        b'4,1,0,"say ""x""","say ""x"".jpg",3\n'
    )
    assert data.startswith(start)
    assert b'\n8,2,0,"two\nlines","two\nlines.jpg",6\n' in data
    assert b"\n12,3,0,caf\xe9,caf\xe9.jpg,9\n" in data
    assert "\n16,4,0,東京,東京.jpg,12\n".encode() in data
    assert b'\n20,5,0,"cr\rx","cr\rx.jpg",15\n' in data
    assert data.endswith(b"\n43,10,3,,.jpg,30\n")
    text = data.decode("utf-8", "surrogateescape")
    lines = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert lines == [
        [str(4 * i + v), str(i), str(v), stem, f"{stem}.jpg", str(3 * i)]
        for i, stem in enumerate(STEMS)
        for v in range(4)
    ]


def test_the_manifest(built: StoreAndRows, tmp_path: Path) -> None:
    store = FeatureStore(built[0])
    materialize(store, tmp_path)
    data = (tmp_path / f"{PREFIX}_manifest.json").read_bytes()
    manifest = json.loads(data)
    assert data == json.dumps(manifest, indent=2).encode()
    published = ["total_rows", "original_rows", "views_per_sample", "dims", "models", "dtype"]
    published += ["device", "simclr", "text_mask_prob", "index_csv"]
    assert list(manifest)[:10] == published
    assert [manifest[key] for key in published] == [
        44,
        11,
        4,
        DIMS,
        {"clip_image": "models/clip_image", "clip_text": "models/clip_text"},
        "torch.float32",
        "cpu",
        True,
        0.15,
        f"{PREFIX}_aug_index.csv",
    ]
    assert (manifest["zscore"], manifest["seed"]) == ("all", 123)
    assert manifest["versions"] == {"torch": "2.13.0", "pillow": "12.0.0"}
    assert manifest["stems_sha256"] == store.fingerprint["stems_sha256"]
    assert manifest["placeholders"] == [
        {"orig_idx": 3, "stem": "caf\udce9", "input": "image", "reason": "truncated"},
        {"orig_idx": 7, "stem": "é", "input": "text", "reason": "not-json"},
    ]
    others = {n: d for n, d in contents(tmp_path).items() if not n.endswith("manifest.json")}
    assert manifest["sha256"] == {n: hashlib.sha256(d).hexdigest() for n, d in others.items()}


@pytest.mark.parametrize(
    ("recipes", "simclr", "share"),
    [
        ({"text_recipe.share": "0.3", "text_recipe.token": '"model"'}, True, 0.3),
        ({"text_recipe": "drop-1", "text_recipe.share": "0.3"}, True, 0.0),
        ({"image_recipe": "crop-1", "text_recipe": "given-1"}, False, 0.0),
        ({"image_recipe": "none-1", "text_recipe": "none-1"}, False, 0.0),
    ],
)
def test_the_manifest_follows_the_recipes(
    tmp_path: Path, recipes: dict[str, str], simclr: bool, share: float
) -> None:
    make_store(tmp_path / "s", dims={"clip_text": 64}, recipes=recipes)
    materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / f"{PREFIX}_manifest.json").read_bytes())
    assert (manifest["simclr"], manifest["text_mask_prob"]) == (simclr, share)
    known = FeatureStore(tmp_path / "s").fingerprint
    assert manifest["recipe"] == {"image": known["image_recipe"], "text": known["text_recipe"]}


def test_blip2_is_one_model_and_dims_keep_their_order(tmp_path: Path) -> None:
    make_store(tmp_path / "s", dims={"blip2_text": 64, "blip2_image": 64, "clip_text": 64})
    materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / f"{PREFIX}_manifest.json").read_bytes())
    assert list(manifest["dims"]) == ["blip2_text", "blip2_image", "clip_text"]
    assert set(manifest["models"]) == {"blip2", "clip_text"}


@pytest.mark.parametrize("zscore", ["all", "none"])
def test_two_runs_are_byte_identical(built: StoreAndRows, tmp_path: Path, zscore: str) -> None:
    for out in ("a", "b", "b"):
        materialize(FeatureStore(built[0]), tmp_path / out, zscore=zscore)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_constant_dimensions_become_zero(tmp_path: Path) -> None:
    rows = {"clip_image": np.full((5, 4, 64), 0.1, np.float32)}
    make_store(tmp_path / "s", samples=5, dims={"clip_image": 64}, rows=rows)
    materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    assert not np.load(tmp_path / "out" / f"{PREFIX}_clip_image.npy").any()
    stats = np.load(tmp_path / "out" / f"{PREFIX}_clip_image.stats.npz")
    assert not stats["sigma"].any()


# --- refusals and failures ---


def test_an_incomplete_store_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s", chunks=[0, 1])
    with pytest.raises(InputError, match="2 of 3 chunks"):
        materialize(FeatureStore(tmp_path / "s"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(built: StoreAndRows, tmp_path: Path) -> None:
    store = FeatureStore(built[0])
    for prefix in ("", "a/b", "../x", ".hidden"):
        with pytest.raises(ConfigError, match="--prefix"):
            materialize(store, tmp_path / "out", prefix=prefix)
    with pytest.raises(ConfigError, match="zscore is one of"):
        materialize(store, tmp_path / "out", zscore="test")
    with pytest.raises(ConfigError, match="needs the split"):
        materialize(store, tmp_path / "out", zscore="train")
    empty = split_file(tmp_path)
    with pytest.raises(InputError, match="training split is empty"):
        materialize(store, tmp_path / "out", zscore="train", split_json=empty)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_noticed_before_anything_is_replaced(
    built: StoreAndRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(FeatureStore(built[0]), tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr("featurestore.imdb.materialize.free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match=r"needs 22,400 bytes.*1,000 free"):
        materialize(FeatureStore(built[0]), tmp_path)
    assert contents(tmp_path) == before


def test_leftovers_of_a_killed_run_count_as_free_space(
    built: StoreAndRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / f"{PREFIX}_blip2_text.npy.partial"
    left.write_bytes(bytes(40_000))
    monkeypatch.setattr("featurestore.imdb.materialize.free_bytes", lambda _: 1000)
    materialize(FeatureStore(built[0]), tmp_path)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("at", range(3, 25, 3))
def test_a_second_run_into_a_folder_is_refused(
    built: StoreAndRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store, count = FeatureStore(built[0]), 0
    materialize(store, tmp_path / "golden", zscore="none")

    def meet(operation: str, path: Path, size: int) -> int:
        nonlocal count
        count += 1
        if count == at + 1:
            with pytest.raises(StoreLockedError, match=r"manifest\.json is being written by"):
                materialize(store, tmp_path / "out")
        return size

    monkeypatch.setattr(durable, "hook", meet)
    materialize(store, tmp_path / "out", zscore="none")
    assert count > at + 1
    assert contents(tmp_path / "out") == contents(tmp_path / "golden")


@pytest.mark.parametrize("name", ["blip2_text.npy", "blip2_image.stats.npz", "mine.npy"])
def test_nothing_is_written_beside_files_of_other_features(
    built: StoreAndRows, tmp_path: Path, name: str
) -> None:
    """Readers would attribute them to this store; and they may be the only copy."""
    out = tmp_path / "out"
    if name == "mine.npy":  # recognized only by its manifest
        make_store(tmp_path / "other", dims={"mine": 64})
        materialize(FeatureStore(tmp_path / "other"), out)
    else:
        materialize(FeatureStore(built[0]), out)
        (out / f"{PREFIX}_{name}").write_bytes(b"of another store")
    (out / "other_blip2_text.npy").write_bytes(b"of another prefix")
    before = contents(out)
    with pytest.raises(InputError, match=rf"holds files of {name.partition('.')[0]}, which"):
        materialize(FeatureStore(built[0]), out)
    assert contents(out) == before
    (out / f"{PREFIX}_{name}").unlink()
    (out / f"{PREFIX}_mine.stats.npz").unlink(missing_ok=True)
    materialize(FeatureStore(built[0]), out)


def test_embeddings_are_not_written_beside_labels_of_another_seed(
    built: StoreAndRows, tmp_path: Path
) -> None:
    path = tmp_path / f"{PREFIX}_labels_manifest.json"
    stated = {"total_rows": 44, "views_per_sample": 4, "seed": 5}
    path.write_text(json.dumps(stated))
    with pytest.raises(InputError, match="is of another seed: 5; the store's is 123"):
        materialize(FeatureStore(built[0]), tmp_path)
    path.write_text(json.dumps({**stated, "seed": 123}))
    materialize(FeatureStore(built[0]), tmp_path)


def test_labels_of_the_published_scripts_have_the_papers_seed(
    built: StoreAndRows, tmp_path: Path
) -> None:
    """Their manifest does not record the seed, which is a constant of the scripts."""
    spec = FeatureStore(built[0]).spec
    other = tmp_path / "store"
    make_store(other)
    document = json.loads((other / "zarr.json").read_bytes())
    record = document["attributes"]["manyviews"]
    record["fingerprint"]["seed"] = 7
    record["crc32c"] = record_crc32c(record)
    (other / "zarr.json").write_text(json.dumps(document))
    facts = {"total_rows": spec.samples * spec.views, "views_per_sample": spec.views}
    (tmp_path / f"{PREFIX}_labels_manifest.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="is of another seed: 123; the store's is 7"):
        materialize(FeatureStore(other), tmp_path)
    materialize(FeatureStore(built[0]), tmp_path)


def test_embeddings_are_not_written_beside_a_damaged_labels_manifest(
    built: StoreAndRows, tmp_path: Path
) -> None:
    facts = {"total_rows": 44, "views_per_sample": 4, "seed": 123, "sha256": {}}
    facts["crc32c"] = record_crc32c(facts)
    path = tmp_path / f"{PREFIX}_labels_manifest.json"
    path.write_text(json.dumps(facts))
    materialize(FeatureStore(built[0]), tmp_path)
    path.write_text(json.dumps(facts).replace("44", "45"))
    with pytest.raises(InputError, match=r"its checksum does not match(?s:.*)labels --augment"):
        materialize(FeatureStore(built[0]), tmp_path)


def test_rows_of_an_interrupted_run_are_seen_without_its_manifest(
    built: StoreAndRows, tmp_path: Path
) -> None:
    (tmp_path / f"{PREFIX}_mine.npy").write_bytes(b"half of it")
    (tmp_path / f"{PREFIX}_labels.npy").write_bytes(b"no feature")
    with pytest.raises(InputError, match="holds files of mine, which"):
        materialize(FeatureStore(built[0]), tmp_path)


def test_invalid_folders_and_prefixes_are_refused(built: StoreAndRows, tmp_path: Path) -> None:
    store, file = FeatureStore(built[0]), tmp_path / "file"
    file.touch()
    for out, prefix, message in (
        (file, PREFIX, "is not a folder"),
        (built[0] / "out", PREFIX, "is in the store"),
        (built[0], PREFIX, "is in the store"),
        (tmp_path / "out", "my_labels", "does not end in _labels"),
    ):
        with pytest.raises(ConfigError, match=message):
            materialize(store, out, prefix=prefix)
    assert not (tmp_path / "out").exists()


def test_embeddings_are_not_written_beside_labels_of_other_rows(
    built: StoreAndRows, tmp_path: Path
) -> None:
    store = FeatureStore(built[0])
    rows = store.spec.samples * store.spec.views
    path = tmp_path / f"{PREFIX}_labels_manifest.json"
    path.write_text(json.dumps({"total_rows": rows, "views_per_sample": store.spec.views}))
    materialize(store, tmp_path)
    before = contents(tmp_path)
    for text in (
        json.dumps({"total_rows": rows + 4, "views_per_sample": store.spec.views}),
        json.dumps({"total_rows": rows, "views_per_sample": 2}),
        "{}",
    ):
        path.write_text(text)
        with pytest.raises(InputError, match="labels_manifest"):
            materialize(store, tmp_path)
        path.write_bytes(before[path.name])
        assert contents(tmp_path) == before


def test_a_damaged_chunk_leaves_no_manifest(built: StoreAndRows, tmp_path: Path) -> None:
    path = shutil.copytree(built[0], tmp_path / "s")
    materialize(FeatureStore(path), tmp_path / "out")
    data = bytearray((path / "clip_text/c.1.0.0").read_bytes())
    data[77] ^= 4
    (path / "clip_text/c.1.0.0").write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"clip_text/c\.1\.0\.0"):
        materialize(FeatureStore(path), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*manifest*"))
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.usefixtures("unsynced")
def test_a_failure_anywhere_leaves_no_manifest_and_a_rerun_completes(
    built: StoreAndRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(built[0])
    materialize(store, tmp_path / "golden", zscore="none")
    golden = contents(tmp_path / "golden")
    out = tmp_path / "out"
    n = 0
    while True:
        n += 1
        materialize(store, out)  # an earlier run with another scale
        earlier, count = contents(out), 0

        def fail(operation: str, path: Path, size: int, at: int = n) -> int:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return size

        monkeypatch.setattr(durable, "hook", fail)
        try:
            materialize(store, out, zscore="none")
        except StorageError:
            files = contents(out)
            # The earlier run is complete until its manifest is removed; this one is, at its end.
            assert f"{PREFIX}_manifest.json" not in files or files in (earlier, golden)
            assert not list(out.glob("*.partial"))
        else:
            break
        finally:
            monkeypatch.setattr(durable, "hook", durable._pass)
        materialize(store, out, zscore="none")
        assert contents(out) == golden
    assert n > 20


@pytest.mark.usefixtures("unsynced")
def test_a_kill_anywhere_leaves_no_manifest_and_a_rerun_completes(
    built: StoreAndRows, tmp_path: Path
) -> None:
    store = FeatureStore(built[0])
    golden, out = tmp_path / "golden", tmp_path / "out"
    materialize(store, golden, zscore="none")
    n = 1
    materialize(store, out)
    earlier = contents(out)
    while killed_at(n, kills.materialize_store, built[0], out, "none"):
        files = {k: v for k, v in contents(out).items() if not k.endswith(".partial")}
        assert f"{PREFIX}_manifest.json" not in files or files in (earlier, contents(golden))
        materialize(store, out)
        assert contents(out) == earlier
        n += 1
    assert n > 20
    assert contents(out) == contents(golden)


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    peaks = []
    for samples in (64, 1024):
        path = tmp_path / f"s{samples}"
        make_store(path, samples=samples, chunk=4, dims={"clip_image": 256})
        store = FeatureStore(path)
        tracemalloc.start()
        materialize(store, tmp_path / f"out{samples}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 960 more samples are 3.9 MB of rows; the records may take 1 kB per sample.
    assert peaks[1] - peaks[0] < 1_000_000
