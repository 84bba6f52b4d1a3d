"""The choices that a build makes by itself, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers import choices
from consumers.checkpoints.locating import Located
from consumers.config import CompleteConfig


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
        features=("clip_image", "clip_text", "blip2_image"),
        models={"clip_image": "hub/image", "clip_text": "hub/text"},
    )
    fetched = choices.downloads(config)
    assert fetched == sizes
    line = "fetched from the hub: hub/image (3.0 GiB), hub/text (size unknown)"
    assert choices.download_line(fetched) == line
    assert choices.download_line({}) == ""
