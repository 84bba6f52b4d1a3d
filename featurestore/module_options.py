"""The datamodule's keywords."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.errors import ConfigError

_VIEW_MODES = ("clean", "view_k", "all", "mean")


@dataclass(frozen=True, slots=True)
class ModuleOptions:
    """The published factories' keywords; see ``datamodule.make_datamodule``."""

    batch_size: int
    include_labels: bool
    num_workers: int
    pin_memory: bool
    normalize: str
    view_mode: str
    view_k: int

    def check(self, views: int) -> None:
        """Raises ConfigError for a value that means nothing."""
        if self.normalize not in ("none", "train_split"):
            raise ConfigError(f"normalize is none or train_split, found {self.normalize!r}.")
        if self.view_mode not in _VIEW_MODES:
            raise ConfigError(
                f"view_mode is one of {', '.join(_VIEW_MODES)}, found {self.view_mode!r}."
            )
        if not 0 <= self.view_k < views:
            raise ConfigError(f"view_k is 0 to {views - 1}, found {self.view_k}.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, found {self.batch_size}.")

    @property
    def mode(self) -> str | int:
        """The view policy of ``DomainRows``."""
        return {"clean": 0, "view_k": self.view_k}.get(self.view_mode, self.view_mode)
