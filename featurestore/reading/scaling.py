"""Computes the z-score that a reader requests, from all rows or from the training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.storage.moments import Moments, Scale, merge, moments_of, scale_of
from featurestore.storage.store import FeatureStore

ZSCORES = ("all", "train", "none")


def scale_for(
    store: FeatureStore,
    feature: str,
    zscore: str,
    train: npt.NDArray[np.int64] | None,
    chunks: Sequence[int] | None = None,
) -> Scale | None:
    """The scale of one feature.

    Args:
        store: a complete store; with ``chunks``, it may be incomplete.
        feature: one of its features.
        zscore: ``all`` uses the rows of every sample that has the feature's input, placeholders
            included, as in the paper; ``train`` only those of training samples without
            placeholders, so that neither test data nor placeholders affect the scale; ``none`` does
            not scale.
        train: int64 indices of the training samples, needed for ``train``.
        chunks: the committed chunks to use; all of a complete store by default.

    Returns:
        The scale, or None for ``none``.

    Raises:
        ConfigError: ``zscore`` is none of the three, or ``train`` is requested without a split.
        InputError: the store is not complete, no sample has the feature's input, or the training
            split is empty or all placeholders.
    """
    if zscore not in ZSCORES:
        raise ConfigError(f"zscore is one of {', '.join(ZSCORES)}, found {zscore!r}.")
    if zscore == "none":
        return None
    if zscore == "all":
        return scale_of(store.moments(feature, chunks))
    if train is None:
        raise ConfigError("zscore 'train' needs the split: give split.json with --split-json.")
    return scale_of(train_moments(store, feature, train, chunks))


def train_moments(
    store: FeatureStore,
    feature: str,
    train: npt.NDArray[np.int64],
    chunks: Sequence[int] | None = None,
) -> Moments:
    """Moments over all views of the given samples, merged in the order of the chunks.

    A sample with a placeholder, in either modality, is excluded, as training excludes it by
    default, and so is one without the feature's input. The scale does not depend on the samples
    that a reader keeps: all parts of a split, and materialized files, share one scale.

    Args:
        store: a complete store; with ``chunks``, it may be incomplete.
        feature: one of its features.
        train: int64 indices of the samples.
        chunks: the committed chunks to use; all of a complete store by default.

    Raises:
        InputError: the store is not complete, or there are no samples without a placeholder.
    """
    if chunks is None:
        store.require_complete()
        chunks = range(store.spec.chunks)
    if len(train) == 0:
        raise InputError("The training split is empty: there is nothing to take a z-score from.")
    chosen = np.zeros(store.spec.samples, bool)
    chosen[train] = True
    chosen[[bad.index for bad in store.bad_inputs]] = False
    chosen &= store.present(feature)
    if not chosen.any():
        raise InputError(
            f"Every sample of the training split has a placeholder, or no input of {feature}: "
            "there is nothing to take a z-score from."
        )
    dim = store.spec.dims[feature]
    parts = []
    for chunk in chunks:
        mask = chosen[store.spec.samples_of(chunk).start : store.spec.samples_of(chunk).stop]
        if mask.any():
            rows = store.read_chunk(feature, chunk)[mask]
            parts.append(moments_of(rows.reshape(-1, dim)))
    if not parts:
        raise InputError("No training sample is committed yet: give zscore='none' until then.")
    return merge(parts)
