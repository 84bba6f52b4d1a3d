"""Parallel batches: each in any thread, with one intra-op thread of torch, and stopped in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from consumers.device.computing import ComputePool, Order
from consumers.engine.batching import ImageBatcher, TextBatcher
from featurestore.errors import BackboneError, ConfigError
from tests.producers.test_pool import eventually

CPU = torch.device("cpu")
LONG_S = 60.0


def test_every_thread_computes_with_one_intra_op_thread_and_the_caller_keeps_its_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ComputePool(2, CPU) as pool:
            both = threading.Barrier(2)

            def ask() -> tuple[int, int]:
                both.wait(LONG_S)  # each thread has one of them
                return torch.get_num_threads(), threading.get_ident()

            found = [f.result(LONG_S) for f in [pool.submit(Order.TEXTS, ask) for _ in range(2)]]
        assert [count for count, _ in found] == [1, 1]
        assert len({ident for _, ident in found} - {threading.get_ident()}) == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_images_come_before_texts_and_each_in_order() -> None:
    done: list[int] = []
    with ComputePool(1, CPU) as pool:
        started, go = threading.Event(), threading.Event()

        def block() -> None:
            started.set()
            go.wait(LONG_S)

        pool.submit(Order.TEXTS, block)
        assert started.wait(LONG_S)
        for number, order in enumerate([Order.TEXTS, Order.IMAGES, Order.TEXTS, Order.IMAGES]):
            pool.submit(order, partial(done.append, number))
        go.set()
    assert done == [1, 3, 0, 2]


def test_an_error_costs_its_chunk_and_those_after_it_and_no_chunk_before() -> None:
    """Queued batches of earlier chunks are still computed; those of the failed chunk are not."""

    def fail() -> None:
        raise ValueError("of a batch")

    done: list[str] = []
    go = threading.Event()

    def submit(pool: ComputePool) -> None:
        pool.submit(Order.IMAGES, lambda: go.wait(LONG_S))
        before = pool.submit(Order.TEXTS, lambda: done.append("before"))
        pool.end_chunk()
        failed = pool.submit(Order.IMAGES, fail)
        same = pool.submit(Order.IMAGES, lambda: done.append("same"))
        pool.end_chunk()
        after = pool.submit(Order.IMAGES, lambda: done.append("after"))
        go.set()
        before.result(LONG_S)
        assert failed.exception() is same.exception() is after.exception()
        pool.submit(Order.IMAGES, lambda: None)

    with pytest.raises(ValueError, match="of a batch"), ComputePool(1, CPU) as pool:
        submit(pool)
    assert done == ["before"]


def test_an_interruption_cancels_what_is_queued_and_stops_what_runs() -> None:
    started = threading.Event()

    def long() -> None:
        started.set()
        forward_pass(LONG_S)

    futures: list[Future[None]] = []

    def interrupt(pool: ComputePool) -> None:
        futures.extend(pool.submit(Order.TEXTS, long) for _ in range(2))
        assert started.wait(LONG_S)
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ComputePool(1, CPU) as pool:
        interrupt(pool)
    assert time.monotonic() - begin < LONG_S / 2
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)


def test_an_interruption_while_the_rest_is_computed_stops_it() -> None:
    begin = time.monotonic()

    def long() -> None:
        time.sleep(0.2)  # by now the block has most likely ended
        os.kill(os.getpid(), signal.SIGINT)
        forward_pass(LONG_S)

    pool = ComputePool(1, CPU)
    with pytest.raises(KeyboardInterrupt), pool:
        computing = pool.submit(Order.TEXTS, long)
    threads = [each.thread.ident for each in pool._threads]
    assert time.monotonic() - begin < LONG_S / 2
    assert isinstance(computing.exception(0), CancelledError)
    # Thread.is_alive is wrong of a thread whose join was interrupted.
    eventually(lambda: not set(threads) & set(sys._current_frames()))


def test_other_modules_are_not_disturbed_by_a_stop() -> None:
    """The settings of other threads of the process, during and after the block."""
    module, started = torch.nn.Identity(), threading.Event()

    def long() -> None:
        started.set()
        forward_pass(LONG_S)

    def interrupt(pool: ComputePool) -> None:
        pool.submit(Order.TEXTS, long)
        assert started.wait(LONG_S)
        raise KeyboardInterrupt

    with ComputePool(1, CPU) as other:
        beside = other.submit(Order.TEXTS, lambda: forward_pass(0.5))
        with pytest.raises(KeyboardInterrupt), ComputePool(1, CPU) as pool:
            interrupt(pool)
        assert beside.result(LONG_S) is None
    assert torch.equal(module(torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("way_out", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_backbone_that_leaves_its_thread_is_an_error(way_out: type[BaseException]) -> None:
    def leave() -> None:
        raise way_out("of a library")

    with pytest.raises(BackboneError, match="of a library"), ComputePool(1, CPU) as pool:
        pool.submit(Order.TEXTS, leave).result(LONG_S)


def test_a_thread_that_cannot_be_set_up_fails_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_on: bool) -> None:
        raise RuntimeError("no such device")

    def submit(pool: ComputePool) -> None:
        while True:  # what is submitted before the threads are set up fails as well
            pool.submit(Order.TEXTS, lambda: None).result(LONG_S)

    monkeypatch.setattr(torch, "set_grad_enabled", broken)
    with pytest.raises(RuntimeError, match="no such device"), ComputePool(2, CPU) as pool:
        submit(pool)


def test_threads_that_the_system_does_not_give_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before, honest = threading.active_count(), threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "compute-2":
            raise RuntimeError("can't start new thread")
        honest(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with (
        pytest.raises(ConfigError, match=r"(?s)5 compute threads.*--threads"),
        ComputePool(5, CPU),
    ):
        pass
    eventually(lambda: threading.active_count() == before)


def test_nothing_that_is_computed_keeps_gradients() -> None:
    weight = torch.ones(2, requires_grad=True)
    with ComputePool(1, CPU) as pool:
        assert not pool.submit(Order.TEXTS, lambda: weight * 2).result(LONG_S).requires_grad
    assert (weight * 2).requires_grad


def forward_pass(seconds: float) -> None:
    """A forward pass of many modules, one after the other."""
    module, end = torch.nn.Identity(), time.monotonic() + seconds
    while time.monotonic() < end:
        module(torch.ones(1))
        time.sleep(0.001)


def test_idle_seconds_are_those_without_a_task() -> None:
    with ComputePool(2, CPU) as pool:
        go = threading.Event()
        both = threading.Barrier(3)
        for _ in range(2):
            pool.submit(Order.TEXTS, lambda: (both.wait(LONG_S), go.wait(LONG_S)))
        both.wait(LONG_S)
        before = pool.idle_s
        time.sleep(0.2)
        assert pool.idle_s == before
        go.set()
        while pool.idle_s < before + 0.2:
            time.sleep(0.01)


@pytest.mark.parametrize("feature", ["clip_image", "clip_text", "blip2_image", "blip2_text"])
def test_any_number_of_threads_gives_the_same_bytes(backbone: Any, feature: str) -> None:
    """State that a model keeps between its layers is separate for each thread."""
    loaded, rng = backbone(feature), np.random.default_rng(3)
    found = set()
    pixels = rng.integers(0, 256, (40, 224, 224, 3), dtype=np.uint8)
    ids = rng.integers(5, 50, (40, 128), dtype=np.int32)
    lengths = rng.integers(1, 129, 40, dtype=np.int32)
    for threads in (1, 2, 5):
        with ComputePool(threads, CPU) as pool:
            for _ in range(2):
                if feature.endswith("image"):
                    images = ImageBatcher(loaded, 3, 40, pool)
                    images.add(pixels[0], pixels[1:])
                    found.add(images.launch().take().tobytes())
                else:
                    texts = TextBatcher(loaded, 1, 40, pool)
                    limit = loaded.text.max_length
                    wide = np.zeros((40, limit), np.int32)
                    wide[:, :128] = ids[:, :limit]
                    texts.add(wide, lengths)
                    found.add(texts.launch().take().tobytes())
    assert len(found) == 1
