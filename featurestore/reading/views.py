"""Chooses the views of each sample in a batch.

Random choices depend on (seed, epoch, sample) alone: they are the same in any order, in any batch,
in any number of worker processes, and in a resumed run.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

import numpy as np
import numpy.typing as npt

from featurestore.errors import ConfigError

Views = int | str
# The views to read: one number for all samples, int64 [B] or [B, 2] numbers, ``all`` or ``mean``.
View = int | str | npt.NDArray[np.int64]

NAMES = ("clean", "all", "mean", "random", "pair")
_DRAWN = ("random", "pair")

# Constants of SplitMix64; see ``mix``.
_WORD = 2**64
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


@dataclass(frozen=True, slots=True)
class ViewPolicy:
    """A rule for choosing views.

    Attributes:
        views: a view's number, ``all``, ``mean`` (over all views), ``random`` (one, all equally
            likely) or ``pair`` (two different ones, all ordered pairs equally likely).
        count: the number of views of every sample, V.
        seed: the seed of ``random`` and ``pair``.
    """

    views: Views
    count: int
    seed: int = 0

    @property
    def is_drawn(self) -> bool:
        """Whether the choice is random and differs between epochs."""
        return self.views in _DRAWN

    @property
    def is_one(self) -> bool:
        """Whether the same single view is read of every sample."""
        return isinstance(self.views, int)

    def choose(self, samples: npt.NDArray[np.int64], epoch: int) -> View:
        """The views of ``samples``, int64 ``[B]``.

        Returns:
            A number, ``all`` or ``mean`` if the choice is the same for every sample; int64 ``[B]``
            for ``random`` and ``[B, 2]`` for ``pair``.
        """
        if self.views == "random":
            draws = mix(self.seed, epoch, samples)
            return (draws % np.uint64(self.count)).astype(np.int64)
        if self.views == "pair":
            return self._pairs(mix(self.seed, epoch, samples))
        return self.views

    def _pairs(self, draws: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Numbers the V * (V - 1) ordered pairs and picks one; the second view skips the first."""
        numbers = (draws % np.uint64(self.count * (self.count - 1))).astype(np.int64)
        first, second = np.divmod(numbers, self.count - 1)
        second += second >= first
        return np.stack([first, second], axis=1)


def view_policy(views: object, count: int, seed: int = 0) -> ViewPolicy:
    """The policy that ``views`` names.

    Args:
        views: ``clean`` (view 0), a view's number, ``all``, ``mean``, ``random`` or ``pair``.
        count: the number of views of every sample, V.
        seed: the seed of ``random`` and ``pair``, any integer.

    Raises:
        ConfigError: ``views`` is invalid, or there is no view of this number.
    """
    if isinstance(views, str) and views in NAMES:
        if views == "pair" and count < 2:
            raise ConfigError("views='pair' takes two different views, and there is one.")
        return ViewPolicy(0 if views == "clean" else views, count, seed)
    if isinstance(views, bool) or not isinstance(views, int | np.integer):
        raise ConfigError(f"views is a number or one of {', '.join(NAMES)}, found {views!r}.")
    if not 0 <= views < count:
        raise ConfigError(f"There are views 0 to {count - 1}, view {views} was asked for.")
    return ViewPolicy(int(views), count, seed)


def mix(seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit number per (seed, epoch, sample): SplitMix64's output function, chained.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    # The seed is mixed before the epoch is added: (1, 0) and (0, 1) must give different numbers.
    key = _scramble(_scramble(index(seed) % _WORD) ^ (index(epoch) % _WORD))
    state = samples.astype(np.uint64)
    state ^= np.uint64(key)
    state += np.uint64(_GOLDEN)  # the overflow is intended
    for shift, factor in _ROUNDS:
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(_LAST_SHIFT)
    return state


def _scramble(state: int) -> int:
    """One step of SplitMix64 for a Python integer: much faster than an array of one element."""
    state = (state + _GOLDEN) % _WORD
    for shift, factor in _ROUNDS:
        state = (state ^ (state >> shift)) * factor % _WORD
    return state ^ (state >> _LAST_SHIFT)
