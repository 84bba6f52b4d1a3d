"""The two implementations of the pixel operations: the C extension, and Pillow with numpy."""

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
    """The pixel operations. Planes are uint8 ``[3, height, width]`` and are changed in place."""

    def prepare(self, poster: npt.NDArray[np.uint8], /) -> Any:
        """Convert a poster, uint8 ``[H, W, 3]``, to the form that ``resize`` takes."""

    def resize(
        self,
        prepared: Any,
        box: tuple[int, int, int, int],
        filter: int,
        mirrored: bool,
        planes: Planes,
        /,
    ) -> None:
        """Resize a box (left, top, width, height) of a poster to planes, and maybe mirror it."""

    def brightness(self, planes: Planes, factor: float, /) -> None:
        """Blend with black."""

    def contrast(self, planes: Planes, factor: float, /) -> None:
        """Blend with the mean gray."""

    def saturation(self, planes: Planes, factor: float, /) -> None:
        """Blend with the gray image."""

    def hue(self, planes: Planes, factor: float, /) -> None:
        """Rotate the hue by ``factor`` of the full circle."""

    def gray(self, planes: Planes, /) -> None:
        """Convert to gray."""

    def blur(self, planes: Planes, weights: npt.NDArray[np.float32], /) -> None:
        """Convolve with the outer product of these weights."""

    def interleave(self, planes: Planes, pixels: npt.NDArray[np.uint8], /) -> None:
        """Copy planes to pixels, uint8 ``[height, width, 3]``."""


def has_compiled() -> bool:
    """Whether the C extension was built and can be imported."""
    return _HAS_COMPILED


def implementation(*, compiled_code: bool) -> Kernels:
    """The C extension or the libraries.

    Raises:
        RuntimeError: ``compiled_code`` is true and the extension was not built.
    """
    if not compiled_code:
        return library
    if not _HAS_COMPILED:
        raise RuntimeError("the C extension producers.kernels.compiled was not built")
    return compiled
