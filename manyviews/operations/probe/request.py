"""The options of a probe, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ConfigError
from featurestore.imdb.label_files import read_labels
from featurestore.imdb.splits import read_split
from featurestore.reading.sources import open_source
from featurestore.storage.store import FeatureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """The options of a probe.

    Attributes:
        store: folder of a complete store.
        labels_dir: a folder that the ``labels`` command wrote.
        split_json: the split file.
        features: names of features; None for all.
        threshold: probability above which a class is predicted, for all classes; None chooses the
            multiple of 0.05 with the best micro F1 on dev.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    store: Path
    labels_dir: Path
    split_json: Path
    features: tuple[str, ...] | None = None
    threshold: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Checks the threshold.

        Raises:
            ConfigError: the threshold is not between 0 and 1.
        """
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(
                f"--threshold must be dev or a number between 0 and 1, found {self.threshold}."
            )

    def check(self) -> None:
        """Checks all files of the request without importing torch, which takes seconds.

        Raises:
            ConfigError: the store does not have a feature.
            InputError: the store is missing or not complete, or the split or labels do not match.
        """
        source = open_source(self.store)
        if isinstance(source, FeatureStore):
            source.require_complete()
        for name in self.features or ():
            if name not in source.features:
                held = ", ".join(source.features)
                raise ConfigError(f"{self.store} holds {held}, but not {name!r}.")
        read_split(self.split_json, source.stems)
        read_labels(self.labels_dir, source.stems)
