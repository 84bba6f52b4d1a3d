"""Copies batches to the device that uses them, one batch ahead of the computation.

    for batch in DeviceBatches(train, FeatureBatchSampler(train, 512), "cuda"):
        ...

On a GPU, a batch is copied through a page-locked buffer on a separate stream during the computation
of the previous batch. On a CPU the interface is the same, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from featurestore.errors import ConfigError
from featurestore.sampling.samplers import FeatureBatchSampler
from featurestore.sampling.wrappers import epoch_holders, read_batch
from featurestore.wording import first_line

Batch = dict[str, torch.Tensor]


class Source(Protocol):
    """A source of batches: any object that can be indexed, or torch's wrappers of one.

    If it has a method ``batch(items)``, as ``FeatureDataset`` and ``ResidentFeatures`` have, that
    reads several items at once.
    """

    def __len__(self) -> int:
        """The number of items."""


def usable_device(device: torch.device | str) -> torch.device:
    """The device, with its index; ``cuda`` without an index is the current CUDA device.

    Raises:
        ConfigError: the device is neither a CPU nor a CUDA device of this machine.
    """
    try:
        asked = torch.device(device)
    except RuntimeError as e:
        raise ConfigError(f"No device: {first_line(e)}") from e
    if asked.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked.type != "cuda" or (asked.index or 0) >= count:
        raise ConfigError(
            f"Features go to a CPU or to one of the {count} CUDA devices that this torch "
            f"({torch.__version__}) finds, not to {asked}."
        )
    return torch.device("cuda", torch.cuda.current_device() if asked.index is None else asked.index)


class DeviceBatches:
    """The batches of an epoch as dictionaries of tensors on a device; iterate it once per epoch.

    There are no workers: reading a batch is a copy from mapped memory. Before a batch is returned,
    the next one has been read and its copy to the device has started.

    Attributes:
        sampler: the sampler that chooses the items; Lightning calls its ``set_epoch``.
        device: the device of the tensors.
    """

    def __init__(
        self, source: Source, sampler: FeatureBatchSampler, device: torch.device | str = "cuda"
    ) -> None:
        """Prepares batches of ``source``.

        Args:
            source: a ``FeatureDataset``; or ``ResidentFeatures`` on the same device; or torch's
                ``Subset`` or ``ConcatDataset`` of them.
            sampler: the sampler that chooses the items.
            device: ``cpu``, ``cuda`` or ``cuda:1``.

        Raises:
            ConfigError: the device does not exist.
        """
        self.sampler, self.device = sampler, usable_device(device)
        self._source, self._holders = source, epoch_holders(source)
        self._lane = _Lane(self.device) if self.device.type == "cuda" else None
        self._state: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    @property
    def batch_sampler(self) -> FeatureBatchSampler:
        """The sampler: Lightning reads this attribute of loaders that have a ``sampler``."""
        return self.sampler

    def __iter__(self) -> Iterator[Batch]:
        """An iterator over the batches of the epoch that the sampler chooses."""
        walk = iter(self.sampler)
        self._state = None
        return self._walk(walk)

    def _walk(self, walk: Iterator[list[int]]) -> Iterator[Batch]:
        ahead: tuple[_Sent, dict[str, Any]] | None = None
        for items in walk:
            self._set_epoch_beneath()  # the sampler may belong to another dataset
            # The sampler is one batch ahead of the training; the state is kept with its batch.
            following = self._send(items), self.sampler.state_dict()
            if ahead is not None:
                yield self._hand_out(*ahead)
            ahead = following
        if ahead is not None:
            yield self._hand_out(*ahead)
        self._state = None

    def _set_epoch_beneath(self) -> None:
        for holder in self._holders:
            holder.set_epoch(self.sampler.epoch)

    def _send(self, items: list[int]) -> _Sent:
        # A batch read in inference mode may be used, and its buffers refilled, after that mode.
        with torch.inference_mode(False):
            batch = read_batch(self._source, items)
            return _Sent(batch, None) if self._lane is None else self._lane.send(batch)

    def _hand_out(self, sent: _Sent, state: dict[str, Any]) -> Batch:
        self._state = state
        return sent.batch if self._lane is None else self._lane.ready(sent)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the sampler and of the source."""
        self.sampler.set_epoch(epoch)
        self._set_epoch_beneath()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the batch returned last, without the batch read ahead."""
        return self.sampler.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator continue at the position that :meth:`state_dict` saved.

        Raises:
            ConfigError: the state does not match the sampler.
        """
        self.sampler.load_state_dict(state)
        self._state = None


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch whose copy to the device has started.

    Attributes:
        batch: tensors on the device by name, not to be read before ``copied``.
        copied: the event that marks the end of the copy; None on a CPU.
    """

    batch: Batch
    copied: torch.cuda.Event | None


class _Lane:
    """Two sets of page-locked buffers, used in turn, and the stream that copies them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copier = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Batch, Batch] = ({}, {})
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def send(self, batch: Batch) -> _Sent:
        """Starts to copy a batch; a batch that is already on the device is not copied."""
        if all(tensor.device == self._device for tensor in batch.values()):
            return _Sent(batch, self._event(torch.cuda.current_stream(self._device)))
        turn, self._turn = self._turn, 1 - self._turn
        before = self._copied[turn]
        if before is not None:
            before.synchronize()  # the device may still be reading the buffers
        # The new tensors' memory comes from the pool of the copying stream: the allocator does not
        # put memory there that another stream may still be using.
        with torch.cuda.stream(self._copier):
            sent = {
                name: _filled(self._buffers[turn], name, rows).to(self._device, non_blocking=True)
                for name, rows in batch.items()
            }
        copied = self._copied[turn] = self._event(self._copier)
        return _Sent(sent, copied)

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """An event that marks the end of all work submitted to a stream so far."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def ready(self, sent: _Sent) -> Batch:
        """The batch, ready for work submitted to the device's current stream from now on."""
        if sent.copied is not None:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_event(sent.copied)
            for tensor in sent.batch.values():
                # Delays the reuse of the tensor's memory until this stream's work is done.
                tensor.record_stream(compute)
        return sent.batch


def _filled(buffers: Batch, name: str, rows: torch.Tensor) -> torch.Tensor:
    """A page-locked copy of ``rows`` in the buffer called ``name``, which grows if necessary."""
    buffer = buffers.get(name)
    if buffer is None or buffer.dtype != rows.dtype or buffer.numel() < rows.numel():
        buffer = buffers[name] = torch.empty(rows.numel(), dtype=rows.dtype, pin_memory=True)
    return buffer[: rows.numel()].view(rows.shape).copy_(rows)
