"""Builds into a compressed store: stopped, resumed, extended, and refused for another codec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import StoreMismatchError
from featurestore.storage.store import FeatureStore, record_crc32c
from featurestore.training.dataset import FeatureDataset
from featurestore.verify.store import verify
from tests.conftest import tree_digest
from tests.faults.fakes import DIMS, SAMPLES, make, make_data


class Stop(Exception):
    """Ends a build after a chunk."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("codec") / "data")


@pytest.fixture(scope="module")
def golden(data: Path) -> Path:
    make(data, data.parent / "golden", codec="zstd")
    return data.parent / "golden"


def interrupted(data: Path, store: Path, **changes: Any) -> None:
    def stop(event: str, facts: Mapping[str, Any]) -> None:
        if event == "chunk" and facts["chunk"] == 1:
            raise Stop

    with pytest.raises(Stop):
        make(data, store, (stop,), **changes)


@pytest.mark.parametrize("said", [None, "zstd"])
def test_resumed_to_the_same_bytes(data: Path, golden: Path, tmp_path: Path, said: str) -> None:
    store = tmp_path / "store"
    interrupted(data, store, codec="zstd")
    assert 1 < len(FeatureStore(store).ledger) < 5
    make(data, store, resume=True, codec=said)
    assert tree_digest(store) == tree_digest(golden)
    assert verify(store).findings == []
    assert FeatureStore(store).fingerprint["codec"] == "zstd"
    assert "version.numcodecs" in FeatureStore(store).fingerprint


@pytest.mark.parametrize(("started", "now"), [("zstd", "none"), ("none", "zstd")])
def test_another_codec_is_refused(data: Path, tmp_path: Path, started: str, now: str) -> None:
    store = tmp_path / "store"
    interrupted(data, store, codec=started)
    before = tree_digest(store)
    with pytest.raises(StoreMismatchError, match=f"--codec {started}") as caught:
        make(data, store, resume=True, codec=now)
    assert (caught.value.field, caught.value.stored, caught.value.new) == ("codec", started, now)
    assert tree_digest(store) == before


def forget(store: Path) -> None:
    """Makes it the store of a version that knew of no codecs."""
    path = store / "zarr.json"
    document = json.loads(path.read_bytes())
    record = document["attributes"]["manyviews"]
    del record["shape"]["codec"], record["fingerprint"]["codec"]
    record["crc32c"] = record_crc32c(record)
    path.write_text(json.dumps(document))


def test_a_store_that_does_not_say_has_none(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    interrupted(data, store)
    forget(store)
    with pytest.raises(StoreMismatchError, match="another codec"):
        make(data, store, resume=True, codec="zstd")
    make(data, store, resume=True, codec="none")
    assert verify(store).findings == []
    with pytest.raises(StoreMismatchError, match="another codec"):  # nor is anything added to it
        make(data, store, resume=True, codec="zstd", views=8)
    assert len(FeatureDataset(store)) == SAMPLES


def test_what_is_added_is_compressed_as_well(data: Path, tmp_path: Path) -> None:
    once, grown = tmp_path / "once", tmp_path / "grown"
    make(data, once, codec="zstd")
    first, second = DIMS
    make(data, grown, codec="zstd", features=(first,))
    make(data, grown, resume=True, features=(first, second))
    assert tree_digest(grown) == tree_digest(once)
    make(data, grown, resume=True, views=8)
    assert FeatureStore(grown).spec.codec == "zstd"
    assert verify(grown).findings == []
