"""A store of every schema number that ever was: today's is read, all others are refused clearly.

``python -m tools.make_schema_store`` made today's; of schema 1 there is what a reader looks at
first, the root's ``zarr.json`` as that version wrote it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import FeatureDataset
from featurestore.errors import StoreMismatchError
from featurestore.storage.store import SCHEMA, FeatureStore
from featurestore.verify.store import verify
from tests.conftest import tree_digest
from tools.make_schema_store import STORES

CURRENT = STORES / f"schema-{SCHEMA}"
OLDER = list(range(1, SCHEMA))


def test_each_number_has_its_store() -> None:
    names = sorted(folder.name for folder in STORES.iterdir())
    expected = sorted(f"schema-{number}" for number in range(1, SCHEMA + 1))
    assert names == expected, "python -m tools.make_schema_store makes that of a new number"
    for folder in STORES.iterdir():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert size < 50_000, folder.name


def test_the_store_of_todays_number_is_read() -> None:
    store = FeatureStore(CURRENT / "store")
    assert store.complete
    recorded: dict[str, dict[str, Any]] = json.loads((CURRENT / "rows.json").read_bytes())
    assert set(recorded) == set(store.features)
    dataset = FeatureDataset(
        CURRENT / "store",
        store.features,
        views="all",
        bad_samples="include",
        zscore="none",
    )
    items = [dataset[index] for index in range(len(dataset))]
    for feature, expected in recorded.items():
        rows = np.stack([item[feature].numpy() for item in items])
        assert rows.shape == (store.spec.samples, store.spec.views, store.spec.dims[feature])
        for place, values in expected["rows"].items():
            sample, view = map(int, place.split())
            assert [float(value).hex() for value in rows[sample, view]] == values
        assert hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest() == expected["sha256"]


def test_the_store_of_todays_number_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(CURRENT / "store", path)
    assert verify(path).findings == []
    assert tree_digest(path) == tree_digest(CURRENT / "store")


@pytest.mark.parametrize("number", OLDER)
def test_an_older_number_is_refused_with_what_to_do(number: int) -> None:
    path = STORES / f"schema-{number}/store"
    with pytest.raises(StoreMismatchError) as caught:
        FeatureStore(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"{number}" in message.replace(str(path), "")
    assert f"{SCHEMA}" in message.replace(str(path), "")
    assert "Read it with the version that wrote it, or build it again." in message


@pytest.mark.parametrize("number", OLDER)
def test_verify_names_the_older_number(number: int) -> None:
    path = STORES / f"schema-{number}/store"
    [names] = verify(path).findings
    assert f"schema {number}, this version reads {SCHEMA}" in str(names)
