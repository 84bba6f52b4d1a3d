"""What a data folder holds that becomes no sample, in words, and what to do about it."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath

from featurestore.system.links import FOLLOW

# Reason: what it means, in the order in which it is said.
REASONS: Mapping[str, str] = {
    "suffix": "another suffix",
    "outside": "a link that leaves the folder",
    "dangling": "a link that leads nowhere",
    "directory": "a subfolder",
    "not-a-file": "a FIFO, socket or device",
    "dotfile": "a dotfile",
    "shadowed": "the stem has another file",
}
# Suffixes under which people keep posters; what a file holds is decided by its bytes all the same.
_PICTURES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2"),
    *(".jfif", ".jpe", ".heic"),
)
_SUFFIXES_SHOWN = 3
_LOOKED_AT = 1000

LeftOut = Sequence[tuple[str, str]]


def counted_reasons(left_out: LeftOut) -> str:
    """``40 another suffix (.png 39, .txt 1), as '1.png'; 2 a subfolder, as 'train'``."""
    counts = Counter(reason for _, reason in left_out)
    example = {reason: name for name, reason in reversed(left_out)}
    said = []
    for reason, meaning in REASONS.items():
        if counts[reason]:
            which = _suffixes(left_out) if reason == "suffix" else ""
            said.append(f"{counts[reason]:,} {meaning}{which}, as {example[reason]!r}")
    return "; ".join(said)


def _suffixes(left_out: LeftOut) -> str:
    counts = Counter(PurePath(name).suffix for name, reason in left_out if reason == "suffix")
    shown = [f"{suffix or 'none'} {n:,}" for suffix, n in counts.most_common(_SUFFIXES_SHOWN)]
    return f" ({', '.join(shown)}{', …' if len(counts) > len(shown) else ''})"


def advice(left_out: LeftOut, alike: Sequence[tuple[str, str, str]] = ()) -> Iterator[str]:
    """What a user can do so that more of a folder is used, most helpful first."""
    counts = Counter(reason for _, reason in left_out)
    if counts["outside"]:
        yield (
            f"{_links(counts['outside'])} out of the folder: {FOLLOW} (follow_links = true in a "
            "TOML file) follows such links."
        )
    if counts["dangling"]:
        yield (
            f"{_links(counts['dangling'])} nowhere: fetch what is meant (git annex get, dvc pull)."
        )
    if alike:
        image, text, how = alike[0]
        more = f", and {len(alike) - 1:,} more pairs" if len(alike) > 1 else ""
        yield f"{image!r} and {text!r}{more} differ only in {how}: rename one to the other's stem."
    pictures = [
        name
        for name, reason in left_out
        if reason == "suffix" and PurePath(name).suffix.lower() in _PICTURES
    ]
    if pictures:
        yield (
            f"Rename posters such as {pictures[0]!r} to .jpg: that is the suffix which is looked "
            "for, and the bytes decide about the format."
        )


def _links(count: int) -> str:
    return f"{count:,} links lead" if count > 1 else "1 link leads"


def alike_stems(
    images: Mapping[str, str], texts: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Posters and synopses without each other whose stems look the same.

    Args:
        images: the file name of each stem of a poster without a synopsis.
        texts: the file name of each stem of a synopsis without a poster.

    Returns:
        (poster, synopsis, in what they differ: ``Unicode form`` or ``case``), sorted; a name is in
        at most one of them.
    """
    found: list[tuple[str, str, str]] = []
    for how, key in (("Unicode form", _composed), ("case", _caseless)):
        used = {name for pair in found for name in pair[:2]}
        by_key = {key(stem): name for stem, name in sorted(texts.items()) if name not in used}
        for stem, name in sorted(images.items()):
            other = None if name in used else by_key.pop(key(stem), None)
            if other is not None:
                found.append((name, other, how))
    return tuple(sorted(found))


def _composed(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


def _caseless(stem: str) -> str:
    return _composed(_composed(stem).casefold())


def subfolder_with_both(
    data_dir: Path, names: Sequence[str], images: tuple[str, ...], texts: tuple[str, ...]
) -> str | None:
    """The first of a folder's subfolders that seems to hold what was looked for, or None.

    Of each at most 1,000 entries are looked at, by their names.
    """
    for name in names[:_LOOKED_AT]:
        try:
            with os.scandir(data_dir / name) as entries:
                inside = [entry.name for entry in islice(entries, _LOOKED_AT)]
        except OSError:
            continue
        if all(any(n.endswith(kind) for n in inside) for kind in (images, texts)):
            return name
    return None
