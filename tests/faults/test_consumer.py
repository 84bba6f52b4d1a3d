"""Backbones that fail in the middle of a build: earlier chunks stay, this one leaves no trace.

``tests/consumers`` holds the same faults against a batcher alone; here they go through ``build``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.build import build
from featurestore.errors import BackboneError, ProducerError
from featurestore.verify.store import verify
from tests.conftest import ROOT, tree_digest
from tests.faults.fakes import (
    BATCH,
    CHUNK,
    CHUNKS,
    DIMS,
    SAMPLES,
    VIEWS,
    FakeText,
    committed,
    config,
    loaded,
    make,
    make_data,
    recovers,
)
from tests.faults.harness import COUNTS

ROWS = CHUNK * VIEWS  # of a chunk that is full


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("consumer") / "data")


@pytest.fixture(scope="module")
def golden(data: Path) -> Path:
    store = data.parent / "golden"
    make(data, store)
    assert committed(store) == list(range(CHUNKS))
    return store


def spoiled(at: int, value: float) -> Any:
    def act(honest: torch.Tensor) -> torch.Tensor:
        honest[at, 5] = value
        return honest

    return act


def raising(error: Exception) -> Any:
    def act(_honest: torch.Tensor) -> torch.Tensor:
        raise error

    return act


# What the backbone does at one batch, and what the error says of it. Texts are sorted by length:
# the batch's row 0 is the longest text of the chunk, which its last sample has.
FAULTS: dict[str, tuple[Any, str]] = {
    "exception": (raising(ValueError("not today")), r"failed on rows 0 to {end} .*\n.*not today"),
    "device lost": (
        raising(RuntimeError("CUDA error: an illegal memory access was encountered\nadvice")),
        r"illegal memory access was encountered$",
    ),
    "out of memory": (
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nadvice")),
        r"batch size 8 of {feature} needs .*\n.*--batch-size {feature}=4 in a new build",
    ),
    "shape": (
        lambda honest: honest[:, 1:],
        r"{feature} returned torch.float32 \[{rows}, {short}\](.|\n)* expected .*\[{rows}, ",
    ),
    "rows": (
        lambda honest: honest[1:],
        r"{feature} returned torch.float32 \[{end}, (.|\n)* expected .*\[{rows}, ",
    ),
    "dtype": (lambda honest: honest.half(), r"{feature} returned torch.float16"),
    "no tensor": (lambda honest: honest.numpy(), r"{feature} returned a ndarray"),
    "nan": (spoiled(0, float("nan")), r"not finite in 1 of 16 rows, first for sample {last}, view"),
    "inf": (spoiled(0, float("inf")), r"not finite in 1 of 16 rows, first for sample {last}, view"),
    "-inf": (spoiled(0, -float("inf")), r"not finite in 1 of 16 rows, first for sample {last}"),
    "float16 overflow": (
        lambda honest: (honest * 1e3).half().float(),
        r"not finite in \d+ of 16 rows(.|\n)*--dtype bfloat16",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_its_chunk_and_no_other(
    data: Path, golden: Path, tmp_path: Path, name: str
) -> None:
    """The fault occurs in each backbone in turn, at different chunks; every run resumes."""
    act, message = FAULTS[name]
    store, fired = tmp_path / "store", 0
    for number, (feature, chunk) in enumerate((("blip2_text", 1), ("clip_text", 3))):
        first = len(committed(store)) if store.exists() else 0
        seen, rows = 0, 0  # embedded before, and in the batch that is spoiled

        def fault(
            _fake: FakeText, ids: torch.Tensor, honest: Any, at: int = (chunk - first) * ROWS
        ) -> Any:
            nonlocal fired, seen, rows
            if seen != at:
                seen += len(ids)
                return honest()
            fired, rows = fired + 1, len(ids)
            if name != "out of memory":  # which is tried again, with the same rows
                seen += rows
            return act(honest())

        with loaded({feature: fault}), pytest.raises(BackboneError) as caught:
            build(config(data, store, resume=number > 0))
        last = CHUNK * chunk + CHUNK - 1
        expected = message.format(
            feature=feature, last=last, rows=rows, end=rows - 1, short=DIMS[feature] - 1
        )
        assert feature in str(caught.value)
        caught.match(expected)
        assert caught.value.exit_code == 1
        assert len(str(caught.value).splitlines()) <= 4
        # Both arrays end at the same chunk, and nothing of the failed one is on disk.
        assert committed(store) == list(range(chunk))
        for feature_name in DIMS:
            names = {p.name for p in (store / feature_name).iterdir()}
            assert names == {"zarr.json", *(f"c.{c}.0.0" for c in range(chunk))}
        assert verify(store).findings == []
    # Out of memory is tried once more at the same size; nothing else is.
    assert fired == (4 if name == "out of memory" else 2)
    COUNTS["backbone " + name] += fired
    recovers(data, store, golden)


def test_out_of_memory_for_a_moment_changes_nothing(
    data: Path, golden: Path, tmp_path: Path
) -> None:
    """Another process used the GPU's memory: the batch is tried again, never split."""
    asked: list[list[list[int]]] = []
    fired: list[int] = []

    def fault(_fake: FakeText, ids: torch.Tensor, honest: Any) -> Any:
        asked.append(ids.tolist())
        if len(asked) in (3, 7):
            fired.append(len(asked))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return honest()

    with loaded({"clip_text": fault}):
        build(config(data, tmp_path / "store"))
    assert fired == [3, 7]
    COUNTS["backbone out of memory for a moment"] += len(fired)
    for failed in fired:
        assert asked[failed] == asked[failed - 1]  # the whole batch, and nothing else
    assert any(len(batch) > BATCH for batch in asked)
    assert tree_digest(tmp_path / "store") == tree_digest(golden)


def test_a_feature_of_zeros_is_a_feature(data: Path, tmp_path: Path) -> None:
    """A zero vector is finite and has a z-score: it is accepted."""

    def zeros(_fake: FakeText, _ids: torch.Tensor, honest: Any) -> Any:
        return torch.zeros_like(honest())

    with loaded({"clip_text": zeros}):
        build(config(data, tmp_path / "store"))
    assert verify(tmp_path / "store").findings == []


def test_a_slow_backbone_blocks_its_producers_and_a_fast_one_waits(
    data: Path, golden: Path, tmp_path: Path
) -> None:
    """Samples that are ready never number more than the slots, however slow the backbone is."""
    filled: list[int] = []
    slots = 3

    def slow(_fake: FakeText, _ids: torch.Tensor, honest: Any) -> Any:
        time.sleep(0.3)
        return honest()

    def watch(event: str, facts: Mapping[str, Any]) -> None:
        if event == "sample":
            filled.append(facts["filled"])

    with loaded({"clip_text": slow}):
        build(config(data, tmp_path / "store", slots=slots, producers=2), [watch])
    assert len(filled) == SAMPLES
    assert 1 <= max(filled) <= slots
    assert tree_digest(tmp_path / "store") == tree_digest(golden)
    report = make(data, tmp_path / "fast", slots=slots)
    assert report.waited_s > 0


# Producers that are slow, and meet a defect in the 14th sample, of the fourth chunk.
SLOW = """
import time
from producers import decode

honest = decode.text

def text(data):
    time.sleep(0.2)
    if b'"w1 w2' in data and DEFECT:
        raise RuntimeError("a defect")
    return honest(data)

decode.text = text
"""


def slow_producers(patch: pytest.MonkeyPatch, site: Path, *, defect: bool) -> None:
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW.replace("DEFECT", str(defect)))
    patch.setenv("PYTHONPATH", f"{site}:{ROOT}")


def test_texts_are_embedded_while_the_next_samples_are_awaited(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producers would be idle while all of a chunk's texts are embedded at its end."""
    slow_producers(monkeypatch, tmp_path / "site", defect=False)
    taken, rows = 0, [0] * SAMPLES

    def watch(event: str, _facts: Mapping[str, Any]) -> None:
        nonlocal taken
        taken += event == "sample"

    def note(_fake: FakeText, ids: torch.Tensor, honest: Any) -> Any:
        rows[taken - 1] += len(ids)
        time.sleep(0.3)  # longer than a sample takes
        return honest()

    with loaded({"clip_text": note, "blip2_text": note}):
        build(config(data, tmp_path / "store"), [watch])
    assert sum(rows) == SAMPLES * VIEWS * len(DIMS)
    # After a chunk's last sample its own texts begin, and nothing is left of the chunk before.
    for chunk in range(CHUNKS - 2):
        made = sum(rows[CHUNK * (chunk + 1) - 1 : CHUNK * (chunk + 2) - 1])
        assert made == ROWS * len(DIMS), rows
        assert rows[CHUNK * (chunk + 1) - 1] < made, rows
    assert tree_digest(tmp_path / "store") == tree_digest(golden)


def test_a_producers_defect_costs_its_chunk_and_no_other(
    data: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the previous chunk, most of whose texts were not embedded yet."""
    store = tmp_path / "store"

    def slow(_fake: FakeText, _ids: torch.Tensor, honest: Any) -> Any:
        time.sleep(0.5)
        return honest()

    with monkeypatch.context() as patch, loaded({"clip_text": slow}):
        slow_producers(patch, tmp_path / "site", defect=True)
        with pytest.raises(ProducerError, match="a defect"):
            build(config(data, store))
    [bad] = [i for i in range(SAMPLES) if b'"w1 w2' in (data / f"{i:07d}.json").read_bytes()]
    assert committed(store) == list(range(bad // CHUNK))
    recovers(data, store, golden)
