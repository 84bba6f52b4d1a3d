from pathlib import Path

import pytest

from tests.featurestore.worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store with rows, split and labels, which tests must not change."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def embeddings(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store's materialized files, scaled by all rows, which tests must not change."""
    return world.materialize(tmp_path_factory.mktemp("embeddings"))
