"""Builds by each recipe of texts: their features, what continues them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from consumers.build import build
from consumers.config import BuildConfig
from featurestore.errors import ConfigError, ManyViewsError, StoreMismatchError
from featurestore.storage.store import FeatureStore
from featurestore.verify.store import verify
from producers.recipes.texts.presets import text_recipe
from producers.recipes.texts.tokens import TextSpec
from producers.sources.collection import CollectionConfig
from producers.sources.readers import Synopsis, TextList, usable
from tests.conftest import tree_digest
from tests.faults import fakes

SAMPLES, VIEWS = 10, 7
FEATURES = ("clip_text", "blip2_text")


def captions(sample: int) -> list[str]:
    """One to five texts of up to eight words each."""
    texts = 1 + 4 * sample % 5
    return [
        " ".join(
            "." if k % 3 == 2 else f"w{(sample * 31 + text * 7 + k * k) % 90}"
            for k in range(1 + (sample + text) % 8)
        )
        for text in range(texts)
    ]


COLUMNS = [f"caption{i}" for i in range(5)]


def list_column(path: Path) -> CollectionConfig:
    rows = [{"id": f"s{i}", "captions": captions(i) or None} for i in range(SAMPLES)]
    (path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CollectionConfig(kind="table", path=str(path / "t.jsonl"), text=("captions",))


def several_columns(path: Path) -> CollectionConfig:
    import pyarrow
    from pyarrow import parquet

    texts = [[*captions(i), *[None] * 5][:5] for i in range(SAMPLES)]
    columns: dict[str, list[Any]] = {"id": [f"s{i}" for i in range(SAMPLES)]}
    columns |= {name: [row[k] for row in texts] for k, name in enumerate(COLUMNS)}
    parquet.write_table(pyarrow.table(columns), path / "t.parquet")
    return CollectionConfig(kind="table", path=str(path / "t.parquet"), text=tuple(COLUMNS))


def saved_data_set(path: Path) -> CollectionConfig:
    import datasets

    columns = {
        "id": [f"s{i}" for i in range(SAMPLES)],
        "captions": [captions(i) for i in range(SAMPLES)],
    }
    datasets.Dataset.from_dict(columns).save_to_disk(path / "saved")
    saved = str(path / "saved")
    return CollectionConfig(kind="huggingface", path=saved, id="id", text=("captions",))


Source = Callable[[Path], CollectionConfig]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> CollectionConfig:
    return list_column(tmp_path_factory.mktemp("captions"))


@contextmanager
def loaded(mask_token: str = "[MASK]") -> Iterator[dict[str, fakes.FakeText]]:
    spec = TextSpec(fakes.tokenizer(), 32, mask_token=mask_token)
    with fakes.loaded(text=spec) as made:
        yield made


def made(collection: CollectionConfig, store: Path, recipe: Any = None, **changes: Any) -> None:
    """A build, or a continued one, by exact backbones."""
    values: dict[str, Any] = {"collection": collection, "features": FEATURES, "views": VIEWS}
    values |= {"chunk": 64, "producers": 1, "threads": 1, "device": "cpu"}
    if isinstance(recipe, dict):
        recipe = text_recipe(recipe)
    with loaded():
        build(BuildConfig(store=store, text_recipe=recipe, **values | changes))


def rows(store: Path, feature: str) -> np.ndarray:
    opened = FeatureStore(store)
    chunks = [opened.read_chunk(feature, chunk) for chunk in range(opened.spec.chunks)]
    return np.concatenate(chunks)


def expected(texts: list[str], feature: str) -> np.ndarray:
    """The features of texts, computed by the tokenizers library and the fake's own formula."""
    ids = [Tokenizer.from_str(fakes.tokenizer()).encode(text).ids[:32] for text in texts]
    sums = np.array([sum((id_ + 1) * at for at, id_ in enumerate(row, 1)) for row in ids])
    factors = np.arange(1, fakes.DIMS[feature] + 1) + len(feature)
    return (sums[:, None] * factors % 8191).astype(np.float32) - 8191 // 2


@pytest.mark.parametrize("source", [list_column, several_columns, saved_data_set])
def test_the_views_are_the_texts_of_the_sample(source: Source, tmp_path: Path) -> None:
    made(source(tmp_path), tmp_path / "store", {"name": "given"})
    assert verify(tmp_path / "store").findings == []
    for feature in FEATURES:
        found = rows(tmp_path / "store", feature)
        for sample in range(SAMPLES):
            own = captions(sample)
            wanted = expected([own[view % len(own)] for view in range(VIEWS)], feature)
            np.testing.assert_array_equal(found[sample], wanted)


def test_the_features_of_given_texts_are_the_librarys(
    listed: CollectionConfig, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    config = BuildConfig(
        store=tmp_path / "store",
        collection=listed,
        features=("clip_text",),
        models={"clip_text": checkpoints["clip_text"]},
        views=VIEWS,
        text_recipe=text_recipe({"name": "given"}),
        producers=1,
        device="cpu",
    )
    build(config)
    library = SentenceTransformer(checkpoints["clip_text"], device="cpu")
    found = rows(config.store, "clip_text")
    for sample in range(SAMPLES):
        own = captions(sample)
        wanted = library.encode(own, normalize_embeddings=False)
        wanted = wanted[[view % len(own) for view in range(VIEWS)]]
        np.testing.assert_allclose(found[sample], wanted, rtol=1e-4, atol=1e-5)


RECIPES = [
    {"name": "mask", "share": 0.3, "token": "w7"},
    {"name": "mask", "token": "model"},
    {"name": "drop"},
    {"name": "sentences", "share": 0.4, "shuffle": True},
    {"name": "given"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: "-".join(map(str, recipe.values())))
def test_views_that_are_added_are_those_of_one_build(
    listed: CollectionConfig, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    made(listed, tmp_path / "grown", recipe, views=3)
    made(listed, tmp_path / "grown", resume=True, views=VIEWS)  # the recipe is that of the store
    made(listed, tmp_path / "once", recipe)
    assert verify(tmp_path / "grown").findings == []
    grown, once = (FeatureStore(tmp_path / name) for name in ("grown", "once"))
    assert grown.records == once.records
    for feature in FEATURES:
        found = rows(tmp_path / "grown", feature)
        np.testing.assert_array_equal(found, rows(tmp_path / "once", feature))
        assert max(len(np.unique(views, axis=0)) for views in found) > 1


@pytest.mark.parametrize("recipe", [{"name": "drop"}, {"name": "given"}], ids=["drop", "given"])
def test_an_interrupted_build_continues_to_the_same_bytes(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    many = [{"id": f"s{i}", "captions": captions(i % SAMPLES)} for i in range(150)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    table = CollectionConfig(
        kind="table", path=str(tmp_path / "t.jsonl"), text=("captions",), id="id"
    )

    def fail(fake: fakes.FakeText, _: Any, honest: Callable[[], Any]) -> Any:
        if fakes.committed(tmp_path / "store"):
            raise RuntimeError("the GPU is lost")
        return honest()

    values: dict[str, Any] = {"collection": table, "store": tmp_path / "store", "chunk": 64}
    values |= {"features": FEATURES, "views": 3, "producers": 1, "threads": 1, "device": "cpu"}
    config = BuildConfig(**values, text_recipe=text_recipe(recipe))
    with fakes.loaded(wrap={"clip_text": fail}), pytest.raises(ManyViewsError):
        build(config)
    assert 0 < len(fakes.committed(tmp_path / "store")) < 3
    made(table, tmp_path / "store", recipe, views=3, resume=True)
    made(table, tmp_path / "once", recipe, views=3)
    assert tree_digest(tmp_path / "store") == tree_digest(tmp_path / "once")


@pytest.mark.parametrize(
    ("recipe", "other", "said"),
    [
        (
            {"name": "drop"},
            {"name": "drop", "share": 0.3},
            ["text_recipe.share", "0.3", "share = 0.15 in [recipe.text]"],
        ),
        (
            {"name": "mask", "token": "[MASK]"},
            {"name": "mask", "token": "model"},
            ["text_recipe.token", '"model"', 'token = "[MASK]" in [recipe.text]'],
        ),
        (
            {"name": "sentences"},
            {"name": "sentences", "shuffle": True},
            ["text_recipe.shuffle", "true", "shuffle = false in [recipe.text]"],
        ),
        (
            {"name": "given"},
            {"name": "drop"},
            ["text_recipe", "drop-1", 'name = "given" in [recipe.text]'],
        ),
    ],
)
def test_another_recipe_is_refused(
    listed: CollectionConfig,
    tmp_path: Path,
    recipe: dict[str, Any],
    other: dict[str, Any],
    said: list[str],
) -> None:
    made(listed, tmp_path / "store", recipe, views=2, features=("clip_text",))
    before = tree_digest(tmp_path / "store")
    with pytest.raises(StoreMismatchError) as caught:
        made(listed, tmp_path / "store", other, views=2, features=("clip_text",), resume=True)
    assert caught.value.field == said[0]
    assert all(part in str(caught.value) for part in said)
    assert len(str(caught.value).splitlines()) <= 4
    assert tree_digest(tmp_path / "store") == before


def test_words_are_left_out_by_default_except_for_mm_imdb(
    listed: CollectionConfig, tmp_path: Path
) -> None:
    made(listed, tmp_path / "store", features=("clip_text",))
    known = FeatureStore(tmp_path / "store").fingerprint
    assert (known["text_recipe"], known["text_recipe.share"]) == ("drop-1", "0.15")
    made(listed, tmp_path / "same", {"name": "drop"}, features=("clip_text",))
    assert tree_digest(tmp_path / "store") == tree_digest(tmp_path / "same")
    data = fakes.make_data(tmp_path / "data", 3)
    fakes.make(data, tmp_path / "paper")
    known = FeatureStore(tmp_path / "paper").fingerprint
    assert (known["text_recipe"], known["text_recipe.token"]) == ("mask-1", '"[MASK]"')


def test_given_texts_need_the_first_one_as_view_0(tmp_path: Path) -> None:
    joined = CollectionConfig(**vars_of(list_column(tmp_path)) | {"clean_text": "longest"})
    with pytest.raises(ConfigError, match='Set clean_text = "first" in') as caught:
        made(joined, tmp_path / "store", {"name": "given"})
    assert 'clean_text is "longest"' in str(caught.value)
    data = fakes.make_data(tmp_path / "data", 3)
    with pytest.raises(ConfigError, match='kind = "folder" with text_key = "plot"'):
        fakes.make(data, tmp_path / "store", text_recipe=text_recipe({"name": "given"}))
    assert not (tmp_path / "store").exists()


def vars_of(collection: CollectionConfig) -> dict[str, Any]:
    return {name: getattr(collection, name) for name in collection.__dataclass_fields__}


def test_a_model_without_a_mask_token_is_refused(listed: CollectionConfig, tmp_path: Path) -> None:
    config = BuildConfig(
        store=tmp_path / "store",
        collection=listed,
        features=FEATURES,
        text_recipe=text_recipe({"name": "mask", "token": "model"}),
        device="cpu",
    )
    with loaded(mask_token=""), pytest.raises(ConfigError) as caught:
        build(config)
    said = str(caught.value)
    assert "clip_text: the tokenizer of" in said
    assert 'the recipe "mask" with token = "model"' in said
    assert 'Set name = "drop" in [recipe.text]' in said
    assert not (tmp_path / "store").exists()


def test_the_models_own_mask_token_replaces_words(listed: CollectionConfig, tmp_path: Path) -> None:
    """It gives the same features as the same token written out."""
    for name, token in (("own", "model"), ("said", "[MASK]"), ("other", "w7")):
        made(listed, tmp_path / name, {"name": "mask", "token": token}, features=("clip_text",))
    own, said, other = (rows(tmp_path / name, "clip_text") for name in ("own", "said", "other"))
    np.testing.assert_array_equal(own, said)
    assert not np.array_equal(own, other)


def test_each_text_that_is_used_must_be_encodable() -> None:
    texts = TextList(["a", "b\ud800"], "first")
    assert usable(texts, every=False) == (usable(TextList(["a"], "first"), every=False)[0], [])
    clean, each = usable(texts, every=True)
    assert (clean.text, clean.reason, each) == ("a", "lone-surrogate", ["a", "b\ufffd"])
    plots = Synopsis(b'{"plot": ["one", "two"]}')
    assert usable(plots, every=True)[1] == ["one two"]
