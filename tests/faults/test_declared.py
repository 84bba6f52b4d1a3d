"""Resuming with a changed custom backbone: every field of its table is compared.

``test_changes.py`` holds the paper's features; here is one that the configuration declares, by an
adapter that says no more of itself than it must.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from consumers.backbones.config import BackboneConfig
from consumers.build import build
from consumers.config import BuildConfig
from featurestore.errors import StoreMismatchError
from featurestore.storage.store import FeatureStore
from tests.conftest import tree_digest
from tests.faults import fakes
from tests.faults.harness import COUNTS
from tests.faults.test_changes import edit

OWN = BackboneConfig(
    adapter="tests.faults.fakes:declared_text", model="here/weights-1", batch_size=8
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A value that may not change: the named field, and its stored value."""

    value: Any
    field: str
    stored: object


# A value alone is one that may change.
CASES: dict[str, list[Any]] = {
    "adapter": [Refused("tests.faults.fakes:other_text", "adapter", OWN.adapter)],
    "model": ["elsewhere/weights-1", Refused("here/weights-2", "weights_sha256", None)],
    "pooling": [Refused("cls", "pooling", "")],
    "size": [Refused(8, "size", 0)],
    "max_length": [32, Refused(16, "max_length", 32)],
    "batch_size": [0, Refused(4, "batch_size", 8)],
}


def config(data: Path, store: Path, own: BackboneConfig, **changes: Any) -> BuildConfig:
    values: dict[str, Any] = {"features": ("own",), "backbones": {"own": own}, "batch_sizes": {}}
    return fakes.config(data, store, **values | changes)


def stop(event: str, _facts: Mapping[str, Any]) -> None:
    if event == "chunk":
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The data, a golden store, and one that was stopped after its first chunks."""
    folder = tmp_path_factory.mktemp("declared")
    data, golden, started = (folder / name for name in ("data", "golden", "started"))
    fakes.make_data(data)
    build(config(data, golden, OWN))
    with pytest.raises(KeyboardInterrupt):
        build(config(data, started, OWN), [stop])
    assert 1 <= len(fakes.committed(started)) < fakes.CHUNKS
    return data, golden, started


def test_no_field_of_a_declared_backbone_is_forgotten() -> None:
    assert set(CASES) == {field.name for field in fields(BackboneConfig)}
    assert all(any(isinstance(case, Refused) for case in cases) for cases in CASES.values())


@pytest.mark.parametrize("name", [field.name for field in fields(BackboneConfig)])
def test_each_field_of_a_declared_backbone_changed(
    stores: tuple[Path, Path, Path], tmp_path: Path, name: str
) -> None:
    data, golden, started = stores
    for number, case in enumerate(CASES[name]):
        store = tmp_path / str(number)
        shutil.copytree(started, store)
        value = case.value if isinstance(case, Refused) else case
        asked = config(data, store, replace(OWN, **{name: value}), resume=True)
        COUNTS["configuration changed"] += 1
        if not isinstance(case, Refused):
            build(asked)
            assert tree_digest(store) == tree_digest(golden)
            continue
        with pytest.raises(StoreMismatchError, match=rf"another own\.{case.field}\.") as caught:
            build(asked)
        if case.stored is not None:
            assert f"stored: {case.stored}\n  now:    {value}\n" in str(caught.value)
        assert tree_digest(store) == tree_digest(started)


def test_another_tokenizer_is_refused(
    stores: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights' hash does not cover it: the fingerprint has the specification of inputs."""
    data, _, started = stores
    shutil.copytree(started, tmp_path / "store")
    other = json.loads(fakes.tokenizer())
    vocabulary = other["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    monkeypatch.setattr(fakes, "tokenizer", lambda: json.dumps(other))
    with pytest.raises(StoreMismatchError, match=r"another own\.input_sha256\."):
        build(config(data, tmp_path / "store", OWN, resume=True))
    COUNTS["configuration changed"] += 1
    assert tree_digest(tmp_path / "store") == tree_digest(started)


def test_each_field_of_its_fingerprint_is_compared(
    stores: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    data, _, started = stores
    stored = FeatureStore(started).fingerprint
    own = [name for name in stored if name.startswith("own.")]
    kept = {"model", "weights_sha256", "dtype", "batch_size", "adapter", "pooling", "size"}
    assert {name.removeprefix("own.") for name in own} == kept | {"max_length", "input_sha256"}
    for name in own:
        value = stored[name]
        store = tmp_path / name
        shutil.copytree(started, store)
        edit(store, name, value + 1 if isinstance(value, int) else f"{value}x")
        asked = config(data, store, OWN, resume=True, dtype="float32")
        if name == "own.model":  # says nothing that the weights' hash does not
            build(asked)
            continue
        with pytest.raises(StoreMismatchError, match=rf"another {name}\."):
            build(asked)
        COUNTS["fingerprint changed"] += 1
