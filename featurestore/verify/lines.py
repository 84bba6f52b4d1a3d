"""Parses lines of the ledger for ``verify``, independently of the code that writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import google_crc32c

_LINE_END = b', "crc32c": "'
# A complete line. No JSON string can contain its end, because the quotes would be escaped.
_WHOLE = re.compile(rb'.*?, "crc32c": "[0-9a-f]{8}"\}', re.DOTALL)
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")
_MODALITIES = ("image", "text")


def read_line(line: bytes) -> dict[str, Any]:
    """The line as an object; empty if its checksum does not match or its form is invalid."""
    text, mark, tail = line.rpartition(_LINE_END)
    if not mark or tail != b'%08x"}' % google_crc32c.value(text):
        return {}
    try:
        value = json.loads(line)
        files, samples, bad = value["files"], value["samples"], value["bad"]
        sound = type(value["chunk"]) is int and all(len(sample) == 3 for sample in samples)
        sound &= all(len(committed) == 2 for committed in files.values())
        sound &= all(len(entry) == 4 for entry in bad)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return value if sound else {}


def unended_line(tail: bytes) -> bytes:
    """The complete line at the start of ``tail``, the bytes after the file's last line feed.

    Empty if ``tail`` is the beginning of a line or exactly one line, as a killed build leaves it.
    Otherwise the line feed after the line was damaged.
    """
    line = _WHOLE.match(tail)
    return b"" if line is None or line.end() == len(tail) else line.group()


def present_samples(body: dict[str, Any], modality: str) -> list[bool]:
    """Whether each sample of a line has an input of this modality, usable or not."""
    position = _MODALITIES.index(modality)
    return [sample[position] is not None for sample in body["samples"]]


def usable_samples(body: dict[str, Any], first: int, modality: str) -> int:
    """The number of samples of a line whose input of this modality gave rows of its own."""
    position = _MODALITIES.index(modality)
    bad = {index for index, listed, _, _ in body["bad"] if listed == modality}
    return sum(
        bool(sample[position]) and index not in bad and (modality == "image" or sample[2] > 0)
        for index, sample in enumerate(body["samples"], first)
    )


def sample_problems(body: dict[str, Any], first: int, *, may_lack: bool) -> Iterator[str]:
    """Contradictions in what a line records about its samples.

    Every input either has a digest, or is absent, or is listed as bad with a reason. If no feature
    uses images, none of the chunk was read.

    Args:
        body: the line as an object.
        first: the index of the chunk's first sample.
        may_lack: whether samples of the collection may lack an input.
    """
    bad = body["bad"]
    listed = [(index, modality) for index, modality, _, _ in bad]
    if len(set(map(str, listed))) != len(listed):
        yield "an input is listed twice"
    for index, modality, reason, _ in bad:
        known = type(index) is int and 0 <= index - first < len(body["samples"])
        if not known or modality not in _MODALITIES or not reason:
            yield f"a bad input {[index, modality, reason]} that cannot be"
    looked_at = {"image": any(sample[0] != "" for sample in body["samples"]), "text": True}
    for index, (image, text, words) in enumerate(body["samples"], first):
        if type(words) is not int or words < 0:
            yield f"sample {index} has {words!r} words"
        elif text is None and words:
            yield f"sample {index} has {words} words and no text"
        for modality, digest in zip(_MODALITIES, (image, text), strict=True):
            if digest is None and may_lack:
                if (index, modality) in listed:
                    yield f"sample {index}: its {modality} is both absent and bad"
            elif not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                yield f"sample {index}: its {modality}'s SHA-256 is {digest!r}"
            elif not digest and looked_at[modality] and (index, modality) not in listed:
                yield f"sample {index}: its {modality} was not read, and no reason is given"
