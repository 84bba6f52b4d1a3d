"""Errors cross process boundaries: each one unpickles with its message and its attributes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from featurestore import errors
from featurestore.errors import ManyViewsError

_PATH = Path("/a/store")
EXAMPLES: tuple[ManyViewsError, ...] = (
    errors.ManyViewsError("a message"),
    errors.ConfigError("an option"),
    errors.InputError("a folder"),
    errors.BadSampleError("truncated", "after 12 bytes"),
    errors.BadInputsError("three of them"),
    errors.ProducerError("it died", pid=7, signal="SIGKILL", stem="0000012"),
    errors.RecipeError("augment:strong", "raised ValueError: no", "0000012"),
    errors.BackboneError("not finite"),
    errors.StoreLockedError(_PATH, [(7, "one"), (8, "two")], "Wait."),
    errors.StoreMismatchError(_PATH, "seed", 123, 124, "Use another --store."),
    errors.CorruptStoreError("clip_text/c/3/0/0", "has 3 bytes", chunk=3),
    errors.ChunkConflictError(3, "records/commits/00000003"),
    errors.WorkerError("killed again and again", device="cuda:1", worker="1/2"),
    errors.StorageError(_PATH, "permission denied", "Ask its owner."),
    errors.StorageFullError(_PATH, 4096, "no space left"),
    errors.InterruptedBuildError(15, "stopped"),
)


def _tree(kind: type[ManyViewsError]) -> set[type[ManyViewsError]]:
    return {kind}.union(*(_tree(each) for each in kind.__subclasses__()))


def test_every_class_has_an_example() -> None:
    ours = {kind for kind in _tree(ManyViewsError) if kind.__module__ == errors.__name__}
    assert {type(example) for example in EXAMPLES} == ours


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_unpickles_as_it_was(error: ManyViewsError) -> None:
    error.add_note("a note")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = pickle.loads(pickle.dumps(error, protocol))
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert found.args == error.args
        assert vars(found) == vars(error)
        assert found.exit_code == error.exit_code


def test_a_changed_error_unpickles_with_its_change() -> None:
    error = errors.StorageFullError(_PATH, 4096, "no space left")
    error.add_promise()
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == str(error)
    assert "Nothing that was committed is lost" in str(found)
    assert str(copy.copy(error)) == str(error)
