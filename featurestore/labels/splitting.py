"""Splits of a collection: from the names of its parts, or drawn so that labels are alike in all.

A split is dealt, not drawn sample by sample: samples are put in an order in which equal labels are
neighbours, and each goes to the part that is furthest below its share so far. Every run of equal
labels, and the whole, then has its shares to within about one sample. Within equal labels the order
is random. Values are dealt in groups of neighbours in size. Several labels a sample use iterative
stratification (Sechidis, Tsoumakas and Vlahavas, 2011): the rarest label first, each of its samples
to the part that lacks it most.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError, InputError
from featurestore.labels.label_set import MULTI_LABEL, VALUE, LabelSet

# The keys of the published ``split.json``.
PARTS = ("train", "dev", "test")
FRACTIONS = (0.8, 0.1, 0.1)
OUTSIDE = -1
# The names that sources give to the parts.
_NAMES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("dev", "val", "valid", "validation"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
_NEIGHBOURS = 20  # values in a group; with 0.8, 0.1, 0.1 each group gives 16, 2 and 2 samples

Parts = npt.NDArray[np.int64]


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Parses ``0.8,0.1,0.1``, the shares of train, dev and test.

    Raises:
        ConfigError: these are not three shares whose sum is 1, with one above 0 for train.
    """
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        raise _no_fractions(text) from None
    check_fractions(shares, text)
    return shares[0], shares[1], shares[2]


def check_fractions(shares: Sequence[float], text: str = "") -> None:
    """Checks the shares of train, dev and test.

    Raises:
        ConfigError: these are not three shares whose sum is 1, with one above 0 for train.
    """
    if len(shares) != 3 or not all(0 <= share <= 1 for share in shares) or not shares[0]:
        raise _no_fractions(text or list(shares))
    if abs(sum(shares) - 1) > 1e-6:
        raise _no_fractions(text or list(shares), f", whose sum is {sum(shares):g}")


def _no_fractions(found: object, why: str = "") -> ConfigError:
    return ConfigError(
        "--split takes the shares of train, dev and test, whose sum is 1, as in 0.8,0.1,0.1; "
        f"found {found!r}{why}."
    )


def named_parts(names: Sequence[str | None], place: Callable[[int], str]) -> Parts:
    """The part of each sample by its name in the source.

    Args:
        names: ``train`` or ``training``; ``val``, ``valid``, ``validation`` or ``dev``; ``test`` or
            ``testing``; None or empty for no part; in any case.
        place: function that returns where the name of a number was read, for messages.

    Returns:
        int64 ``[N]``: the number of the part in ``PARTS``, or -1 for none.

    Raises:
        InputError: a name is another one.
    """
    parts = np.full(len(names), OUTSIDE, np.int64)
    for at, name in enumerate(names):
        if name is None or name == "":
            continue
        part = _NAMES.get(name.strip().lower()) if isinstance(name, str) else None
        if part is None:
            raise InputError(
                f"The split of {place(at)} is {name!r:.80}: expected train, val or test, or "
                "nothing.\nCorrect it, or draw another split: --split 0.8,0.1,0.1"
            )
        parts[at] = part
    return parts


def draw_split(labels: LabelSet, fractions: Sequence[float], seed: int) -> Parts:
    """Draws a split in which every part has about the same share of each label.

    Samples without a label are dealt as a class of their own. With as many samples as
    parts, no part with a share above 0 is empty.

    Args:
        labels: the labels of all samples.
        fractions: the shares of train, dev and test.
        seed: the seed of the order of samples with equal labels.

    Returns:
        int64 ``[N]``: the number of each sample's part in ``PARTS``.
    """
    rng = np.random.default_rng(seed)
    shares = np.asarray(fractions, np.float64)
    if labels.kind == MULTI_LABEL:
        parts = _iterative(labels, shares, rng)
    else:
        parts = _deal(_order(_groups(labels), rng), shares)
    _fill_empty(parts, shares)
    return parts


def _groups(labels: LabelSet) -> npt.NDArray[np.int64]:
    """The group of each sample in which samples are alike, int64 ``[N]``."""
    targets = labels.targets()
    if labels.kind != VALUE:
        return targets
    rank = np.empty(len(targets), np.int64)
    rank[np.argsort(targets, kind="stable")] = np.arange(len(targets))  # NaN last
    return np.where(labels.known, rank // _NEIGHBOURS, OUTSIDE)


def _order(groups: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """All samples with those of a group together; groups and their samples in random order."""
    _, group = np.unique(groups, return_inverse=True)
    turn = rng.permutation(group.max(initial=0) + 1)
    shuffled = rng.permutation(len(groups))
    order: npt.NDArray[np.int64] = shuffled[np.argsort(turn[group[shuffled]], kind="stable")]
    return order


def _deal(order: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> Parts:
    parts = np.empty(len(order), np.int64)
    dealt = [0.0] * len(shares)
    wanted = shares.tolist()
    for place, sample in enumerate(order.tolist(), start=1):
        lacking = [share * place - had for share, had in zip(wanted, dealt, strict=True)]
        part = lacking.index(max(lacking))
        dealt[part] += 1
        parts[sample] = part
    return parts


def _iterative(
    labels: LabelSet, shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> Parts:
    """Iterative stratification; samples without a class are dealt at the end."""
    hot = np.nan_to_num(labels.rows) > 0.5
    parts = np.full(len(hot), OUTSIDE, np.int64)
    room = shares * len(hot)  # samples that each part still takes
    lacking = shares[:, None] * hot.sum(0)  # [parts, C], samples of each class likewise
    left = hot.sum(0)  # samples of each class that are not in a part
    shuffled = rng.permutation(len(hot))
    while left.any():
        rarest = int(np.where(left > 0, left, len(hot) + 1).argmin())
        members = shuffled[hot[shuffled, rarest] & (parts[shuffled] == OUTSIDE)]
        for sample in members.tolist():
            part = _neediest(lacking[:, rarest], room)
            parts[sample] = part
            room[part] -= 1
            lacking[part, hot[sample]] -= 1
        left = left - hot[members].sum(0)
    rest = shuffled[parts[shuffled] == OUTSIDE]
    for sample in rest.tolist():
        part = int(room.argmax())
        parts[sample], room[part] = part, room[part] - 1
    return parts


def _neediest(lacking: npt.NDArray[np.float64], room: npt.NDArray[np.float64]) -> int:
    """The part that lacks most of a class; of equal ones, the one with most room."""
    most = np.flatnonzero(lacking >= lacking.max() - 1e-9)
    return int(most[room[most].argmax()])


def _fill_empty(parts: Parts, shares: npt.NDArray[np.float64]) -> None:
    """Moves one sample of the largest part into each empty part that has a share."""
    if len(parts) < (shares > 0).sum():
        return
    for part in np.flatnonzero(shares > 0).tolist():
        if not (parts == part).any():
            largest = int(np.bincount(parts, minlength=len(shares)).argmax())
            parts[np.flatnonzero(parts == largest)[-1]] = part


def part_counts(parts: Parts) -> dict[str, int]:
    """The number of samples of each part by name; ``none`` counts the samples without a part."""
    counts = {name: int((parts == number).sum()) for number, name in enumerate(PARTS)}
    outside = int((parts == OUTSIDE).sum())
    return counts | ({"none": outside} if outside else {})


def split_document(parts: Parts, ids: Sequence[str]) -> bytes:
    """The content of ``split.json``: a list of ids under each name of ``PARTS``."""
    lists: Mapping[str, list[str]] = {
        name: [ids[i] for i in np.flatnonzero(parts == number).tolist()]
        for number, name in enumerate(PARTS)
    }
    # With surrogate escapes, the ids of MM-IMDb may hold bytes that are not UTF-8.
    return json.dumps(lists, indent=1).encode("ascii")
