"""Augmented views per second and core, compared with torchvision and albumentations.

Usage:
    python -m benchmarks.views [--quick] [--recipes]

With ``--recipes`` it compares each recipe of the kernels with torchvision alone, and needs no
environment of albumentations.

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
from producers.recipes.images.fixed import FiveCrop
from producers.recipes.images.geometry import ImageSpec, Poster, clean_view
from producers.recipes.images.random_crops import Crop, Multicrop, RandomCrops, Simclr

SIZE = 224
SEED = 123
ALBUMENTATIONS = ["albumentations==2.0.8", "opencv-python-headless==5.0.0.93", "numpy==2.4.6"]
# Width and height in pixels: the small posters that the goals were set for, and large ones.
SHAPES = {"256 to 500 pixels": ((256, 380), (333, 500)), "1000 x 1500 pixels": ((1000, 1500),) * 2}
TORCHVISION, COMPILED, LIBRARY = "torchvision", "ours, compiled", "ours, Pillow and numpy"

RANDOM: tuple[Crop | Multicrop, ...] = (Simclr(), Crop(), Multicrop())
# Of crops alone; the goal of whole SimCLR views is the same.
GOAL = 10.0

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


def transforms(recipe: Crop | Multicrop) -> Callable[[int], Callable[[Image.Image], Image.Image]]:
    """Torchvision's transforms of each view, as the paper calls them."""
    ensure_importable()
    from torchvision import transforms as T  # noqa: N812  as its documentation does

    def crops(scale: tuple[float, float]) -> Callable[[Image.Image], Image.Image]:
        bicubic = T.InterpolationMode.BICUBIC
        steps = [
            T.RandomResizedCrop(SIZE, scale, recipe.ratio, interpolation=bicubic),
            T.RandomHorizontalFlip(recipe.flip),
        ]
        if isinstance(recipe, Simclr):
            steps += [
                T.RandomApply([T.ColorJitter(*recipe.jitter)], recipe.jitter_probability),
                T.RandomGrayscale(recipe.gray),
                T.RandomApply([T.GaussianBlur(23, recipe.sigma)], recipe.blur),
            ]
        composed: Callable[[Image.Image], Image.Image] = T.Compose(steps)
        return composed

    if isinstance(recipe, Crop):
        every = crops(recipe.scale)
        return lambda _: every
    large, small = crops(recipe.global_scale), crops(recipe.local_scale)
    return lambda view: large if view <= recipe.global_crops else small


def torchvision_views(
    pictures: list[Image.Image], views: int, recipe: Crop | Multicrop
) -> Callable[[], float]:
    """Torchvision's views, one by one."""
    of = transforms(recipe)

    def lap() -> float:
        for index, picture in enumerate(pictures):
            for view in range(1, views + 1):
                torch.manual_seed(view_seed(SEED, index, view, "image"))
                np.asarray(of(view)(picture))
        return len(pictures) * views

    return lap


def our_views(
    pictures: list[Image.Image], views: int, kernels: Kernels, recipe: RandomCrops
) -> Callable[[], float]:
    """What a producer does for each poster."""
    out = np.empty((views, SIZE, SIZE, 3), np.uint8)

    def lap() -> float:
        for index, picture in enumerate(pictures):
            numbers = range(1, views + 1)
            seeds = view_seeds(SEED, index, numbers, "image")
            recipe.make(Poster(picture, kernels), ImageSpec(SIZE, SIZE), numbers, seeds, out)
        return len(pictures) * views

    return lap


def torchvision_corners(pictures: list[Image.Image]) -> Callable[[], float]:
    """CLIP's clean view and four corners by torchvision."""
    ensure_importable()
    from torchvision import transforms as T  # noqa: N812

    bicubic = T.InterpolationMode.BICUBIC
    clean = T.Compose([T.Resize(SIZE, bicubic), T.CenterCrop(SIZE)])
    corners = T.Compose([T.Resize(256, bicubic), T.FiveCrop(SIZE)])

    def lap() -> float:
        for picture in pictures:
            for view in (clean(picture), *corners(picture)[:4]):
                np.asarray(view)
        return 5 * len(pictures)

    return lap


def our_corners(pictures: list[Image.Image], kernels: Kernels) -> Callable[[], float]:
    """The same views as a producer makes them."""
    out, spec = np.empty((4, SIZE, SIZE, 3), np.uint8), ImageSpec(SIZE, SIZE)

    def lap() -> float:
        for picture in pictures:
            poster = Poster(picture, kernels)
            clean_view(poster, spec)
            FiveCrop().make(poster, spec, range(1, 5), [0] * 4, out)
        return 5 * len(pictures)

    return lap


def draws(pictures: list[Image.Image], views: int) -> Callable[[], float]:
    """The random draws of SimCLR's views alone."""

    def lap() -> float:
        for index, picture in enumerate(pictures):
            seeds = view_seeds(SEED, index, range(1, views + 1), "image")
            Simclr().draws(range(1, views + 1), seeds, *picture.size)
        return len(pictures) * views

    return lap


def compare_recipes(name: str, count: int, views: int, rounds: int) -> str:
    """One table with a row for each recipe of the kernels; and whether crops meet their goal."""
    pictures = posters(*SHAPES[name], count)
    kernels = implementation(compiled_code=has_compiled())
    contenders: dict[str, Contender] = {"draws": timed(draws(pictures, views))}
    for recipe in RANDOM:
        contenders[f"{recipe.name} {TORCHVISION}"] = timed(
            torchvision_views(pictures, views, recipe)
        )
        contenders[recipe.name] = timed(our_views(pictures, views, kernels, recipe))
    contenders[f"fivecrop {TORCHVISION}"] = timed(torchvision_corners(pictures))
    contenders["fivecrop"] = timed(our_corners(pictures, kernels))
    laps = measuring.take_turns(contenders, rounds)
    rows, goals = [], []
    for recipe_name in (*(recipe.name for recipe in RANDOM), "fivecrop"):
        ours, theirs = laps[recipe_name], laps[f"{recipe_name} {TORCHVISION}"]
        found = measuring.ratio(ours, theirs)
        rows.append([recipe_name, *map(str, (measuring.rate(theirs), measuring.rate(ours), found))])
        if recipe_name != "fivecrop":
            goals.append(measuring.goal(f"{recipe_name} / {TORCHVISION}", found.median, GOAL))
    head = ["", f"{TORCHVISION}, views per CPU s", "ours, views per CPU s", "times torchvision"]
    drawn = 1000 / measuring.rate(laps["draws"]).median
    lines = [f"Posters of {name}:", "", measuring.table(head, rows), "", *goals]
    return "\n".join([*lines, f"Of ours, SimCLR's random draws: {drawn:.3f} ms per view."])


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
                TORCHVISION: timed(torchvision_views(pictures, views, Simclr())),
                "albumentations": albumentations.lap,
                LIBRARY: timed(
                    our_views(pictures, views, implementation(compiled_code=False), Simclr())
                ),
            }
            if has_compiled():
                kernels = implementation(compiled_code=True)
                contenders[COMPILED] = timed(our_views(pictures, views, kernels, Simclr()))
            laps = measuring.take_turns(contenders, rounds)
    lines = [f"Posters of {name}:", "", measuring.comparison(laps, TORCHVISION, "views"), ""]
    for peer, wanted in ((TORCHVISION, 10.0), ("albumentations", 1.1)):
        if COMPILED in laps:
            found = measuring.ratio(laps[COMPILED], laps[peer])
            lines.append(measuring.goal(f"{COMPILED} / {peer}", found.median, wanted))
    return "\n".join(lines)


def main() -> None:
    """Prints the tables of each kind of posters."""
    arguments = measuring.parser(__doc__)
    arguments.add_argument("--recipes", action="store_true", help="only the recipes' tables")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    peers = () if chosen.recipes else ALBUMENTATIONS
    print(measuring.machine("torchvision", "torch", "pillow", "numpy"), *peers, sep=", ")
    effort = (4, 12, 3) if chosen.quick else (8, 23, 11)
    for name in SHAPES:
        if not chosen.recipes:
            print(f"\n{compare(name, *effort)}", flush=True)
        print(f"\n{compare_recipes(name, *effort)}", flush=True)


if __name__ == "__main__":
    main()
