"""torch's float32 exp and uniform draws, without torch and the same on every machine.

Crops and blur weights are exponentials, and the recipes are defined by the results of torch on a
CPU with AVX-512. There torch calls exp of MKL's vector library, which has another algorithm for
each generation of CPUs and is off by one unit in the last place for one argument in a hundred.

For AVX-512 MKL splits x into k steps of ln(2) / 32 and a remainder r, and computes exp(x) = 2^(k /
32) * (1 + r + r² / 2 + r³ / 6) with the power from a table. Below, each operation is rounded where
MKL rounds it, so the result equals MKL's to the last bit: it was equal for all 97,517,569 arguments
of the published recipe, computed with torch on such a CPU.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_STEPS = 32
# 1 / ln(2); then ln(2) in two parts, and the coefficients of r² and r³, which are not 1/2 and 1/6.
_PER_LN2 = float.fromhex("0x1.715476p+0")
_LN2 = np.float32(float.fromhex("0x1.62e43p-1")), np.float32(float.fromhex("-0x1.05c61p-29"))
_SQUARE = np.float32(float.fromhex("0x1.0001ecp-1"))
_CUBE = np.float32(float.fromhex("0x1.5557e6p-3"))
# From here on MKL uses another algorithm, which is correctly rounded for the arguments of blurs.
_LIMIT = np.float32(87.33654)


def uniform(draws: Any, low: np.float32, high: np.float32) -> Any:
    """Uniform float32 from the low 24 bits of draws, computed in double precision as in torch."""
    span = float(np.float32(high - low))
    return np.float32((draws & 0xFFFFFF) * 2.0**-24 * span + float(low))


def log(value: float) -> np.float32:
    """The natural logarithm of a value in float32, correctly rounded.

    For 3/4 and 4/3, the published bounds of the aspect ratio, torch with AVX-512 has these results.
    For others the last bit of torch's result depends on the CPU.
    """
    return np.float32(math.log(np.float32(value)))


def exp(arguments: Floats) -> Floats:
    """The exponentials of arguments below 87, float32 of the same shape."""
    is_far = np.abs(arguments) >= _LIMIT
    near = np.where(is_far, np.float32(0), arguments)
    k = np.floor(near * np.float64(_PER_LN2) * _STEPS)  # nothing is rounded: 48 bits
    steps = (k / _STEPS).astype(np.float32)
    rest = _fma(steps, -_LN2[1], _fma(steps, -_LN2[0], near))
    whole, entry = np.divmod(k.astype(np.int32), np.int32(_STEPS))
    high, low = (part[entry] for part in _powers())
    power = np.ldexp(high, whole)
    more = _fma(_fma(_CUBE, rest, _SQUARE), rest * rest, low + rest)
    found = _fma(more, power, power)
    if is_far.any():
        found[is_far] = np.exp(arguments[is_far].astype(np.float64)).astype(np.float32)
    return found


@cache
def _powers() -> tuple[Floats, Floats]:
    """2^(j / 32) in float32, and the relative rounding error."""
    with localcontext(prec=40):
        exact = [(Decimal(2).ln() * j / _STEPS).exp() for j in range(_STEPS)]
        high = [Decimal(float(np.float32(power))) for power in exact]
        low = [(power - part) / part for power, part in zip(exact, high, strict=True)]
    return np.array(high, np.float32), np.array(low, np.float32)


def _fma(a: Floats | np.float32, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """``a * b + c`` rounded once.

    The product of two float32 values is exact in double precision. An inexact sum is rounded to
    odd, so that the second rounding, to float32, equals a single rounding of the exact sum.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    other = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    is_even = total.view(np.int64) % 2 == 0
    rounded: Floats = np.where((lost != 0) & is_even, other, total).astype(np.float32)
    return rounded
