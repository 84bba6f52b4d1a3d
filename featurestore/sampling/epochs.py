"""Tracks the epoch and the progress of a sampler's iterators."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Epochs:
    """The state that a sampler keeps between its iterators.

    Attributes:
        epoch: the epoch of the batch returned last, or of the next batch at the start of an epoch.
        done: the number of batches of this epoch that were returned.
        next_epoch: the epoch of the next iterator.
        next_batch: the batch at which the next iterator begins.
        loaded: whether ``next_epoch`` and ``next_batch`` come from a loaded state.
    """

    epoch: int = 0
    done: int = 0
    next_epoch: int = 0
    next_batch: int = 0
    loaded: bool = False

    def show_next(self) -> None:
        """Makes ``epoch`` and ``done`` report the position of the next iterator."""
        self.epoch, self.done = self.next_epoch, self.next_batch

    def begin(self, *, repeat: bool) -> tuple[int, int]:
        """Starts an iterator.

        Args:
            repeat: whether the following iterator repeats the same epoch.

        Returns:
            The iterator's epoch and the batch at which it begins.
        """
        start = self.next_epoch, self.next_batch
        self.next_epoch, self.next_batch = self.next_epoch + (not repeat), 0
        self.loaded = False
        return start

    def step(self, epoch: int, done: int) -> None:
        """Records that an iterator returns a batch; with several, the one used last counts."""
        self.epoch, self.done = epoch, done

    def end(self, epoch: int, *, repeat: bool) -> None:
        """Records that an iterator has returned all batches of ``epoch``."""
        self.show_next()
        if self.epoch == epoch and not repeat:
            # Lightning chose this epoch after the iterator had started, as workers read ahead.
            self.epoch, self.done = epoch + 1, 0

    def choose(self, epoch: int) -> None:
        """Sets the epoch of the next iterator; keeps a loaded position in the same epoch."""
        if not (self.loaded and epoch == self.next_epoch):
            self.next_epoch, self.next_batch, self.loaded = epoch, 0, False
        if epoch != self.epoch:
            self.show_next()

    def load(self, epoch: int, batch: int) -> None:
        """Makes the next iterator continue at a saved position."""
        self.next_epoch, self.next_batch, self.loaded = epoch, batch, True
        self.show_next()
