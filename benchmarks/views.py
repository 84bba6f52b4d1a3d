"""Augmented views per second and core, compared with torchvision and albumentations.

Usage:
    python -m benchmarks.views [--quick]

All make the same posters' views, one thread each, in turn; what is compared is CPU time. The crops,
colours and blurs of torchvision and of ours are the same to the last bit; albumentations draws its
own from the same distributions, and makes another picture (it does not smooth when it shrinks).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn.datasets
import torch
from PIL import Image

from benchmarks import measuring
from benchmarks.environments import Peer, environment
from benchmarks.measuring import Contender, timed
from featurestore.records import view_seed, view_seeds
from featurestore.system.torchvision_ops import ensure_importable
from producers.kernels.implementations import Kernels, has_compiled, implementation
from producers.recipes.images.geometry import ImageSpec, Poster
from producers.recipes.images.random_crops import Simclr

SIZE = 224
SEED = 123
ALBUMENTATIONS = ["albumentations==2.0.8", "opencv-python-headless==5.0.0.93", "numpy==2.4.6"]
# Width and height in pixels: the small posters that the goals were set for, and large ones.
SHAPES = {"256 to 500 pixels": ((256, 380), (333, 500)), "1000 x 1500 pixels": ((1000, 1500),) * 2}
TORCHVISION, COMPILED, LIBRARY = "torchvision", "ours, compiled", "ours, Pillow and numpy"

Pixels = npt.NDArray[np.uint8]


def posters(smallest: tuple[int, int], largest: tuple[int, int], count: int) -> list[Image.Image]:
    """Photographs, resized to shapes between these."""
    photos = [Image.fromarray(pixels) for pixels in sklearn.datasets.load_sample_images().images]
    made = []
    for number in range(count):
        share = number / max(1, count - 1)
        pairs = zip(smallest, largest, strict=True)
        width, height = (round(low + share * (high - low)) for low, high in pairs)
        made.append(photos[number % len(photos)].resize((width, height)))
    return made


def torchvision_views(pictures: list[Image.Image], views: int) -> Callable[[], float]:
    """The paper's transforms as the paper calls them."""
    ensure_importable()
    from torchvision import transforms as T  # noqa: N812  as its documentation does

    recipe = T.Compose(
        [
            T.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(0.5),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ]
    )

    def lap() -> float:
        for index, picture in enumerate(pictures):
            for view in range(1, views + 1):
                torch.manual_seed(view_seed(SEED, index, view, "image"))
                np.asarray(recipe(picture))
        return len(pictures) * views

    return lap


def our_views(pictures: list[Image.Image], views: int, kernels: Kernels) -> Callable[[], float]:
    """What a producer does for each poster."""
    out = np.empty((views, SIZE, SIZE, 3), np.uint8)

    def lap() -> float:
        for index, picture in enumerate(pictures):
            numbers = range(1, views + 1)
            seeds = view_seeds(SEED, index, numbers, "image")
            Simclr().make(Poster(picture, kernels), ImageSpec(SIZE, SIZE), numbers, seeds, out)
        return len(pictures) * views

    return lap


def compare(name: str, count: int, views: int, rounds: int) -> str:
    """One table, for posters of one kind; and whether the goals are met."""
    pictures = posters(*SHAPES[name], count)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "posters.npz"
        np.savez(file, *map(np.asarray, pictures))
        arguments = {"posters": str(file), "views": views, "size": SIZE}
        python = environment("albumentations", ALBUMENTATIONS)
        with Peer(python, "benchmarks/peer_albumentations.py", arguments) as albumentations:
            contenders: dict[str, Contender] = {
                TORCHVISION: timed(torchvision_views(pictures, views)),
                "albumentations": albumentations.lap,
                LIBRARY: timed(our_views(pictures, views, implementation(compiled_code=False))),
            }
            if has_compiled():
                kernels = implementation(compiled_code=True)
                contenders[COMPILED] = timed(our_views(pictures, views, kernels))
            laps = measuring.take_turns(contenders, rounds)
    lines = [f"Posters of {name}:", "", measuring.comparison(laps, TORCHVISION, "views"), ""]
    for peer, wanted in ((TORCHVISION, 10.0), ("albumentations", 1.1)):
        if COMPILED in laps:
            found = measuring.ratio(laps[COMPILED], laps[peer])
            lines.append(measuring.goal(f"{COMPILED} / {peer}", found.median, wanted))
    return "\n".join(lines)


def main() -> None:
    """Prints a table for each kind of posters."""
    quick = measuring.options(__doc__).quick
    torch.set_num_threads(1)
    print(measuring.machine("torchvision", "torch", "pillow", "numpy"), *ALBUMENTATIONS, sep=", ")
    for name in SHAPES:
        made = compare(name, *((4, 12, 3) if quick else (8, 23, 11)))
        print(f"\n{made}", flush=True)


if __name__ == "__main__":
    main()
