"""Which code does the operations on pixels: the C extension, or libraries where it is not built."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from producers.kernels import library

try:
    from producers.kernels import compiled
except ImportError:
    _HAS_COMPILED = False
else:
    _HAS_COMPILED = True

Planes = npt.NDArray[np.uint8]


class Kernels(Protocol):
    """The operations; planes are uint8 ``[3, height, width]`` and changed in place."""

    def prepare(self, poster: npt.NDArray[np.uint8], /) -> Any:
        """Uint8 ``[H, W, 3]`` in the form that ``resize`` takes, once for all views."""

    def resize(
        self,
        prepared: Any,
        box: tuple[int, int, int, int],
        filter: int,
        mirrored: bool,
        planes: Planes,
        /,
    ) -> None:
        """Resize the box (left, top, width, height) of a poster, or its mirror image, to planes."""

    def brightness(self, planes: Planes, factor: float, /) -> None:
        """Blend with black."""

    def contrast(self, planes: Planes, factor: float, /) -> None:
        """Blend with the mean gray."""

    def saturation(self, planes: Planes, factor: float, /) -> None:
        """Blend with the gray picture."""

    def hue(self, planes: Planes, factor: float, /) -> None:
        """Turn the colour circle by this part of it."""

    def gray(self, planes: Planes, /) -> None:
        """Make gray."""

    def blur(self, planes: Planes, weights: npt.NDArray[np.float32], /) -> None:
        """Convolve with the square of these weights."""

    def interleave(self, planes: Planes, pixels: npt.NDArray[np.uint8], /) -> None:
        """Copy to pixels, uint8 ``[height, width, 3]``."""


def has_compiled() -> bool:
    """Whether the C extension was built and loads."""
    return _HAS_COMPILED


def implementation(*, compiled_code: bool) -> Kernels:
    """The C extension or the libraries.

    Raises:
        RuntimeError: the extension is asked for but was not built.
    """
    if not compiled_code:
        return library
    if not _HAS_COMPILED:
        raise RuntimeError("the C extension producers.kernels.compiled was not built")
    return compiled
