"""Messages about the entries of a data folder that become no sample."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath

from featurestore.system.links import FOLLOW
from featurestore.wording import amount

# The meaning of each reason, singular and plural, in the order of the message.
REASONS: Mapping[str, tuple[str, str]] = {
    "suffix": ("file with another suffix", "files with another suffix"),
    "outside": ("link out of the folder", "links out of the folder"),
    "dangling": ("link to a missing file", "links to missing files"),
    "directory": ("subfolder", "subfolders"),
    "not-a-file": ("FIFO, socket or device", "FIFOs, sockets or devices"),
    "dotfile": ("dotfile", "dotfiles"),
    "unlisted": ("image that no metadata lists", "images that no metadata lists"),
    "shadowed": ("second file of one stem", "second files of one stem"),
}
# Common suffixes of pictures; the format of a poster is detected from its bytes, not its suffix.
_PICTURES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jp2"),
    *(".jfif", ".jpe", ".heic"),
)
_SUFFIXES_SHOWN = 3
_LOOKED_AT = 1000

LeftOut = Sequence[tuple[str, str]]


def counted_reasons(left_out: LeftOut) -> str:
    """What was left out and why, in one line.

    Two examples: ``1 subfolder: 'train'``, and ``40 files with another suffix (.png 39, .txt 1),
    such as '1.png'``. Several reasons are joined by semicolons.
    """
    counts = Counter(reason for _, reason in left_out)
    example = {reason: name for name, reason in reversed(left_out)}
    parts = []
    for reason, nouns in REASONS.items():
        if counts[reason] == 1:
            parts.append(f"1 {nouns[0]}: {example[reason]!r}")
        elif counts[reason]:
            suffixes = _suffixes(left_out) if reason == "suffix" else ""
            parts.append(f"{amount(counts[reason], *nouns)}{suffixes}, such as {example[reason]!r}")
    return "; ".join(parts)


def _suffixes(left_out: LeftOut) -> str:
    """The most frequent suffixes of the files left out for theirs: `` (.png 39, .txt 1)``."""
    counts = Counter(PurePath(name).suffix for name, reason in left_out if reason == "suffix")
    shown = [f"{suffix or 'none'} {n:,}" for suffix, n in counts.most_common(_SUFFIXES_SHOWN)]
    return f" ({', '.join(shown)}{', …' if len(counts) > len(shown) else ''})"


def advice(left_out: LeftOut, alike: Sequence[tuple[str, str, str]] = ()) -> Iterator[str]:
    """Lines of advice on how to use more of a data folder, most helpful first."""
    counts = Counter(reason for _, reason in left_out)
    if counts["outside"]:
        yield (
            f"{_links(counts['outside'])} out of the folder: {FOLLOW} (follow_links = true in a "
            "TOML file) follows such links."
        )
    if counts["dangling"]:
        yield (
            f"{_links(counts['dangling'])} to missing files: fetch them (git annex get, dvc pull)."
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
            f"Rename posters such as {pictures[0]!r} to .jpg: a poster is found by this suffix, "
            "and its format is detected from its bytes."
        )


def _links(count: int) -> str:
    return f"{count:,} links lead" if count > 1 else "1 link leads"


def alike_stems(
    images: Mapping[str, str], texts: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """Finds unmatched posters and synopses whose stems look the same.

    Args:
        images: the file name of each stem of a poster without a synopsis.
        texts: the file name of each stem of a synopsis without a poster.

    Returns:
        Sorted tuples of a poster, a synopsis and their difference, ``Unicode form`` or ``case``;
        a name is in at most one of them.
    """
    pairs: list[tuple[str, str, str]] = []
    for how, key in (("Unicode form", _composed), ("case", _caseless)):
        used = {name for pair in pairs for name in pair[:2]}
        by_key = {key(stem): name for stem, name in sorted(texts.items()) if name not in used}
        for stem, name in sorted(images.items()):
            other = None if name in used else by_key.pop(key(stem), None)
            if other is not None:
                pairs.append((name, other, how))
    return tuple(sorted(pairs))


def _composed(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


def _caseless(stem: str) -> str:
    return _composed(_composed(stem).casefold())


def subfolder_with_both(
    data_dir: Path, names: Sequence[str], images: tuple[str, ...], texts: tuple[str, ...]
) -> str | None:
    """The first subfolder that seems to hold posters and synopses, or None.

    Looks at the names of at most 1,000 entries of each subfolder.
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
