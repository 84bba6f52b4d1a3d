"""A small synthetic MM-IMDb for the demo: posters and plots that depend on their genres.

Colours, shapes and words depend on the genres, so that a linear probe beats chance even on the
features of random weights. The data contain each irregularity of the real data set.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurestore.errors import ConfigError, InputError
from featurestore.system.durable import make_folder, replace_file

Color = tuple[int, int, int]
Pixels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Look:
    """The appearance of a genre's posters and the words of its plots.

    Attributes:
        ground: the background's colour.
        ink: the pattern's colour.
        pattern: a key of ``_pattern``.
        words: the words that its plots are drawn from.
    """

    ground: Color
    ink: Color
    pattern: str
    words: str


_LOOKS: Mapping[str, _Look] = {
    "Action": _Look(
        (200, 40, 20), (250, 220, 60), "stripes", "chase explosion bullet helicopter fight mission"
    ),
    "Comedy": _Look(
        (250, 210, 40), (240, 90, 160), "dots", "joke wedding prank clumsy neighbour laughter"
    ),
    "Drama": _Look(
        (40, 60, 110), (150, 170, 200), "ellipse", "family grief letter promise illness courtroom"
    ),
    "Horror": _Look(
        (12, 10, 14), (110, 160, 40), "noise", "haunted cellar scream ghost curse midnight"
    ),
    "Romance": _Look(
        (250, 190, 205), (190, 20, 70), "rings", "kiss love paris heart dance moonlight"
    ),
    "Sci-Fi": _Look(
        (10, 30, 60), (60, 240, 230), "grid", "robot galaxy spaceship alien planet laser"
    ),
}
_COMMON = "a young dreamer meets an old friend and together they must decide what to do"
_UNICODE = "Café Müller, Ænima — 東京の夜, Амели 🎬"
_UNKNOWN_GENRE = "Reality-TV"
_ORPHAN = "9999999"
_MIN_SAMPLES = 4 * len(_LOOKS)  # per genre: one in validation, one in test, two in train
_SHARES = {"test": 0.25, "dev": 0.15}


@dataclass(frozen=True, slots=True)
class _Film:
    """One synthetic sample: its stem and its genres, the main one first."""

    stem: str
    genres: tuple[str, ...]


def make_demo_data(folder: Path, samples: int = 48, seed: int = 0) -> None:
    """Writes ``dataset/`` and ``split.json`` into ``folder``; equal arguments give equal bytes.

    The irregularities, all among the training samples: one truncated JPEG, one empty plot, one
    ``.jpeg`` suffix, one plot in several scripts, and one genre outside the 23. There is also one
    poster without a synopsis, beyond ``samples``.

    Args:
        folder: the output folder; created if missing.
        samples: number of pairs, at least 24.
        seed: seed of genres, posters and plots.

    Raises:
        ConfigError: too few samples for every genre to be in every part of the split.
        InputError: ``dataset/`` holds files that are not of this data set.
        StorageError: a file could not be written.
    """
    if samples < _MIN_SAMPLES:
        raise ConfigError(f"The demo needs at least {_MIN_SAMPLES} samples, not {samples}.")
    films = _cast(samples, seed)
    split = _split(films, seed)
    files = _files(films, split["train"], seed)
    dataset = folder / "dataset"
    make_folder(dataset)
    unknown = sorted({entry.name for entry in dataset.iterdir()} - files.keys())
    if unknown:
        raise InputError(
            f"{dataset} holds {len(unknown):,} files that are not the demo's, for example "
            f"{unknown[0]!r}.\nGive the demo an empty folder."
        )
    for name, data in files.items():
        replace_file(dataset / name, data)
    replace_file(folder / "split.json", _json(split))


def _cast(samples: int, seed: int) -> list[_Film]:
    """Assigns genres evenly; about half of the films have a second one."""
    rng = np.random.default_rng([seed, 0])
    names = list(_LOOKS)
    films = []
    for i in range(samples):
        main = i % len(names)
        second = (main + int(rng.integers(1, len(names)))) % len(names)
        genres = (names[main], names[second]) if rng.random() < 0.5 else (names[main],)
        films.append(_Film(f"{100_003 + 7_919 * i:07d}", genres))
    return films


def _split(films: Sequence[_Film], seed: int) -> dict[str, list[str]]:
    """Splits each main genre by the same shares, so that every part has every genre."""
    rng = np.random.default_rng([seed, 1])
    split: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for genre in _LOOKS:
        stems = [film.stem for film in films if film.genres[0] == genre]
        stems = [stems[i] for i in rng.permutation(len(stems))]
        total = len(stems)
        for part, share in _SHARES.items():
            count = max(1, round(share * total))
            split[part] += stems[:count]
            stems = stems[count:]
        split["train"] += stems
    return {part: sorted(stems) for part, stems in split.items()}


def _files(films: Sequence[_Film], train: Sequence[str], seed: int) -> dict[str, bytes]:
    """The content of every file of ``dataset/``, by name."""
    truncated, no_plot, jpeg_suffix, unicode, unknown_genre = train[:5]
    files = {}
    for index, film in enumerate(films):
        rng = np.random.default_rng([seed, 2, index])
        suffix = ".jpeg" if film.stem == jpeg_suffix else ".jpg"
        poster = _poster(film.genres, rng)
        files[film.stem + suffix] = poster[: len(poster) // 2] if film.stem == truncated else poster
        plot = _plot(film.genres, rng)
        if film.stem == no_plot:
            plot = []
        elif film.stem == unicode:
            plot.append(_UNICODE)
        genres = [*film.genres, *([_UNKNOWN_GENRE] if film.stem == unknown_genre else [])]
        files[film.stem + ".json"] = _json({"plot": plot, "genres": genres})
    files[_ORPHAN + ".jpg"] = _poster(("Drama",), np.random.default_rng([seed, 3]))
    return files


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=2).encode()


def _plot(genres: Sequence[str], rng: np.random.Generator) -> list[str]:
    """One or two summaries; half of their words are the genres', half common to all films."""
    vocabulary = [word for genre in genres for word in _LOOKS[genre].words.split()]
    common = _COMMON.split()
    summaries = []
    for _ in range(int(rng.integers(1, 3))):
        words = [
            str(rng.choice(vocabulary if rng.random() < 0.5 else common))
            for _ in range(int(rng.integers(18, 45)))
        ]
        summaries.append(" ".join(words).capitalize() + ".")
    return summaries


def _poster(genres: Sequence[str], rng: np.random.Generator) -> bytes:
    """A JPEG in portrait format, one band per genre from top to bottom."""
    width, height = int(rng.integers(180, 261)), int(rng.integers(270, 381))
    edges = np.linspace(0, height, len(genres) + 1).astype(int)
    bands = [
        _band(_LOOKS[genre], int(bottom - top), width, rng)
        for genre, top, bottom in zip(genres, edges, edges[1:], strict=False)
    ]
    pixels = np.concatenate(bands) + rng.normal(0.0, 6.0, (height, width, 1))
    out = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def _band(look: _Look, height: int, width: int, rng: np.random.Generator) -> Pixels:
    """One genre's part of a poster: float64 [height, width, 3], about 0 to 255."""
    ink = _pattern(look.pattern, height, width, rng)[..., None]
    ground = np.array(look.ground) + rng.normal(0.0, 12.0, 3)
    return np.asarray(ground * ~ink + np.array(look.ink) * ink, np.float64)


def _pattern(name: str, height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The pixels of the pattern, bool [height, width]; size and position vary between films."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    step = rng.uniform(24, 40)
    phase = rng.uniform(0, step)
    center_y, center_x = height * rng.uniform(0.35, 0.65), width * rng.uniform(0.35, 0.65)
    radius = np.hypot(y - center_y, x - center_x)
    patterns: dict[str, NDArray[np.bool_]] = {
        "stripes": (x + y + phase) % step < step / 3,
        "dots": np.hypot((x + phase) % step - step / 2, (y + phase) % step - step / 2) < step / 3,
        "ellipse": ((y - center_y) / height) ** 2 + ((x - center_x) / width) ** 2 < 0.09,
        "noise": np.kron(
            rng.random((height // 8 + 1, width // 8 + 1)) < 0.25, np.ones((8, 8), bool)
        )[:height, :width],
        "rings": radius % step < step / 4,
        "grid": ((x + phase) % step < 3) | ((y + phase) % step < 3),
    }
    return patterns[name]
