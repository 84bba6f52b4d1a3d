import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.labels import CLASS_NAMES, genres_vector
from featurestore.imdb.splits import read_split
from manyviews.operations.demo.data import make_demo_data
from manyviews.operations.probe.logistic import Part, fit_probe
from manyviews.operations.probe.scores import best_threshold, chance, score


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # On matrices this small, several threads are slower than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo_data(folder)
    return folder


def stems_of(demo: Path) -> list[str]:
    return sorted(path.stem for path in (demo / "dataset").glob("*.json"))


def documents(demo: Path) -> list[dict[str, Any]]:
    return [json.loads((demo / "dataset" / f"{stem}.json").read_text()) for stem in stems_of(demo)]


def readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def posters(demo: Path, size: int) -> torch.Tensor:
    """The posters, float32 [N, 3 * size * size]; an unreadable one is black, as in a build."""
    rows = []
    for stem in stems_of(demo):
        (path,) = (demo / "dataset").glob(f"{stem}.jp*")
        pixels = np.zeros((size, size, 3), np.uint8)
        if readable(path):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
        rows.append(pixels.ravel() / 255)
    return torch.tensor(np.array(rows, np.float32))


def all_bytes(demo: Path) -> dict[str, bytes]:
    return {str(p.relative_to(demo)): p.read_bytes() for p in demo.rglob("*") if p.is_file()}


def test_48_pairs_and_one_poster_alone(demo: Path) -> None:
    images = {p.stem for p in (demo / "dataset").iterdir() if p.suffix in {".jpg", ".jpeg"}}
    assert len(stems_of(demo)) == 48
    assert len(images - set(stems_of(demo))) == 1
    assert set(stems_of(demo)) < images
    assert len(all_bytes(demo)) == 48 + 49 + 1
    assert {p.name for p in demo.iterdir()} == {"dataset", "split.json"}


def test_each_irregularity_occurs_once(demo: Path) -> None:
    suffixes = Counter(path.suffix for path in (demo / "dataset").iterdir())
    assert suffixes == {".json": 48, ".jpg": 48, ".jpeg": 1}
    pictures = [p for p in (demo / "dataset").iterdir() if p.suffix != ".json"]
    assert sum(not readable(path) for path in pictures) == 1
    plots = [document["plot"] for document in documents(demo)]
    assert all(isinstance(s, str) for plot in plots for s in plot)
    assert sum(plot == [] for plot in plots) == 1
    assert sum(not " ".join(plot).isascii() for plot in plots) == 1
    unknown = [name for document in documents(demo) for name in genres_vector(document)[1]]
    assert unknown == ["reality-tv"]


def test_posters_are_portraits_of_many_sizes(demo: Path) -> None:
    sizes = set()
    for path in (demo / "dataset").glob("*.jp*"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert all(width < height for width, height in sizes)
    assert len(sizes) > 30


def test_the_split_covers_every_sample_and_every_genre(demo: Path) -> None:
    split = read_split(demo / "split.json", stems_of(demo))
    assert sorted([*split.train, *split.val, *split.test]) == list(range(48))
    assert (len(split.train), len(split.val), len(split.test)) == (30, 6, 12)
    labels = np.stack([genres_vector(document)[0] for document in documents(demo)])
    assert set(labels.sum(1)) == {1.0, 2.0}
    used = set(np.flatnonzero(labels.any(0)))
    assert len(used) == 6
    for part in (split.train, split.val, split.test):
        assert set(np.flatnonzero(labels[part].any(0))) == used


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two, two):  # the last one over the files of the second
        make_demo_data(folder, 24)
        assert all_bytes(folder) == all_bytes(one)
    assert not list(tmp_path.rglob("*.partial"))


def test_another_seed_gives_other_posters(demo: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path, 24, seed=1)
    assert not set(all_bytes(tmp_path).values()) & set(all_bytes(demo).values())


@pytest.mark.parametrize(
    "samples", [24, *(pytest.param(n, marks=pytest.mark.nightly) for n in (25, 61))]
)
def test_other_sizes(tmp_path: Path, samples: int) -> None:
    make_demo_data(tmp_path, samples)
    stems = stems_of(tmp_path)
    assert len(stems) == samples
    split = read_split(tmp_path / "split.json", stems)
    assert len(split.train) + len(split.val) + len(split.test) == samples
    assert min(len(split.train), len(split.val), len(split.test)) >= 6


def test_too_few_samples_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 24 samples, not 23"):
        make_demo_data(tmp_path, 23)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "0000001.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"'0000001\.jpg'"):
        make_demo_data(tmp_path)
    assert all_bytes(tmp_path) == {"dataset/0000001.jpg": b"mine"}


def bag_of_words(demo: Path) -> torch.Tensor:
    """Word counts after a random projection, float32 [N, 64], like a random backbone."""
    texts = [" ".join(document["plot"]).lower().split() for document in documents(demo)]
    words = sorted({word for text in texts for word in text})
    counts = torch.tensor(
        [[text.count(word) / (len(text) or 1) for word in words] for text in texts]
    )
    generator = torch.Generator().manual_seed(0)
    return counts @ torch.randn(len(words), 64, generator=generator)


@pytest.mark.parametrize("view", ["poster", "plot"])
def test_a_linear_probe_beats_chance(demo: Path, view: str) -> None:
    features = posters(demo, 8) if view == "poster" else bag_of_words(demo)
    labels = torch.tensor(np.stack([genres_vector(d)[0] for d in documents(demo)]))
    split = read_split(demo / "split.json", stems_of(demo))
    train, dev, test = (Part(features[i], labels[i]) for i in (split.train, split.val, split.test))
    assert labels.shape[1] == len(CLASS_NAMES)
    probe = fit_probe(train, dev)
    threshold = best_threshold(probe.predict(dev.x).numpy(), dev.y.numpy() > 0.5)
    truth = test.y.numpy() > 0.5
    found = score(probe.predict(test.x).numpy(), truth, threshold)
    blind = chance(train.y.double().mean(0).numpy(), truth)
    assert found.micro_f1 > 2 * blind.micro_f1
    assert found.macro_f1 > 2 * blind.macro_f1
