"""The one rule by which randomness is dealt out: to (base seed, sample, view, purpose)."""

from __future__ import annotations

import hashlib
from typing import Literal

Salt = Literal["image", "text", "labels"]


def view_seed(base: int, index: int, view: int, salt: Salt) -> int:
    """The published recipe's seed of one view.

    Args:
        base: the run's seed; 123 in the paper.
        index: the sample's position in the sorted list of stems.
        view: the view's number; view 0 is clean and draws nothing.
        salt: what is drawn, so that a sample's image, text and label noise are independent.

    Returns:
        An integer in [0, 2**32).
    """
    return int(hashlib.sha256(f"{base}:{index}:{view}:{salt}".encode()).hexdigest()[:8], 16)
