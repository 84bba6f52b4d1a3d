"""A real store of the demo data, built once, with everything that training asks for beside it."""

import json

import pytest

from consumers.build import build
from featurestore.config import BuildConfig
from featurestore.labels import write_labels
from featurestore.materialize import materialize
from featurestore.store import FeatureStore


@pytest.fixture(scope="session")
def built(demo_data, checkpoints, tmp_path_factory):
    """Folder with ``features`` (a store), ``embeddings``, ``labels`` and ``imdb``; read only."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "imdb").symlink_to(demo_data)
    config = BuildConfig(
        data_dir=demo_data / "dataset",
        store=folder / "features",
        models=checkpoints,
        device="cpu",
        workers=2,
        views=4,
        chunk=16,
    )
    build(config)
    store = FeatureStore(folder / "features")
    materialize(store, folder / "embeddings")
    documents = [json.loads((demo_data / f"dataset/{s}.json").read_text()) for s in store.stems]
    write_labels(store.stems, documents, folder / "labels")
    return folder
