"""Common code of the peers: pairs, views and model, written with the libraries.

The transforms are the published pipeline's, called as torchvision's documentation calls them, and
seeded as it seeds them. So every program here makes the rows that manyviews makes, which a test
holds them to. Nothing of manyviews is used but its seeds and what makes torchvision importable.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

SIZE = 224
SEED = 123


def task() -> dict[str, Any]:
    """The program's only argument, which is JSON."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found


def mark(file: str, what: str) -> None:
    """Notes the time at which a program is ``ready`` or ``done``, for who watches it."""
    with Path(file).open("a", encoding="utf-8") as marks:
        marks.write(json.dumps([what, time.monotonic()]) + "\n")


def stems(data: str) -> list[str]:
    """The sorted intersection of posters and synopses."""
    files = list(Path(data).iterdir())
    posters = {file.stem for file in files if file.suffix in (".jpg", ".jpeg")}
    return sorted(posters & {file.stem for file in files if file.suffix == ".json"})


def poster_file(data: str, stem: str) -> Path:
    """The poster of a sample."""
    found = Path(data, stem + ".jpg")
    return found if found.exists() else found.with_suffix(".jpeg")


def make_recipe(size: int = SIZE) -> Any:
    """SimCLR's transforms with the published values."""
    from featurestore.system.torchvision_ops import ensure_importable

    ensure_importable()
    from torchvision import transforms as T  # noqa: N812  as its documentation does

    return T.Compose(
        [
            T.RandomResizedCrop(size, (0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
    )


def make_views(recipe: Any, poster: Any, index: int, views: int) -> list[Any]:
    """The poster itself, which the processor makes view 0 of, and its augmented views."""
    import torch

    from featurestore.records import view_seed

    made = [poster]
    for view in range(1, views):
        torch.default_generator.manual_seed(view_seed(SEED, index, view, "image"))
        made.append(recipe(poster))
    return made


def text_views(text: str, index: int, views: int) -> list[str]:
    """The synopsis itself, and copies in which 15% of the words are hidden."""
    from featurestore.records import view_seed

    words = text.split()
    made = [text]
    for view in range(1, views):
        positions = list(range(len(words)))
        random.Random(view_seed(SEED, index, view, "text")).shuffle(positions)
        hidden = set(positions[: max(1, round(0.15 * len(words)))])
        made.append(" ".join("[MASK]" if i in hidden else w for i, w in enumerate(words)))
    return made


def synopsis(data: str, stem: str) -> str:
    """A sample's text: its summaries, joined."""
    plot = json.loads(Path(data, stem + ".json").read_text("utf-8")).get("plot") or ""
    return plot if isinstance(plot, str) else " ".join(plot)


def load_clip(model: str) -> tuple[Any, Any]:
    """The checkpoint's processor and its image tower with the projection."""
    from featurestore.system.torchvision_ops import ensure_importable

    ensure_importable()
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection, logging

    logging.set_verbosity_error()  # the checkpoint's text half is not wanted, as it would say
    logging.disable_progress_bar()
    processor = CLIPImageProcessorPil.from_pretrained(model)
    return processor, CLIPVisionModelWithProjection.from_pretrained(model).eval()
