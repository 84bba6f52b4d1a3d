"""Every text adapter against its library's own call, on texts that libraries clean or mangle."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consumers.backbones import declared, registry
from consumers.backbones.config import BackboneConfig
from consumers.backbones.protocol import Backbone
from featurestore.errors import ConfigError
from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.texts.hiding import Drop, Mask
from producers.recipes.texts.tokens import TokenEncoder
from tests.consumers.library_models import make_clip_tokenizer, make_library_models
from tests.producers.views import text_views

ADAPTERS = ("transformers-text", "sentence-transformers", "open-clip-image")
# A few words that the tiny vocabularies hold, between what libraries treat differently.
TEXTS = (
    "",
    "  ",
    "A spy’s story: “love” & ‘war’ — it’s…",
    "Bonnie &amp; Clyde &lt;3 &#39;robot&#39; &eacute; &amp;amp; R&D &nbsp; &",
    "<b>love</b> &amp; war",
    "ﬁlm of the ﬂying ﬆar, Ⅳ ½ № ﷺ",
    "cafÃ© dâ€™or â€œloveâ€\x9d naÃ¯ve",
    "schÃ¶n and ’tis “so”, Ünder Ã",
    "😀 ghost 👨‍👩‍👧 robot 🇫🇷 ☃️ 🧙🏽",
    "Amélie e\u0301te\u0301 A\u030angstro\u0308m \u0301accent",
    "WAR AND LOVE İstanbul ΟΔΟΣ ΣΑΣ STRASSE ẞ",
    "a\x00b love\x07 war\x1b[31m red\x1b[0m \x7f \u200b\ufeff\u00ad robot",
    "love\u00a0war\u2028ghost\u2029king\r\nqueen\x85sword\u3000magic",
    "ｆｕｌｌ　ｗｉｄｔｈ ﾊﾝｶｸ ＆ａｍｐ；",
    "[MASK] of the [MASK]",
    "-- ... !! __ a_b _c_ (1999) don't 3.5% #1",
    "東京 и дождь 雨 love",
    "love war " * 300,
)


def own_rows(folder: Path, adapter: str) -> Callable[[list[str]], list[list[int]]]:
    """The ids of the library's own call, without padding unless the model is given it."""
    ensure_importable()
    if adapter == "open-clip-text":
        import open_clip

        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        return lambda texts: tokenizer(texts).tolist()
    if adapter == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu")
        call = getattr(model, "preprocess", None) or model.tokenize

        def rows(texts: list[str]) -> list[list[int]]:
            found = call(texts)
            pairs = zip(found["input_ids"], found["attention_mask"], strict=True)
            return [row[mask == 1].tolist() for row, mask in pairs]

        return rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = 512 if adapter == "blip2_text" else 128
    return lambda texts: tokenizer(texts, truncation=True, max_length=length)["input_ids"]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, str]
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("library")
    names = ("transformers-image", "transformers-text", "timm", "open-clip-image")
    made = {name: root / name for name in (*names, "sentence-transformers")}
    make_library_models(made, Path(checkpoints["clip_text"]))
    made["open-clip-text"] = made["open-clip-image"]
    made |= {name: Path(checkpoints[name]) for name in ("clip_text", "blip2_text")}
    for clean in ("lower", "canonicalize"):
        folder = root / clean
        shutil.copytree(made["open-clip-image"], folder)
        change(folder, tokenizer_kwargs={"clean": clean})
        made[f"open-clip-text {clean}"] = folder
    made["open-clip-text own"] = root / "own"
    shutil.copytree(made["open-clip-image"], root / "own")
    make_clip_tokenizer(root / "own")
    return made


def change(folder: Path, **text: Any) -> None:
    """Changes what open_clip's configuration says of the text tower; None removes it."""
    path = folder / "open_clip_config.json"
    document = json.loads(path.read_text())
    held = {**document["model_cfg"]["text_cfg"], **text}
    document["model_cfg"]["text_cfg"] = {k: v for k, v in held.items() if v is not None}
    path.write_text(json.dumps(document))


CASES = (
    "clip_text",
    "blip2_text",
    "transformers-text",
    "sentence-transformers",
    "open-clip-text",
    "open-clip-text lower",
    "open-clip-text canonicalize",
    "open-clip-text own",
)


def load(folder: Path, name: str) -> Backbone:
    if name in ("clip_text", "blip2_text"):
        return registry.load(name, str(folder), "cpu", "float32")
    config = BackboneConfig(adapter=name.split()[0], model=str(folder), max_length=0)
    return declared.load("f", config, "cpu", "float32")


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> Callable[[str], Any]:
    @functools.cache
    def make(name: str) -> Any:
        backbone = load(folders[name], name)
        library = "sentence-transformers" if name == "clip_text" else name.split()[0]
        return backbone, TokenEncoder(backbone.text), own_rows(folders[name], library)  # type: ignore[union-attr]

    return make


def rows_of(backbone: Any, ids: np.ndarray, lengths: np.ndarray, name: str) -> list[list[int]]:
    if name.startswith("open-clip"):  # which gives the whole row to its model
        whole: list[list[int]] = ids.tolist()
        return whole
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_the_librarys_own_call(loaded: Any, name: str) -> None:
    backbone, encoder, own = loaded(name)
    shape = (len(TEXTS), backbone.text.max_length)
    ids, lengths = np.empty(shape, np.int32), np.empty(len(TEXTS), np.int32)
    encoder.encode(TEXTS, ids, lengths)
    for text, found, expected in zip(
        TEXTS, rows_of(backbone, ids, lengths, name), own(list(TEXTS)), strict=True
    ):
        assert found == expected, text


@pytest.mark.parametrize("name", CASES)
def test_so_are_those_of_views_with_hidden_words(loaded: Any, name: str) -> None:
    """The ids are equal whether they are joined from words or not."""
    backbone, encoder, own = loaded(name)
    ids, lengths = np.empty((9, backbone.text.max_length), np.int32), np.empty(9, np.int32)
    for index, text in enumerate((*TEXTS, " ".join(TEXTS))):
        for recipe in (Mask(), Mask(token="spy"), Drop(), Drop(0.4)):
            views = text_views(text, 123, index, 9, recipe=recipe)
            encoder.encode_views(views, ids, lengths)
            assert rows_of(backbone, ids, lengths, name) == own(views.texts()), text


def test_open_clips_vectors_are_the_librarys(folders: dict[str, Path], loaded: Any) -> None:
    """Without the cleaning, texts with quotes and entities have other vectors."""
    import open_clip

    backbone, encoder, own = loaded("open-clip-text own")
    model = open_clip.create_model(f"local-dir:{folders['open-clip-text own']}").eval()
    ids, lengths = np.empty((len(TEXTS), 32), np.int32), np.empty(len(TEXTS), np.int32)
    encoder.encode(TEXTS, ids, lengths)
    with torch.inference_mode():
        expected = model.encode_text(torch.tensor(own(list(TEXTS))))
    found = backbone.embed(torch.from_numpy(ids).long(), torch.ones(len(TEXTS), 32).long())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-4)


# --- what is refused ---


def edited(folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy with another ``tokenizer.json``."""
    copy = Path(shutil.copytree(folder, tmp_path / "edited"))
    for path in copy.rglob("tokenizer.json"):
        document = json.loads(path.read_text("utf-8"))
        edit(document)
        path.write_text(json.dumps(document))
    return copy


def test_open_clip_is_refused_where_the_files_are_not_its_own(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Its own tokenizer does not look at ``tokenizer.json``, which producers need."""

    def with_fewer_merges(document: dict[str, Any]) -> None:
        del document["model"]["merges"][20_000:]

    folder = edited(folders["open-clip-text own"], tmp_path, with_fewer_merges)
    with pytest.raises(ConfigError, match=r"(?s)edited .* reads '.*' otherwise than open_clip"):
        load(folder, "open-clip-text")


def test_a_tokenizer_that_draws_at_random_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["open-clip-text own"], tmp_path / "random"))
    change(folder, tokenizer_kwargs={"reduction_mask": "shuffle"})
    with pytest.raises(ConfigError, match="otherwise than open_clip"):
        load(folder, "open-clip-text")


@pytest.mark.parametrize(
    "name",
    ["clip_text", "blip2_text", "transformers-text", "sentence-transformers", "open-clip-text"],
)
def test_a_token_without_a_row_in_the_model_is_refused(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Without the check, a build ends with an IndexError at the first text with the token."""

    def with_another(document: dict[str, Any]) -> None:
        token = {"id": 1000, "content": "<zebra>", "special": False, "normalized": False}
        token |= {"single_word": False, "lstrip": False, "rstrip": False}
        document["added_tokens"].append(token)
        vocabulary = document["model"]["vocab"]
        more = {f"zebra{n}": n for n in range(len(vocabulary), 1000)}
        if isinstance(vocabulary, dict):
            vocabulary |= more
        else:
            vocabulary += [[word, -9.0] for word in more]

    folder = edited(folders[name], tmp_path, with_another)
    with pytest.raises(ConfigError, match=r"of its tokens have no row .* number 1,00\d"):
        load(folder, name)


@pytest.mark.parametrize("name", ["transformers-text", "blip2_text"])
def test_a_call_that_does_more_than_its_tokenizer_is_refused(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class of transformers may change a text before its tokenizer sees it."""
    from transformers import PreTrainedTokenizerFast

    class Cleaning(PreTrainedTokenizerFast):  # type: ignore[misc]
        def __call__(self, text: Any, *args: Any, **keywords: Any) -> Any:
            return super().__call__([t.replace("’", "'") for t in text], *args, **keywords)

    def cleaning(folder: Path, **_: Any) -> Any:
        return Cleaning.from_pretrained(folder)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", cleaning)
    with pytest.raises(ConfigError, match=r"(?s)reads '.*’.*' otherwise than transformers"):
        load(folders[name], name)


def test_a_sentence_model_that_changes_texts_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    name = "preprocess" if hasattr(SentenceTransformer, "preprocess") else "tokenize"
    original = getattr(SentenceTransformer, name)

    def cleaning(self: Any, texts: list[str], *args: Any, **keywords: Any) -> Any:
        return original(self, [t.replace("&amp;", "&") for t in texts], *args, **keywords)

    monkeypatch.setattr(SentenceTransformer, name, cleaning)
    with pytest.raises(ConfigError, match=r"(?s)reads '.*&amp;.*' otherwise than sentence-trans"):
        load(folders["clip_text"], "clip_text")
