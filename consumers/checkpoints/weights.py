"""A checkpoint's files: which of them loading needs, and whether the weights are complete."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from consumers.checkpoints.legacy_weights import legacy_problem

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
OPEN_CLIP_CONFIG = "open_clip_config.json"
_SMALL_FILES = (
    "config.json",
    OPEN_CLIP_CONFIG,
    *PROCESSOR_FILES,
    *TOKENIZER_FILES,
    *_SENTENCE_FILES,
)

_Formats = tuple[tuple[str, tuple[str, ...]], ...]

# transformers' own order of preference: whole file, then index and shards.
_WEIGHTS: _Formats = (
    ("model.safetensors", ()),
    ("model.safetensors.index.json", ("model-*.safetensors",)),
    ("pytorch_model.bin", ()),
    ("pytorch_model.bin.index.json", ("pytorch_model-*.bin",)),
)
# open_clip's weight files, which a repository often has beside those of transformers.
_OPEN_CLIP_WEIGHTS: _Formats = (
    ("open_clip_model.safetensors", ()),
    ("open_clip_pytorch_model.safetensors", ()),
    ("open_clip_pytorch_model.bin", ()),
)
# sentence-transformers keeps its modules in numbered folders: 0_Transformer, 1_Pooling, 2_Dense.
_MODULE_FOLDER = re.compile(r"\d+_\w*")


def wanted_files(names: Iterable[str], *, open_clip: bool = False) -> tuple[str, ...]:
    """The files of a repository that loading needs, with only one format of the weights.

    Args:
        names: relative POSIX names of all files.
        open_clip: whether open_clip loads them.
    """
    formats = _OPEN_CLIP_WEIGHTS if open_clip else _WEIGHTS
    folders: dict[str, list[str]] = {}
    for name in names:
        parent, _, base = name.rpartition("/")
        if not parent or is_module_folder(parent):
            folders.setdefault(parent, []).append(base)
    return tuple(
        sorted(
            f"{parent}/{base}" if parent else base
            for parent, bases in folders.items()
            for base in (*_small(bases), *_weights(bases, formats))
        )
    )


def _small(bases: list[str]) -> list[str]:
    return [b for b in bases if any(fnmatchcase(b, pattern) for pattern in _SMALL_FILES)]


def _weights(bases: list[str], formats: _Formats) -> list[str]:
    for first, shards in formats:
        if first in bases:
            return [first, *(b for b in bases if any(fnmatchcase(b, s) for s in shards))]
    return []


def is_module_folder(name: str) -> bool:
    """Whether a folder has the usual name of a sentence-transformers module."""
    return bool(_MODULE_FOLDER.fullmatch(name))


def is_weight(base: str) -> bool:
    """Whether a file of this name holds or indexes weights."""
    return any(
        base == first or any(fnmatchcase(base, s) for s in rest)
        for first, rest in (*_WEIGHTS, *_OPEN_CLIP_WEIGHTS)
    )


def weight_problem(folder: Path, name: str) -> str:
    """The problem of a weight file, judged by its header and size; ``""`` if there is none.

    Raises:
        OSError: the file cannot be read.
    """
    path = folder / name
    if name.endswith(".index.json"):
        return _index_problem(path)
    if name.endswith(".bin"):
        return "" if zipfile.is_zipfile(path) else legacy_problem(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > size - 8:
            return f"is truncated, or no safetensors file ({size:,} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return "has a header that is not safetensors"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"has {size:,} bytes, expected {expected:,}"


def _index_problem(path: Path) -> str:
    try:
        shards = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "is not an index of weights"
    absent = sorted(s for s in shards if not (path.parent / str(s)).is_file())
    return f"names {absent[0]}, which is missing" if absent else ""
