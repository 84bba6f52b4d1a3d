"""The demo data's store, and the other files that training needs."""

import json
from pathlib import Path

import pytest

from featurestore.imdb.labels import write_labels
from featurestore.imdb.materialize import materialize
from featurestore.storage.store import FeatureStore


@pytest.fixture(scope="session")
def built(demo_data: Path, demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``features`` (a store), ``embeddings``, ``labels`` and ``imdb``; read only."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "imdb").symlink_to(demo_data)
    (folder / "features").symlink_to(demo_store)
    store = FeatureStore(demo_store)
    materialize(store, folder / "embeddings")
    documents = [json.loads((demo_data / f"dataset/{s}.json").read_text()) for s in store.stems]
    write_labels(store.stems, documents, folder / "labels")
    return folder
