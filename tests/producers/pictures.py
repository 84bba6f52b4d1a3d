"""Pictures for exactness: photographs that libraries ship, parts of them, and drawn posters.

Each is a function of its name alone, so that a recorded digest of its views stays true.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image, ImageDraw, ImageFont

from producers import decode

_SKIMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "logo.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
PHOTOS = {
    **{Path(p).stem: Path(p) for p in sklearn.datasets.load_sample_images().filenames},
    **{name.partition(".")[0]: Path(skimage.__file__).parent / "data" / name for name in _SKIMAGE},
}

# Sizes of MM-IMDb's posters and far outside. Of the last ones no crop ever fits, or few do: they
# fall back to the centre.
_RESCALED = [
    ("china", (450, 300)),
    ("flower", (256, 380)),
    ("astronaut", (500, 741)),
    ("coffee", (1500, 1000)),
    ("rocket", (3000, 2000)),
    ("chelsea", (2000, 3000)),
    ("motorcycle_left", (40, 60)),
    ("retina", (60, 40)),
    ("hubble_deep_field", (224, 224)),
    ("ihc", (223, 225)),
    ("coins", (17, 11)),
    ("camera", (900, 60)),
    ("moon", (60, 900)),
    ("cell", (5000, 3)),
    ("grass", (3, 5000)),
    ("brick", (1, 1)),
    ("gravel", (1, 300)),
    ("logo", (300, 1)),
    ("china", (2000, 20)),
    ("flower", (20, 2000)),
]
_DRAWN = [
    *[(256 + 13 * i, 380 + 17 * i) for i in range(12)],
    *[(40, 60), (60, 40), (100, 100), (224, 336), (337, 225), (448, 672), (1000, 1500)],
    *[(2000, 3000), (3000, 2000), (1, 1), (1, 60), (60, 1), (2, 2), (3, 700), (700, 3), (25, 1000)],
]


def photo(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """A photograph (some are scans and drawings), whole or resized."""
    poster = decode.image(PHOTOS[name].read_bytes())
    return poster if size is None else poster.resize(size)


def drawn(width: int, height: int, seed: int) -> Image.Image:
    """A poster as designers make them: a gradient, flat shapes, lines, grain, and a title."""
    rng = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        red, green, blue = (rng.choice((0, 255, rng.randrange(256))) for _ in range(3))
        return red, green, blue

    def point() -> tuple[int, int]:
        return rng.randrange(-width // 4, width + 1), rng.randrange(-height // 4, height + 1)

    top, bottom = (np.array(colour(), np.float64) for _ in range(2))
    share = np.linspace(0, 1, height)[:, None, None]
    pixels = top * (1 - share) + bottom * share
    if seed % 2:
        generator = np.random.Generator(np.random.PCG64(seed))
        pixels = pixels + generator.integers(-9, 10, (height, width, 3))
    whole = np.broadcast_to(pixels.clip(0, 255).astype(np.uint8), (height, width, 3))
    image = Image.fromarray(np.ascontiguousarray(whole))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        draw.polygon([point() for _ in range(rng.randrange(3, 7))], fill=colour())
        draw.line([point(), point()], fill=colour(), width=rng.randrange(1, 5))
    font = ImageFont.load_default(max(6, width // 8))
    draw.text((width // 20, height // 2), f"THE\nMOVIE\n{seed}", fill=colour(), font=font)
    return image


def names() -> list[str]:
    """Names of all pictures; a picture's place in the list is its index as a sample."""
    whole = list(PHOTOS)
    rescaled = [f"{name} {width}x{height}" for name, (width, height) in _RESCALED]
    return whole + rescaled + [f"drawn {width}x{height}" for width, height in _DRAWN]


@lru_cache(maxsize=4)
def picture(name: str) -> Image.Image:
    """The picture of one of :func:`names`, mode RGB; do not change it."""
    kind, _, shape = name.partition(" ")
    if not shape:
        return photo(kind)
    width, height = map(int, shape.split("x"))
    if kind == "drawn":
        return drawn(width, height, names().index(name))
    return photo(kind, (width, height))
