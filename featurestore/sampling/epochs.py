"""Which epoch an iterator of batches takes, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Epochs:
    """What a sampler remembers between its iterators.

    Attributes:
        epoch: of the batch handed out last, or of the next one where none of its epoch was.
        done: batches of it that were handed out.
        next_epoch: what the next iterator to begin takes.
        next_batch: the batch with which it begins.
        loaded: whether a state decided on these two.
    """

    epoch: int = 0
    done: int = 0
    next_epoch: int = 0
    next_batch: int = 0
    loaded: bool = False

    def show_next(self) -> None:
        """Reports the next iterator's place, though that has not begun yet."""
        self.epoch, self.done = self.next_epoch, self.next_batch

    def begin(self, *, repeat: bool) -> tuple[int, int]:
        """Starts an iterator.

        Args:
            repeat: whether the one after it takes the same epoch.

        Returns:
            Its epoch and the batch with which it begins.
        """
        begun = self.next_epoch, self.next_batch
        self.next_epoch, self.next_batch = self.next_epoch + (not repeat), 0
        self.loaded = False
        return begun

    def step(self, epoch: int, done: int) -> None:
        """An iterator hands out a batch; of several, the one used last is reported."""
        self.epoch, self.done = epoch, done

    def end(self, epoch: int, *, repeat: bool) -> None:
        """An iterator has handed out all batches of ``epoch``."""
        self.show_next()
        if self.epoch == epoch and not repeat:
            # It was chosen when this iterator had begun: by Lightning, where workers read ahead.
            self.epoch, self.done = epoch + 1, 0

    def choose(self, epoch: int) -> None:
        """Has the next iterator take ``epoch``; a loaded place in the same epoch stays."""
        if not (self.loaded and epoch == self.next_epoch):
            self.next_epoch, self.next_batch, self.loaded = epoch, 0, False
        if epoch != self.epoch:
            self.show_next()

    def load(self, epoch: int, batch: int) -> None:
        """Has the next iterator continue where a state was saved."""
        self.next_epoch, self.next_batch, self.loaded = epoch, batch, True
        self.show_next()
