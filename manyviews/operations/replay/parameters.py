"""The parameters of all views of a sample as arrays, for learners that need them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError
from featurestore.storage.store import FeatureStore
from manyviews.operations.replay.replay import Replay, from_store, store_sizes
from producers.kernels.draws import JITTER, ViewDraws
from producers.recipes.texts.views import HiddenWords
from producers.sources.collection import CollectionConfig, given_collection, require_one

IMAGE_PARAMETERS = np.dtype(
    [
        ("box", np.int32, (4,)),
        ("flip", np.bool_),
        ("order", np.int8, (4,)),
        ("factors", np.float32, (4,)),
        ("gray", np.bool_),
        ("sigma", np.float32),
    ]
)
"""Type of the parameters of one image view.

``box``: left, top, width and height of the crop, in pixels of the image. ``flip``: whether the view
is mirrored. ``order``: which of brightness (0), contrast (1), saturation (2) and hue (3) changed
first, second and so on; -1 where none did. ``factors``: by how much, in the order of these numbers;
1, or 0 for hue, where it did not. ``gray``: whether the view is gray. ``sigma``: standard deviation
of the blur in pixels of the view; 0 without a blur.
"""

_UNCHANGED = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class ViewParameters:
    """The parameters of the V views of one sample.

    Attributes:
        image: structured array [V] of ``IMAGE_PARAMETERS``; view 0 is the whole image, unchanged.
            Of torchvision's policies only the crops are listed. None if the sample has no usable
            image.
        hidden: bool [V, words]: whether a view hides a word of the text, where words are separated
            by white space. None if the sample has no text, or the recipe does not hide words.
    """

    image: npt.NDArray[np.void] | None
    hidden: npt.NDArray[np.bool_] | None


def view_parameters(
    store: Path | str,
    sample: str,
    *,
    data_dir: Path | str | None = None,
    data: Path | str | None = None,
    collection: CollectionConfig | None = None,
    follow_links: bool = False,
) -> ViewParameters:
    """The parameters of all views of a sample: crops, colours, blurs, and hidden words.

    Args:
        store: folder of the store.
        sample: id of the sample.
        data_dir: the inputs of the store, a folder of MM-IMDb's posters and synopses; or None.
        data: its inputs, a collection whose kind is recognized; or None.
        collection: its inputs, described; or None. Exactly one of the three is given.
        follow_links: use symbolic links that lead out of a folder.

    Raises:
        ConfigError: no inputs are given, or the recipe of images makes views in another way.
        InputError: the store does not have the sample, or its inputs changed.
        StoreMismatchError: this version does not have a recipe of the store.
    """
    require_one(is_needed=True, data_dir=data_dir, data=data, collection=collection)
    found = given_collection(
        data_dir=data_dir, data=data, collection=collection, follow_links=follow_links
    )
    assert found is not None  # one of them is given
    opened = FeatureStore(Path(store))
    # Views of all sizes have the same parameters.
    size = min(store_sizes(opened.fingerprint, opened.features).values(), default=None)
    return parameters_of(from_store(opened, found, sample, size))


def parameters_of(replay: Replay) -> ViewParameters:
    """The parameters of a replayed sample's views.

    Raises:
        ConfigError: the recipe of images makes views in another way.
    """
    return ViewParameters(_image(replay), _hidden(replay))


def _image(replay: Replay) -> npt.NDArray[np.void] | None:
    if replay.poster is None:
        return None
    drawn = replay.all_drawn()
    if drawn is None:
        raise ConfigError(
            f"The recipe {replay.settings.image.name!r} of images does not draw its views by "
            "boxes, factors and blurs: they have no parameters to list."
        )
    clean = ViewDraws((0, 0, *replay.poster.size), flip=False)
    return np.array([_row(each) for each in (clean, *drawn)], IMAGE_PARAMETERS)


def _row(drawn: ViewDraws) -> tuple[object, ...]:
    """One view's parameters in the order of ``IMAGE_PARAMETERS``."""
    changed = dict(drawn.jitter)
    order = [JITTER.index(name) for name in changed]
    order += [-1] * (len(JITTER) - len(order))
    factors = [changed.get(name, same) for name, same in zip(JITTER, _UNCHANGED, strict=True)]
    return drawn.box, drawn.flip, order, factors, drawn.gray, drawn.sigma or 0.0


def _hidden(replay: Replay) -> npt.NDArray[np.bool_] | None:
    if not isinstance(replay.text, HiddenWords):
        return None
    hidden = np.zeros((replay.settings.views, len(replay.text.words)), np.bool_)
    for view, positions in enumerate(replay.text.hidden, 1):
        hidden[view, positions] = True
    return hidden
