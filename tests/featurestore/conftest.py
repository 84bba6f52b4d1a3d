import pytest

from tests.featurestore.worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A store with rows, split and labels; read only."""
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def embeddings(world, tmp_path_factory):
    """Its materialized files, scaled by all rows; read only."""
    return world.materialize(tmp_path_factory.mktemp("embeddings"))
