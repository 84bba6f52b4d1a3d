"""The same views by albumentations, in its own environment; started by ``benchmarks/views.py``."""

from __future__ import annotations

import json
import sys
import time

import albumentations as A  # noqa: N812  its own documentation's name
import cv2
import numpy as np


def main() -> None:
    """Does a lap for each line read."""
    arguments = json.loads(sys.argv[1])
    cv2.setNumThreads(1)
    size = arguments["size"]
    with np.load(arguments["posters"]) as file:
        posters = list(file.values())
    recipe = A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(0.08, 1.0), interpolation=cv2.INTER_CUBIC),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=(23, 23), sigma_limit=(0.1, 2.0), p=0.5),
        ],
        seed=123,
    )
    for _ in sys.stdin:
        start = time.process_time()
        for poster in posters:
            for _ in range(arguments["views"]):
                recipe(image=poster)
        units = len(posters) * arguments["views"]
        print(json.dumps([units, time.process_time() - start]), flush=True)


if __name__ == "__main__":
    main()
