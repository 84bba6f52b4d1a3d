"""Calls the C kernels with random sizes and parameters, many of them invalid, for a given time.

Usage:
    python -m tests.producers.kernels.fuzz_kernels compiled.so SECONDS SEED

Made to run with a build that sanitizers watch. Valid calls are compared with the libraries'
kernels; the others must be refused, and change nothing.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from producers.kernels import draws, library

SIDES = (1, 2, 3, 11, 12, 31, 32, 33, 64, 97)
HOSTILE_NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300)
HOSTILE_INTEGERS = (-1, -(2**31), 2**31, -(2**63), 2**63 - 1, 2**64)
HOSTILE_OBJECTS = (None, b"", b"abc", bytearray(12), 5, "planes", [[[1]]], memoryview(b"abcdef"))
REFUSALS = (ValueError, TypeError, OverflowError, MemoryError)
LEAST_ROUNDS = 300
# What a call may leave allocated on the whole: pieces of Python's own lists and strings.
LEAK_BYTES = 100_000


def load(path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader("compiled", path)
    spec = importlib.util.spec_from_file_location("compiled", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def bytes_in(rng: random.Random, *shape: int) -> np.ndarray:
    """Random bytes, or few values so that ties and grey pixels are many."""
    pixels = np.frombuffer(rng.randbytes(int(np.prod(shape))), np.uint8).reshape(shape).copy()
    return pixels if rng.random() < 0.7 else pixels // 86 * 85


def valid(rng: random.Random) -> tuple[str, list[Any]]:
    """A call whose result must equal that of the libraries; it changes the last array."""
    height, width = rng.choice(SIDES), rng.choice(SIDES)
    planes = bytes_in(rng, 3, height, width)
    name = rng.choice(("resize", "brightness", "contrast", "saturation", "hue", "gray", "blur"))
    if name == "resize":
        poster = bytes_in(rng, rng.choice(SIDES) * rng.choice((1, 5, 13)), rng.choice(SIDES), 3)
        w, h = rng.randint(1, poster.shape[1]), rng.randint(1, poster.shape[0])
        left, top = rng.randint(0, poster.shape[1] - w), rng.randint(0, poster.shape[0] - h)
        # Pillow takes such a strip's rows first; the recipes never ask for one.
        if h > 100 * w and height < h:
            h = 100 * w
        return name, [poster, (left, top, w, h), rng.choice((2, 3)), rng.random() < 0.5, planes]
    if name == "hue":
        return name, [planes, float(np.float32(rng.uniform(-0.5, 0.5)))]
    if name in ("brightness", "contrast", "saturation"):
        factor = rng.choice((rng.uniform(0, 2), rng.uniform(-300, 300), 0.0, 1.0))
        return name, [planes, float(np.float32(factor))]
    if name == "blur":
        taps = 2 * rng.randint(0, min(height, width, 17) - 1) + 1
        taps = min(taps, 2 * min(height, width) - 1)
        return name, [planes, *draws.blur_weights([float(np.float32(rng.uniform(0.1, 2)))], taps)]
    return name, [planes]


def call(kernels: Any, name: str, arguments: list[Any], *, prepared: bool = False) -> None:
    """Calls an operation; the first argument of ``resize`` is prepared first."""
    if name == "resize" and not prepared:
        arguments = [kernels.prepare(arguments[0]), *arguments[1:]]
    getattr(kernels, name)(*arguments)


def target(name: str, arguments: list[Any]) -> int:
    """Which argument the call changes."""
    return len(arguments) - 1 if name in ("resize", "interleave") else 0


def spoiled(rng: random.Random) -> tuple[str, list[Any]]:
    """A call with one thing wrong."""
    name, arguments = valid(rng)
    if name in ("contrast", "gray") and rng.random() < 0.5:
        name, arguments = "interleave", [arguments[0], np.zeros((2, 97, 5), np.uint8)]
    at = rng.randrange(len(arguments))
    value = arguments[at]
    if isinstance(value, np.ndarray):
        arguments[at] = rng.choice(
            (
                value[..., :0],
                np.repeat(value, 2, axis=-1)[..., ::2],
                value.astype(np.float64),
                value.astype(np.int8),
                value.reshape(-1)[:-1],
                np.broadcast_to(value[:1], (5, *value.shape[1:])),
                np.zeros((0, *value.shape[1:]), value.dtype),
                value[None],
                np.full(value.shape, np.nan, np.float32),
                *HOSTILE_OBJECTS,
            )
        )
    elif isinstance(value, tuple):
        box = list(value)
        box[rng.randrange(4)] = rng.choice((*HOSTILE_INTEGERS, 10_000, "1", 0.5))
        arguments[at] = tuple(box[: rng.choice((3, 4, 4, 4, 4))])
    elif isinstance(value, int):
        arguments[at] = rng.choice((0, 1, 4, -1, 2**40, 2.5, None))
    else:
        arguments[at] = rng.choice((*HOSTILE_NUMBERS, "1", None))
    if rng.random() < 0.1:
        arguments = arguments[:-1] or [1, 2]
    return name, arguments


def too_large(kernels: ModuleType) -> None:
    """A failed allocation of scratch memory is a MemoryError. The allocator's limit is 64 MiB."""
    high, wide = np.zeros((40_000, 1, 3), np.uint8), np.zeros((3, 1, 999), np.uint8)
    large, weight = np.zeros((3, 3000, 3000), np.uint8), np.ones(1, np.float32)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: kernels.prepare(np.zeros((5000, 5000, 3), np.uint8)),
        lambda: kernels.resize(kernels.prepare(high), (0, 0, 1, 40_000), 3, False, wide),
        lambda: kernels.blur(large, weight),
    )
    for attempt in attempts:
        try:
            attempt()
        except MemoryError:
            continue
        raise AssertionError("memory beyond the limit was had")


def allocated() -> int:
    """Number of bytes that the sanitizer's allocator has allocated."""
    counter = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
    counter.restype = ctypes.c_size_t
    return int(counter())


def check_for_leaks(kernels: ModuleType, seed: int) -> None:
    """Makes the same calls twice, first to fill caches; the second time no memory may leak."""
    for _ in range(2):
        before = allocated()
        for number in range(300):
            rng = random.Random(f"{seed} {number}")
            one_valid(kernels, rng)
            one_spoiled(kernels, rng)
        for _ in range(5):
            too_large(kernels)
    left = allocated() - before
    assert left < LEAK_BYTES, f"{left} bytes are left"


def one_valid(kernels: ModuleType, rng: random.Random) -> str:
    name, arguments = valid(rng)
    expected = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    call(library, name, expected)
    call(kernels, name, arguments)
    changed = target(name, arguments)
    shown = [a if not isinstance(a, np.ndarray) else a.shape for a in arguments]
    np.testing.assert_array_equal(arguments[changed], expected[changed], f"{name}{shown}")
    pixels = np.empty((*arguments[changed].shape[1:], 3), np.uint8)
    kernels.interleave(arguments[changed], pixels)
    np.testing.assert_array_equal(pixels, arguments[changed].transpose(1, 2, 0))
    return name


def one_spoiled(kernels: ModuleType, rng: random.Random) -> str:
    name, arguments = spoiled(rng)
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    try:
        call(kernels, name, arguments, prepared=rng.random() < 0.2)
    except REFUSALS:
        for now, then in zip(arguments, before, strict=True):
            if isinstance(now, np.ndarray):
                np.testing.assert_array_equal(now, then)
        return "refused"
    return "accepted"


def main() -> None:
    path, seconds, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    kernels = load(path)
    too_large(kernels)
    check_for_leaks(kernels, seed)
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    # However slow the machine is: so many rounds that each kernel has had its turns.
    while time.monotonic() < end or counts.total() < 2 * LEAST_ROUNDS:
        rng = random.Random(f"{seed} {counts.total()}")
        with np.errstate(all="ignore"):
            counts[one_valid(kernels, rng)] += 1
            counts[one_spoiled(kernels, rng)] += 1
    print(*(f"{name}={count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
