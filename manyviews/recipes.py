"""The recipes of views, for ``BuildConfig``: ``from manyviews.recipes import Multicrop, Drop``."""

from __future__ import annotations

from producers.recipes.images.custom import CustomImage
from producers.recipes.images.fixed import CleanImage, FiveCrop, Flip, TenCrop
from producers.recipes.images.policies import RandAugment, TrivialAugment
from producers.recipes.images.random_crops import Crop, Multicrop, Simclr
from producers.recipes.texts.custom import CustomText
from producers.recipes.texts.given import CleanText, Given
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.sentences import Sentences

__all__ = [
    "CleanImage",
    "CleanText",
    "Crop",
    "CustomImage",
    "CustomText",
    "Drop",
    "FiveCrop",
    "Flip",
    "Given",
    "Mask",
    "Multicrop",
    "RandAugment",
    "Sentences",
    "Simclr",
    "TenCrop",
    "TrivialAugment",
]
