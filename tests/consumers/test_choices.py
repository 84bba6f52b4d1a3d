"""The choices that a build makes by itself, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumers import choices
from consumers.checkpoints.locating import Located
from consumers.config import CompleteConfig
from featurestore.errors import ConfigError
from producers.recipes.images.random_crops import Simclr
from producers.recipes.texts.hiding import Mask
from producers.sources.collection import CollectionConfig


def test_models_that_are_fetched_are_listed_with_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = {"hub/image": 3 * 2**30, "hub/text": 0}

    def locate(model: str, feature: str, *, open_clip: bool = False) -> Located:
        del feature, open_clip
        return Located(model, "hub" if model in sizes else "cache", sizes.get(model, 7))

    monkeypatch.setattr(choices, "locate", locate)
    config = CompleteConfig(
        store=Path("s"),
        data=Path("d"),
        image_recipe=Simclr(),
        text_recipe=Mask(),
        features=("clip_image", "clip_text", "blip2_image"),
        models={"clip_image": "hub/image", "clip_text": "hub/text"},
    )
    fetched = choices.downloads(config)
    assert fetched == sizes
    line = "fetched from the hub: hub/image (3.0 GiB), hub/text (size unknown)"
    assert choices.download_line(fetched) == line
    assert choices.download_line({}) == ""


@pytest.mark.parametrize(
    "changes", [{"text": ("plot",)}, {"recursive": True}, {"labels": "genres"}, {"id": "key"}]
)
def test_keys_without_an_effect_on_mm_imdb_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=rf"sets {name}, which kind = \"mm-imdb\" does not have"):
        CollectionConfig(kind="mm-imdb", path="data", **changes)
    CollectionConfig(kind="folder", path="data", **changes)
    CollectionConfig(kind="mm-imdb", path="data", clean_text="join", follow_links=True)
