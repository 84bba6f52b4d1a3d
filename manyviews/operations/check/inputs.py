"""The groups about the inputs of a collection: pairs, images, texts and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import InputError
from featurestore.imdb.splits import SplitComparison, compare_split
from featurestore.records import Sample
from featurestore.wording import amount
from manyviews.operations.check.findings import (
    Group,
    Line,
    counted,
    listed,
    spread,
    spread_text,
)
from manyviews.operations.check.reading import Look
from manyviews.operations.words import PAPER, Words
from producers.decode import ImageFacts
from producers.sources.scan import Scan
from producers.sources.unused import advice, counted_reasons

# Posters of MM-IMDb are 256 pixels wide or more, and up to twice as high.
_SMALL_SIDE = 64
_MANY_PIXELS = 25_000_000
_ASPECT = 3.0
# The label of texts without words, by the noun of a text.
_EMPTY = {"synopsis": "without a plot", "text": "without words"}


def data_group(scanned: Scan) -> Group:
    """The pairs of poster and synopsis, and all other files in the folder."""
    group = Group("data", data_facts(scanned))
    group.ok("pairs", f"{amount(len(scanned.samples), 'poster')} with a synopsis")
    for label, names, other in (
        ("posters alone", scanned.unmatched_images, "synopsis"),
        ("synopses alone", scanned.unmatched_texts, "poster"),
    ):
        if names:
            add = f"They are not samples. Add the {other} of the same stem, or remove them."
            group.names("warning", label, names, add)
        else:
            group.ok(label, "none")
    shadowed = [name for name, reason in scanned.left_out if reason == "shadowed"]
    if shadowed:
        keep = ".jpg is used before .jpeg, .JPG, .JPEG, and .json before .JSON: keep one of each."
        group.names("warning", "same stem twice", shadowed, keep)
    left_out_into(group, scanned)
    return group


def data_facts(scanned: Scan) -> dict[str, Any]:
    """What is in a collection, as plain values."""
    return {
        "data_dir": str(scanned.path),
        "samples": len(scanned.samples),
        "unmatched_images": list(scanned.unmatched_images),
        "unmatched_texts": list(scanned.unmatched_texts),
        "left_out": [list(pair) for pair in scanned.left_out],
        "alike": [list(names) for names in scanned.alike],
    }


def left_out_into(group: Group, scanned: Scan) -> None:
    """Adds the entries that are no part of a sample, and names that look the same."""
    if scanned.alike:
        pairs = [f"{image} and {text}" for image, text, _ in scanned.alike]
        group.names("warning", "look the same", pairs, next(advice((), scanned.alike)))
    others = [pair for pair in scanned.left_out if pair[1] != "shadowed"]
    if others:
        what = " ".join((f"They are not samples: {counted_reasons(others)}.", *advice(others)))
        group.names("warning", "left out", [name for name, _ in others], what)


def images_group(
    looks: Sequence[Look], samples: Sequence[Sample], *, fatal: bool = False, words: Words = PAPER
) -> Group:
    """Sizes, formats and problems of the images that were read.

    Args:
        looks: the samples that were read.
        samples: all samples.
        fatal: whether a build stops at an unusable image.
        words: the nouns of the inputs.
    """
    total = len(samples)
    stems = stems_of(looks, samples)
    group = Group(words.images)
    absent = sum(look.image is None and look.image_bad is None for look in looks)
    bad = {look.index: look.image_bad for look in looks if look.image_bad is not None}
    facts = {look.index: look.image for look in looks if look.image is not None}
    odd: dict[str, list[str]] = {}
    for index, image in facts.items():
        for kind in oddities(image):
            if kind == "not JPEG" and words is not PAPER:
                continue  # any format is usual elsewhere
            odd.setdefault(kind, []).append(stems[index])
    widths = spread([image.width for image in facts.values()])
    heights = spread([image.height for image in facts.values()])
    group.facts = {
        "read": len(looks),
        "of": total,
        "absent": absent,
        "bad": [[stems[i], *why] for i, why in bad.items()],
        "odd": odd,
        "width": widths,
        "height": heights,
        "modes": dict(Counter(image.mode for image in facts.values())),
        "formats": dict(Counter(image.format for image in facts.values())),
    }
    group.ok("read", f"{len(looks):,} of {total:,}{_how(looks, total)}")
    _absent_line(group, absent, words.image)
    if facts:
        group.ok("width", spread_text(widths, "pixel"))
        group.ok("height", spread_text(heights, "pixel"))
    placeholder = f"A black image replaces each. Fetch the {words.images} again."
    _bad_line(group, bad, stems, placeholder=placeholder, fatal=fatal)
    for kind, names in sorted(odd.items()):
        group.names("warning", kind, names, _ODD_ADVICE[kind])
    return group


_ODD_ADVICE = {
    "small": f"One side is shorter than {_SMALL_SIDE} pixels: views are mostly interpolated.",
    "huge": f"More than {_MANY_PIXELS // 10**6} million pixels: they are slow to decode.",
    "long": f"One side is more than {_ASPECT:g} times the other: a centre crop loses most of it.",
    "not RGB": "They are converted to RGB: grey stays grey, and alpha is dropped.",
    "turned": "Their EXIF orientation is ignored, as in the paper: the views are rotated.",
    "not JPEG": "They are read: the bytes decide the format, not the suffix.",
}


def oddities(image: ImageFacts) -> list[str]:
    """The unusual properties of a usable image."""
    short, long = sorted((image.width, image.height))
    kinds = {
        "small": short < _SMALL_SIDE,
        "huge": short * long > _MANY_PIXELS,
        "long": long > _ASPECT * short,
        "not RGB": image.mode != "RGB",
        "turned": image.orientation != 1,
        "not JPEG": image.format != "JPEG",
    }
    return [kind for kind, is_so in kinds.items() if is_so]


def texts_group(
    looks: Sequence[Look],
    samples: Sequence[Sample],
    limits: Mapping[str, int],
    *,
    fatal: bool = False,
    words: Words = PAPER,
) -> Group:
    """Lengths and problems of the texts that were read.

    Args:
        looks: the samples that were read.
        samples: all samples.
        limits: maximum number of ids per text feature, in the order of ``Look.tokens``.
        fatal: whether a build stops at an unusable text.
        words: the nouns of the inputs.
    """
    total = len(samples)
    stems = stems_of(looks, samples)
    group = Group(words.texts)
    absent = sum(not look.texts and look.text_bad is None for look in looks)
    present = [look for look in looks if look.texts or look.text_bad is not None]
    bad = {look.index: look.text_bad for look in looks if look.text_bad is not None}
    lengths = spread([look.words for look in present])
    empty = [stems[look.index] for look in present if not look.words and not look.text_bad]
    group.facts = {
        "read": len(looks),
        "of": total,
        "absent": absent,
        "several": sum(look.texts > 1 for look in looks),
        "bad": [[stems[i], *why] for i, why in bad.items()],
        "empty": empty,
        "words": lengths,
        "tokens": {},
    }
    group.ok("read", f"{len(looks):,} of {total:,}{_how(looks, total)}")
    _absent_line(group, absent, words.text)
    if group.facts["several"]:
        most = max(look.texts for look in looks)
        group.ok("several", f"{group.facts['several']:,} have more than one, at most {most:,}")
    placeholder = f"The usable part, or the empty text, replaces each. Correct the {words.texts}."
    _bad_line(group, bad, stems, placeholder=placeholder, fatal=fatal)
    if empty:
        group.names(
            "warning", _EMPTY[words.text], empty, "Their text features are those of the empty text."
        )
    group.ok("words", spread_text(lengths, "word"))
    for position, (feature, limit) in enumerate(limits.items()):
        counts = [look.tokens[position] for look in present]
        cut = sum(count > limit for count in counts)
        tokens = spread(counts)
        group.facts["tokens"][feature] = {**tokens, "limit": limit, "cut": cut}
        text = f"{spread_text(tokens, 'token')}; {cut:,} of {len(counts):,} above {limit} are cut"
        group.ok(feature, text)
    return group


def split_group(path: Path, scanned: Scan) -> tuple[Group, SplitComparison | None]:
    """The parts of a split; a split that training would refuse is an error."""
    group = Group("split")
    group.facts = {"split_json": str(path)}
    stems = [s.stem for s in scanned.samples]
    try:
        split = compare_split(path, stems)
    except InputError as error:
        group.failure("file", error)
        return group, None
    sizes = {name: len(part) for name, part in split.parts.items()}
    outside = sorted(set(range(len(stems))) - set().union(*split.parts.values()))
    overlap = {f"{a}, {b}": [stems[i] for i in shared] for a, b, shared in split.overlap()}
    unknown = {key: [str(e) for e in entries] for key, entries in split.unknown.items() if entries}
    group.facts |= {
        "parts": sizes,
        "in_none": [stems[i] for i in outside],
        "overlap": overlap,
        "unknown": unknown,
    }
    group.ok("parts", ", ".join(f"{name} {count:,}" for name, count in sizes.items()))
    for key, entries in unknown.items():
        advice = "Is this the split of another data set, or are files missing? Training refuses it."
        group.names("error", f"unknown in {key}", entries, advice)
    for pair, both in overlap.items():
        advice = "Scores on training samples are meaningless: remove them from one list."
        group.names("error", f"both in {pair}", both, advice)
    if outside:
        advice = "They are built, but training never reads them."
        group.names("warning", "in no part", [stems[i] for i in outside], advice)
    return group, split


def stems_of(looks: Sequence[Look], samples: Sequence[Sample]) -> dict[int, str]:
    """The id of each sample that was read, by index."""
    return {look.index: samples[look.index].stem for look in looks}


def _absent_line(group: Group, absent: int, noun: str) -> None:
    if absent:
        group.ok("absent", f"{absent:,} without {'an' if noun == 'image' else 'a'} {noun}")


def _bad_line(
    group: Group,
    bad: Mapping[int, tuple[str, str]],
    stems: Mapping[int, str],
    *,
    placeholder: str,
    fatal: bool,
) -> None:
    if not bad:
        group.ok("unusable", "none")
        return
    reasons = Counter(reason for reason, _ in bad.values())
    is_one = len(reasons) == 1
    named = [f"{stems[i]!r}{'' if is_one else ' ' + reason}" for i, (reason, _) in bad.items()]
    why = next(iter(reasons)) if is_one else counted(reasons)
    text = f"{len(bad):,}: {listed(named)} ({why})"
    names = [f"{stems[i]} {reason}" for i, (reason, _) in bad.items()]
    if fatal:
        advice = "--bad-sample fail stops at them: repair or remove them, or accept placeholders."
        group.lines.append(Line("error", "unusable", text, advice, names))
    else:
        group.lines.append(Line("warning", "unusable", text, placeholder, names))


def _how(looks: Sequence[Look], total: int) -> str:
    return "" if len(looks) == total else ", evenly spaced; --full reads all"
