"""torch's float32 exp, without torch and the same on every machine.

Crops and blur weights are exponentials, and the recipe is defined by the results of torch on a CPU
with AVX-512, which are off by one unit in the last place for one argument in a hundred. No simple
rule gives these arguments, so ``exp_exceptions.npz`` lists them: among all log-ratios that can be
drawn, and among all float32 values that can be the exponent of a weight. The file was written by
``tools/exp_exceptions.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

# log(3/4) and log(4/3), correctly rounded, as in torch with AVX-512; with AVX2 the first one is the
# next float32 above.
LOG_RATIO = (np.float32(-0.28768208622932434), np.float32(0.28768211603164673))

# A uniform draw has 24 bits.
RATIO_DRAWS = 1 << 24

# Bits of -x for the exponents x of a weight, except 0. The largest x is -(1 / 2)² / 2, that of the
# neighbouring pixel for sigma = 2; from -104 down exp(x) is 0 in float32, and in torch as well.
WEIGHT_BITS = range(
    int(np.float32(0.125).view(np.uint32)),
    int(np.float32(104.0).view(np.uint32)) + 1,
)


def uniform(draws: Any, low: np.float32, high: np.float32) -> Any:
    """Uniform float32 from the low 24 bits of draws, rounded once as in torch.

    Double precision is exact here: the product has 48 bits, and its sum with ``low`` at most 53 for
    the recipe's bounds. So the conversion to float32 is the only rounding.
    """
    span = float(np.float32(high - low))
    return np.float32((draws & 0xFFFFFF) * 2.0**-24 * span + float(low))


def log_ratios(draws: Words) -> Floats:
    """The logarithm of a crop's aspect ratio for each draw."""
    ratios: Floats = uniform(draws, *LOG_RATIO)
    return ratios


def weight_arguments(bits: Words) -> Floats:
    """The exponents x for which -x has these bits."""
    return -bits.view(np.float32)


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Arguments for which torch's exp is not correctly rounded.

    Attributes:
        keys: uint32 [n], ascending: the draw of a ratio, or the bits of -x for a weight.
        up: bool [n], whether torch's result is the next float32 above instead of below.
    """

    keys: Words
    up: npt.NDArray[np.bool_]

    def units(self, keys: Words) -> npt.NDArray[np.int32]:
        """Difference of torch's exp from the correctly rounded one, in units in the last place."""
        at = self.keys.searchsorted(keys)  # the last key lies beyond all arguments
        sign = np.where(self.up[at], np.int32(1), np.int32(-1))
        units: npt.NDArray[np.int32] = sign * (self.keys[at] == keys)
        return units


@dataclass(frozen=True, slots=True)
class Exponential:
    """torch's float32 exp for the arguments that the recipe needs."""

    _ratio: Exceptions
    _weight: Exceptions

    def ratio(self, draw: int) -> float:
        """The aspect ratio of a draw."""
        drawn = np.array([draw & 0xFFFFFF], np.uint32)
        return float(_exp(log_ratios(drawn), self._ratio.units(drawn))[0])

    def weights(self, exponents: Floats) -> Floats:
        """``exp`` of the exponents of a blur's weights.

        They are 0 for the middle pixel. The nearest other one has -0.5 / sigma², which is -0.125 or
        below, because the recipe's largest sigma is 2.
        """
        return _exp(exponents, self._weight.units((-exponents).view(np.uint32)))


@cache
def exponential() -> Exponential:
    """The function with its table, which is read once per process."""
    with files(__package__).joinpath("exp_exceptions.npz").open("rb") as file, np.load(file) as t:
        return Exponential(
            *(
                _exceptions(first, t[f"{name}_steps"], t[f"{name}_up"])
                for name, first in (("ratio", 0), ("weight", WEIGHT_BITS.start))
            )
        )


def _exceptions(first: int, steps: npt.NDArray[np.uint8], up: npt.NDArray[np.uint8]) -> Exceptions:
    """Reads one list: gaps between exceptions in arguments, where 255 only extends a gap."""
    at = first - 1 + np.cumsum(steps.astype(np.int64) + (steps != 255))
    keys = np.append(at[steps != 255], 2**32 - 1).astype(np.uint32)
    return Exceptions(keys, np.unpackbits(up, count=len(keys)).astype(np.bool_))


def _exp(arguments: Floats, units: npt.NDArray[np.int32]) -> Floats:
    """The correctly rounded exp, changed by ``units`` in the last place."""
    rounded = np.exp(arguments, dtype=np.float64).astype(np.float32)
    return (rounded.view(np.int32) + units).view(np.float32)
