"""Samples without an image or a text: what the ledger and the moments record of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import InputError, StoreMismatchError
from featurestore.reading.scaling import scale_for, train_moments
from featurestore.records import BadInput, Modality, SampleRecord
from featurestore.storage import entries, extension
from featurestore.storage.creation import create
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore
from featurestore.storage.writer import StoreWriter, take_lock
from featurestore.verify.store import verify
from tests.featurestore.stores import (
    commit,
    make_fingerprint,
    make_generic_store,
    make_records,
    make_rows,
    make_samples,
    make_store,
    without,
)

# The whole second chunk has no text; sample 9 has neither.
ABSENT = {1: "text", 4: "text", 5: "text", 6: "text", 7: "text", 2: "image", 9: "both"}
TEXTS = [0, 2, 3, 8, 10]
IMAGES = [0, 1, 3, 4, 5, 6, 7, 8, 10]


def test_moments_are_of_present_rows_alone(tmp_path: Path) -> None:
    rows = make_generic_store(tmp_path / "store", ABSENT)
    store = FeatureStore(tmp_path / "store")
    for name, kept in (("clip_image", IMAGES), ("clip_text", TEXTS)):
        wide = rows[name][kept].reshape(-1, rows[name].shape[2]).astype(np.float64)
        moments = store.moments(name)
        assert moments.count == len(wide)
        np.testing.assert_allclose(moments.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(moments.sigma, wide.std(axis=0), rtol=1e-12)
    none = store.chunk_moments("clip_text", 1)
    assert none.count == 0
    assert not none.mean.any()
    assert not none.m2.any()


def test_presence_follows_the_feature(tmp_path: Path) -> None:
    make_generic_store(tmp_path / "store", ABSENT)
    store = FeatureStore(tmp_path / "store")
    assert np.flatnonzero(store.present("clip_image")).tolist() == IMAGES
    assert np.flatnonzero(store.present("clip_text")).tolist() == TEXTS
    assert store.absent == {"image": 2, "text": 6}


def test_a_store_of_one_modality_lacks_nothing(tmp_path: Path) -> None:
    make_generic_store(
        tmp_path / "store", dict.fromkeys(range(11), "text"), dims={"clip_image": 64}
    )
    store = FeatureStore(tmp_path / "store")
    assert store.absent == {}
    assert verify(tmp_path / "store").findings == []


def test_samples_stay_undecoded_where_nothing_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_generic_store(tmp_path / "whole", {})
    make_generic_store(tmp_path / "part", {9: "text"})

    decoded: list[int] = []

    def counted(index: int, *values: object) -> SampleRecord:
        decoded.append(index)
        return SampleRecord(index, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(entries, "SampleRecord", counted)
    for name, expected in (("whole", []), ("part", [8, 9, 10])):
        decoded.clear()
        store = FeatureStore(tmp_path / name)
        for feature in store.features:
            store.moments(feature)
            store.present(feature)
        assert decoded == expected


def test_a_chunk_that_was_just_committed_knows_its_absent_inputs(tmp_path: Path) -> None:
    rows = make_generic_store(tmp_path / "store", ABSENT, chunks=[0])
    with StoreWriter(tmp_path / "store", take_lock(tmp_path / "store")) as writer:
        commit(writer, [1, 2], rows, without(make_records(writer.spec), ABSENT))
        assert np.flatnonzero(writer.present("clip_text")).tolist() == TEXTS
        assert writer.moments("clip_text").count == len(TEXTS) * 4


def test_a_feature_without_any_input_has_no_scale(tmp_path: Path) -> None:
    make_generic_store(tmp_path / "store", dict.fromkeys(range(11), "text"))
    store = FeatureStore(tmp_path / "store")
    with pytest.raises(InputError, match=r"No sample of .* has the input of clip_text"):
        scale_for(store, "clip_text", "all", None)
    assert scale_for(store, "clip_text", "none", None) is None
    with pytest.raises(InputError, match="no input of clip_text"):
        train_moments(store, "clip_text", np.arange(11))


def added_text(path: Path, base: dict[int, str], added: dict[int, str]) -> Path:
    """A store of images, to which texts are added; returns its path."""
    dims: dict[str, int] = {"clip_image": 64, "clip_text": 128}
    modalities: dict[str, Modality] = {"clip_image": "image", "clip_text": "text"}
    whole = StoreSpec(11, 4, 4, dims, modalities=modalities)
    rows, stems = make_rows(whole), [f"{i:07d}" for i in range(11)]
    for name, missing in (("clip_image", base), ("clip_text", added)):
        where = path if name == "clip_image" else path / "records/extension"
        spec = replace(whole, dims={name: dims[name]}, modalities={name: modalities[name]})
        records = without(make_records(spec), missing)
        if name == "clip_text":  # its build reads no images
            records = [replace(record, image_sha256="") for record in records]
        rows[name][~spec.present(name, records)] = 0
        fingerprint = make_fingerprint(spec, stems) | {"preset": "generic"}
        with create(where, spec, fingerprint, make_samples(stems), take_lock(where)) as writer:
            commit(writer, range(3), rows, records)
            writer.finish()
    fingerprint = make_fingerprint(whole, stems) | {"preset": "generic"}
    extension.finish(FeatureStore(path), FeatureStore(path / "records/extension"), fingerprint)
    return path


def test_added_features_keep_what_is_absent(tmp_path: Path) -> None:
    path = added_text(tmp_path / "store", ABSENT, {i: t for i, t in ABSENT.items() if t != "image"})
    assert verify(path).findings == []
    store = FeatureStore(path)
    assert np.flatnonzero(store.present("clip_image")).tolist() == IMAGES
    assert np.flatnonzero(store.present("clip_text")).tolist() == TEXTS


BAD = (BadInput(0, "text", "not-a-file", "it is a folder"),)
A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("before", "now", "fits"),
    [
        ((A, ()), (A, ()), True),
        ((A, ()), (B, ()), False),
        ((None, ()), (None, ()), True),
        ((None, ()), (A, ()), False),
        ((A, ()), (None, ()), False),
        (("", ()), (A, ()), True),  # it was not read
        (("", ()), (None, ()), True),
        ((None, ()), ("", ()), True),
        (("", BAD), (None, ()), False),  # the placeholder's rows beside rows of no input
        ((None, ()), ("", BAD), False),
        (("", BAD), ("", BAD), True),
    ],
)
def test_an_input_that_appears_or_vanishes_has_changed(
    tmp_path: Path,
    before: tuple[str | None, tuple[BadInput, ...]],
    now: tuple[str | None, tuple[BadInput, ...]],
    fits: bool,
) -> None:
    make_store(tmp_path / "store", chunks=[])
    with StoreWriter(tmp_path / "store", take_lock(tmp_path / "store")) as writer:
        records = make_records(writer.spec)
        records[0] = replace(records[0], text_sha256=before[0], bad=before[1])
        commit(writer, [0], make_rows(writer.spec), records)
    base = FeatureStore(tmp_path / "store")
    new = replace(records[0], text_sha256=now[0], bad=now[1])
    if fits:
        extension.require_same_inputs(base, new)
    else:
        with pytest.raises(StoreMismatchError, match="content of '0000000'"):
            extension.require_same_inputs(base, new)
