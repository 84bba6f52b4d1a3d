"""The groups about a data folder: pairs, duplicates, posters, synopses, genres and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from featurestore.errors import InputError
from featurestore.imdb.genres import CLASS_NAMES
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
from producers.decode import ImageFacts
from producers.sources.scan import Scan
from producers.sources.unused import advice, counted_reasons

# Posters of MM-IMDb are 256 pixels wide or more, and up to twice as high.
_SMALL_SIDE = 64
_MANY_PIXELS = 25_000_000
_ASPECT = 3.0


def data_group(scanned: Scan) -> Group:
    """The pairs of poster and synopsis, and all other files in the folder."""
    group = Group("data")
    group.facts = {
        "data_dir": str(scanned.path),
        "samples": len(scanned.samples),
        "unmatched_images": list(scanned.unmatched_images),
        "unmatched_texts": list(scanned.unmatched_texts),
        "left_out": [list(pair) for pair in scanned.left_out],
        "alike": [list(names) for names in scanned.alike],
    }
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
    if scanned.alike:
        pairs = [f"{image} and {text}" for image, text, _ in scanned.alike]
        group.names("warning", "look the same", pairs, next(advice((), scanned.alike)))
    others = [pair for pair in scanned.left_out if pair[1] != "shadowed"]
    if others:
        what = " ".join((f"They are not samples: {counted_reasons(others)}.", *advice(others)))
        group.names("warning", "left out", [name for name, _ in others], what)
    return group


def posters_group(
    looks: Sequence[Look], samples: Sequence[Sample], *, fatal: bool = False
) -> Group:
    """Sizes, formats and problems of the posters that were read.

    Args:
        looks: the samples that were read.
        samples: all samples.
        fatal: whether a build stops at an unusable poster.
    """
    total = len(samples)
    stems = {s.index: s.stem for s in samples}
    group = Group("posters")
    bad = {look.index: look.image_bad for look in looks if look.image_bad is not None}
    facts = {look.index: look.image for look in looks if look.image is not None}
    odd: dict[str, list[str]] = {}
    for index, image in facts.items():
        for kind in oddities(image):
            odd.setdefault(kind, []).append(stems[index])
    widths = spread([image.width for image in facts.values()])
    heights = spread([image.height for image in facts.values()])
    group.facts = {
        "read": len(looks),
        "of": total,
        "bad": [[stems[i], *why] for i, why in bad.items()],
        "odd": odd,
        "width": widths,
        "height": heights,
        "modes": dict(Counter(image.mode for image in facts.values())),
        "formats": dict(Counter(image.format for image in facts.values())),
    }
    group.ok("read", f"{len(looks):,} of {total:,}{_how(looks, total)}")
    if facts:
        group.ok("width", spread_text(widths, "pixel"))
        group.ok("height", spread_text(heights, "pixel"))
    placeholder = "A black image replaces each. Fetch the posters again."
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
    """The unusual properties of a usable poster."""
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
) -> Group:
    """Lengths and problems of the synopses that were read.

    Args:
        looks: the samples that were read.
        samples: all samples.
        limits: maximum number of ids per text feature, in the order of ``Look.tokens``.
        fatal: whether a build stops at an unusable synopsis.
    """
    total = len(samples)
    stems = {s.index: s.stem for s in samples}
    group = Group("synopses")
    bad = {look.index: look.text_bad for look in looks if look.text_bad is not None}
    words = spread([look.words for look in looks])
    empty = [stems[look.index] for look in looks if not look.words and not look.text_bad]
    group.facts = {
        "read": len(looks),
        "of": total,
        "bad": [[stems[i], *why] for i, why in bad.items()],
        "empty": empty,
        "words": words,
        "tokens": {},
    }
    group.ok("read", f"{len(looks):,} of {total:,}{_how(looks, total)}")
    placeholder = "The usable part, or the empty text, replaces each. Correct the synopses."
    _bad_line(group, bad, stems, placeholder=placeholder, fatal=fatal)
    if empty:
        group.names(
            "warning", "without a plot", empty, "Their text features are those of the empty text."
        )
    group.ok("words", spread_text(words, "word"))
    for position, (feature, limit) in enumerate(limits.items()):
        counts = [look.tokens[position] for look in looks]
        cut = sum(count > limit for count in counts)
        tokens = spread(counts)
        group.facts["tokens"][feature] = {**tokens, "limit": limit, "cut": cut}
        text = f"{spread_text(tokens, 'token')}; {cut:,} of {len(counts):,} above {limit} are cut"
        group.ok(feature, text)
    return group


def genres_group(looks: Sequence[Look], samples: Sequence[Sample]) -> Group:
    """How often each genre occurs among the synopses that were read."""
    total = len(samples)
    stems = {s.index: s.stem for s in samples}
    group = Group("genres")
    known = Counter(name for look in looks for name in look.genres)
    unknown = Counter(name for look in looks for name in look.unknown_genres)
    without = [stems[look.index] for look in looks if not look.genres]
    group.facts = {
        "read": len(looks),
        "of": total,
        "genres": {name: known[name] for name in CLASS_NAMES},
        "unknown": dict(unknown.most_common()),
        "without": without,
    }
    group.ok("most frequent", counted(known) or "none")
    absent = [name for name in CLASS_NAMES if not known[name]]
    if absent and len(looks) == total:
        group.warn(
            "never", ", ".join(absent), "No sample has them: a classifier cannot learn them."
        )
    if unknown:
        group.warn(
            "unknown",
            counted(unknown),
            "They are not among the paper's 23 genres, and are ignored.",
        )
    if without:
        advice = "Their labels are all zero."
        if len(without) == total:
            advice = "A build does not need genres; `labels` refuses a data set without one."
        group.names("warning", "none known", without, advice)
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
