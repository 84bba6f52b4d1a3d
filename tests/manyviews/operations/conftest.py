"""A data folder in which every kind of finding occurs once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

GOOD = 12
PLOT = "A traveller comes to town and finds that nobody remembers the war at all"


def picture(seed: int, width: int = 200, height: int = 300) -> Image.Image:
    """A picture of noise; different seeds give different files."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 10 or 1, width // 10 or 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


@pytest.fixture(scope="session")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, for reading only; the stem of a sample names its problem."""
    folder = tmp_path_factory.mktemp("messy")

    def put(stem: str, image: Image.Image | bytes, text: str, **options: Any) -> None:
        if isinstance(image, bytes):
            (folder / f"{stem}.jpg").write_bytes(image)
        else:
            image.save(folder / f"{stem}.jpg", **{"format": "JPEG", **options})
        (folder / f"{stem}.json").write_text(text)

    for i in range(GOOD):
        plot = " ".join((PLOT + f" {i}").split()[: i + 3])
        put(f"good{i:02}", picture(i), json.dumps({"plot": plot, "genres": ["Drama", "War"]}))
    plain = json.dumps({"plot": PLOT, "genres": ["Comedy"]})
    exif = Image.Exif()
    exif[0x0112] = 6
    cases: dict[str, Callable[[], None]] = {
        "small": lambda: put("small", picture(20, 40, 60), plain + " "),
        "long": lambda: put("long", picture(21, 100, 400), plain + "  "),
        "grey": lambda: put("grey", picture(22).convert("L"), plain + "   "),
        "turned": lambda: put("turned", picture(23), plain + "    ", exif=exif),
        "png": lambda: put("png", picture(24), plain + "     ", format="PNG"),
        "cut": lambda: put("cut", (folder / "good00.jpg").read_bytes()[:-900], plain + "      "),
        "nothing": lambda: put("nothing", b"", plain + "       "),
        "broken": lambda: put("broken", picture(25), "{"),
        "noplot": lambda: put(
            "noplot", picture(26), json.dumps({"genres": ["Reality-TV", "Drama"]})
        ),
        "twin": lambda: put("twin", (folder / "good01.jpg").read_bytes(), plain),
        "twin2": lambda: put("twin2", picture(27), plain),
    }
    for make in cases.values():
        make()
    (folder / "twin.jpeg").write_bytes(b"shadowed")
    (folder / "alone.jpg").write_bytes(b"")
    (folder / "lonely.json").write_text("{}")
    (folder / "folder.jpg").mkdir()
    return folder
