"""Batches on the device they are computed with, one ahead of the computation.

    for batch in DeviceBatches(train, FeatureBatchSampler(train, 512), "cuda"):
        ...

On a GPU a batch goes through a page-locked buffer and over a stream of its own, while the batch
before it is computed. On a CPU the interface is the same and nothing is copied.
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
    """What batches are read from: anything that can be indexed, and torch's wrappers of it.

    A ``batch(items)`` reads several at once, as ``FeatureDataset`` and ``ResidentFeatures`` do.
    """

    def __len__(self) -> int:
        """Items that there are."""


def usable_device(device: torch.device | str) -> torch.device:
    """The device, with its index; ``cuda`` alone is the current one.

    Raises:
        ConfigError: it is neither a CPU nor a CUDA device of this machine.
    """
    try:
        found = torch.device(device)
    except RuntimeError as e:
        raise ConfigError(f"No device: {first_line(e)}") from e
    if found.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type != "cuda" or (found.index or 0) >= count:
        raise ConfigError(
            f"Features go to a CPU or to one of the {count} CUDA devices that this torch "
            f"({torch.__version__}) finds, not to {found}."
        )
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


class DeviceBatches:
    """The batches of an epoch as dictionaries of tensors on a device; iterate it once per epoch.

    There are no workers: reading a batch is a copy out of mapped memory. The batch after the one
    in use has been read and is on its way before the one in use is handed out.

    Attributes:
        sampler: chooses the items; Lightning finds its ``set_epoch`` here.
        device: where the tensors are.
    """

    def __init__(
        self, source: Source, sampler: FeatureBatchSampler, device: torch.device | str = "cuda"
    ) -> None:
        """Makes batches of ``source``.

        Args:
            source: a ``FeatureDataset``; or ``ResidentFeatures`` of the same device; or torch's
                ``Subset`` or ``ConcatDataset`` of them.
            sampler: which items.
            device: ``cpu``, ``cuda`` or ``cuda:1``.

        Raises:
            ConfigError: there is no such device.
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
        """The sampler: Lightning looks for one where it finds a ``sampler``."""
        return self.sampler

    def __iter__(self) -> Iterator[Batch]:
        """An iterator; which epoch it takes is the sampler's, see there."""
        walk = iter(self.sampler)
        self._state = None
        return self._walk(walk)

    def _walk(self, walk: Iterator[list[int]]) -> Iterator[Batch]:
        ahead: tuple[_Sent, dict[str, Any]] | None = None
        for items in walk:
            self._set_epoch_beneath()  # the sampler may be of another dataset
            # The sampler is a batch further than who trains; this is where the latter will be.
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
        # What is read ahead may be used after inference mode, and buffers are filled again then.
        with torch.inference_mode(False):
            batch = read_batch(self._source, items)
            return _Sent(batch, None) if self._lane is None else self._lane.send(batch)

    def _hand_out(self, sent: _Sent, state: dict[str, Any]) -> Batch:
        self._state = state
        return sent.batch if self._lane is None else self._lane.ready(sent)

    def set_epoch(self, epoch: int) -> None:
        """Makes this the current epoch of sampler and source."""
        self.sampler.set_epoch(epoch)
        self._set_epoch_beneath()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the batch handed out last, whatever has been read ahead."""
        return self.sampler.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next epoch to be iterated continues where :meth:`state_dict` was asked.

        Raises:
            ConfigError: the state does not fit the sampler.
        """
        self.sampler.load_state_dict(state)
        self._state = None


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way.

    Attributes:
        batch: its tensors on the device, not to be read before ``copied``.
        copied: comes once they are there; None on a CPU.
    """

    batch: Batch
    copied: torch.cuda.Event | None


class _Lane:
    """Two sets of page-locked buffers, used in turn, and the stream on which they are copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copier = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Batch, Batch] = ({}, {})
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def send(self, batch: Batch) -> _Sent:
        """Starts to copy a batch; what is on the device already stays as it is."""
        if all(tensor.device == self._device for tensor in batch.values()):
            return _Sent(batch, self._event(torch.cuda.current_stream(self._device)))
        turn, self._turn = self._turn, 1 - self._turn
        before = self._copied[turn]
        if before is not None:
            before.synchronize()  # until then the device reads it
        # Memory of the new tensors comes from the copier's pool: the allocator gives nothing to it
        # that another stream may still be using.
        with torch.cuda.stream(self._copier):
            sent = {
                name: _filled(self._buffers[turn], name, rows).to(self._device, non_blocking=True)
                for name, rows in batch.items()
            }
        copied = self._copied[turn] = self._event(self._copier)
        return _Sent(sent, copied)

    def _event(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        """What comes when all that a stream was given so far is done."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def ready(self, sent: _Sent) -> Batch:
        """The batch, for work that the device's current stream is given from now on."""
        if sent.copied is not None:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_event(sent.copied)
            for tensor in sent.batch.values():
                # Once dropped, its memory is the copier's again only after this stream's work.
                tensor.record_stream(compute)
        return sent.batch


def _filled(buffers: Batch, name: str, rows: torch.Tensor) -> torch.Tensor:
    """A page-locked copy of ``rows``, in the buffer of that name, which grows where it must."""
    buffer = buffers.get(name)
    if buffer is None or buffer.dtype != rows.dtype or buffer.numel() < rows.numel():
        buffer = buffers[name] = torch.empty(rows.numel(), dtype=rows.dtype, pin_memory=True)
    return buffer[: rows.numel()].view(rows.shape).copy_(rows)
