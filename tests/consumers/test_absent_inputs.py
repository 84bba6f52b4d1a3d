"""Builds of a real folder where some photos have no text and some texts no photo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from consumers.build import build
from consumers.config import BuildConfig
from featurestore import FeatureDataset
from featurestore.errors import StoreMismatchError
from featurestore.imdb.materialize import materialize
from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from tests.featurestore.stores import tree

SAMPLES, VIEWS, CHUNK = 20, 4, 8
WITHOUT_TEXT = [1, *range(8, 16), 17]  # the whole second chunk, and two more
WITHOUT_IMAGE = [2, 18]
EMPTY_TEXT = 17  # a file without any text
HAVE = {
    "clip_image": [i for i in range(SAMPLES) if i not in WITHOUT_IMAGE],
    "clip_text": [i for i in range(SAMPLES) if i not in WITHOUT_TEXT],
}
Configure = Callable[..., BuildConfig]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(SAMPLES):
        if i not in WITHOUT_IMAGE:
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"p{i:02d}.{'png' if i % 2 else 'jpg'}")
        if i not in WITHOUT_TEXT:
            (folder / f"p{i:02d}.txt").write_text(f"a photo, number {i}, of something else\n")
    (folder / f"p{EMPTY_TEXT:02d}.txt").write_text("")
    return folder


@pytest.fixture(scope="module")
def configure(photos: Path, checkpoints: dict[str, str]) -> Configure:
    def config(store: Path, **changes: object) -> BuildConfig:
        options: dict[str, object] = {
            "data": photos,
            "models": {name: checkpoints[name] for name in HAVE},
            "views": VIEWS,
            "chunk": CHUNK,
            "producers": 1,
            "device": "cpu",
        }
        return BuildConfig(store=store, **(options | changes))  # type: ignore[arg-type]

    return config


@pytest.fixture(scope="module")
def built(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "store"
    build(configure(path))
    return path


def test_the_store_knows_what_is_absent(built: Path) -> None:
    assert verify(built).findings == []
    store = FeatureStore(built)
    assert store.complete
    assert store.absent == {"image": len(WITHOUT_IMAGE), "text": len(WITHOUT_TEXT)}
    assert store.bad_inputs == []
    for name, have in HAVE.items():
        assert np.flatnonzero(store.present(name)).tolist() == have


def test_moments_and_scales_are_numpys_over_present_rows(built: Path, tmp_path: Path) -> None:
    """Compares with float64 NumPy on rows that zarr reads."""
    store = FeatureStore(built)
    materialize(store, tmp_path / "files")
    data = FeatureDataset(built, views="all", missing="zero")
    batch = data.batch(range(SAMPLES))
    group = zarr.open_group(built, mode="r")
    for column, (name, have) in enumerate(HAVE.items()):
        array = group[name]
        assert isinstance(array, zarr.Array)
        raw = np.asarray(array[:])
        assert raw[have].reshape(len(have), -1).any(axis=1).all()
        lacking = [i for i in range(SAMPLES) if i not in have]
        assert not raw[lacking].any()
        used = raw[have].reshape(-1, raw.shape[2]).astype(np.float64)
        moments = store.moments(name)
        assert moments.count == len(have) * VIEWS
        np.testing.assert_allclose(moments.mean, used.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.sigma, used.std(axis=0), rtol=1e-9, atol=1e-15)
        expected = (raw - used.mean(axis=0)) / (used.std(axis=0) + 1e-6)
        expected[lacking] = 0
        np.testing.assert_allclose(batch[name].numpy(), expected, rtol=1e-4, atol=2e-4)
        assert not batch[name][lacking].any()
        assert np.flatnonzero(batch["present"][:, column]).tolist() == have
        files = np.load(tmp_path / "files" / f"features_{name}.npy")
        assert files.tobytes() == batch[name].numpy().tobytes()
    both = FeatureDataset(built)
    assert both.indices.tolist() == sorted(set(HAVE["clip_image"]) & set(HAVE["clip_text"]))
    presence = np.load(tmp_path / "files/features_presence.npy")
    np.testing.assert_array_equal(presence, batch["present"].numpy())


@pytest.mark.parametrize("first", ["clip_image", "clip_text"])
def test_features_that_are_added_later_give_the_same_store(
    built: Path, configure: Configure, tmp_path: Path, first: str
) -> None:
    build(configure(tmp_path / "store", features=(first,)))
    alone = FeatureStore(tmp_path / "store")
    assert np.flatnonzero(alone.present(first)).tolist() == HAVE[first]
    build(configure(tmp_path / "store", features=tuple(HAVE), resume=True))
    assert verify(tmp_path / "store").findings == []
    added, whole = (FeatureStore(path) for path in (tmp_path / "store", built))
    assert added.records == whole.records
    ours, theirs = tree(tmp_path / "store"), tree(built)
    files = [name for name in theirs if "/c." in name]
    assert {name: ours[name] for name in files} == {name: theirs[name] for name in files}


def test_a_text_that_vanished_before_features_are_added_is_refused(
    photos: Path, configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    build(configure(tmp_path / "store", data=folder, features=("clip_image",)))
    before = tree(tmp_path / "store")
    (folder / "p05.txt").write_text("")
    with pytest.raises(StoreMismatchError):
        build(configure(tmp_path / "store", data=folder, features=tuple(HAVE), resume=True))
    assert {name: data for name, data in tree(tmp_path / "store").items() if name in before} == (
        before
    )


def test_inputs_that_appear_and_vanish_are_remade(
    photos: Path, built: Path, configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    text = (folder / "p05.txt").read_bytes()
    build(configure(tmp_path / "store", data=folder))
    for content, count in ((b"", len(WITHOUT_TEXT) + 1), (text, len(WITHOUT_TEXT))):
        (folder / "p05.txt").write_bytes(content)
        build(configure(tmp_path / "store", data=folder, resume=True, remake_changed=True))
        assert verify(tmp_path / "store").findings == []
        store = FeatureStore(tmp_path / "store")
        assert store.absent == {"image": len(WITHOUT_IMAGE), "text": count}
        assert store.present("clip_text")[5] == bool(content)
    assert tree(tmp_path / "store") == tree(built)
