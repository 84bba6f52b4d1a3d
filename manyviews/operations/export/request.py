"""The options of an export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ConfigError

# File of the means and deviations that the rows were scaled by.
ZSCORE = "_zscore.npz"
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """The options of an export.

    Attributes:
        store: folder of a complete store.
        out_dir: the folder to create; it must be absent or empty.
        format: a key of ``formats.FORMATS``.
        views: numbers of views; None for all.
        features: names of features; None for all.
        dtype: dtype of the features, one of ``formats.DTYPES`` that the format supports.
        zscore: ``all``, ``train`` or ``none``, see ``scaling.scale_for``.
        split_json: the split file, for ``train``.
        labels_dir: a folder that the ``labels`` command wrote; None for no labels.
    """

    store: Path
    out_dir: Path
    format: str
    views: tuple[int, ...] | None = None
    features: tuple[str, ...] | None = None
    dtype: str = "float32"
    zscore: str = "all"
    split_json: Path | None = None
    labels_dir: Path | None = None

    @property
    def scaling(self) -> str:
        """The scaling of the rows as text, for messages and for the files' metadata."""
        if self.zscore == "none":
            return "raw rows: no z-score was applied"
        rows = "all rows" if self.zscore == "all" else "the training rows of the split"
        return f"z-scored rows: mean and deviation of {rows}, see {ZSCORE}"


def parse_views(text: str) -> tuple[int, ...]:
    """Parses a list like ``0-9,20``; ranges include both ends and may overlap.

    Raises:
        ConfigError: the text does not have that form, or a range is descending.
    """
    views: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last > 10_000_000:
            raise ConfigError(
                f"--views must be a list like 0-9,20, found {part.strip()!r} in {text!r}."
            )
        views.update(range(first, last + 1))
    return tuple(sorted(views))
