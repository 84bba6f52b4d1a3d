"""What a probe is asked for, and whether it can be done."""

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
    """What is to be probed.

    Attributes:
        store: folder of a complete store.
        labels_dir: a folder that the ``labels`` command wrote.
        split_json: the split file.
        features: names of features; None for all.
        threshold: above which a probability is a prediction; None chooses the multiple of 0.05 with
            the best micro F1 on dev, one for all classes.
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
            ConfigError: it is not between 0 and 1.
        """
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ConfigError(f"--threshold is dev or between 0 and 1, found {self.threshold}.")

    def check(self) -> None:
        """Looks at everything that is named, without torch, whose import takes seconds.

        Raises:
            ConfigError: a feature that the store does not have.
            InputError: there is no store or it is not complete, or split or labels do not fit it.
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
