"""Arguments of the published factories: variables that name folders, keywords without effect.

The published code is ``dataset_1x_aug70.py`` of ``RolandBERTINJOHANNET/GW_Attention_IMDB`` and of
``RolandBERTINJOHANNET/attention_imdb_benchmark``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import ConfigError, InputError
from featurestore.imdb.materialize import PREFIX
from featurestore.published.domain_groups import IMAGE, TEXT
from featurestore.reading.npy_folder import read_manifest
from featurestore.reading.rows import FeatureRows
from featurestore.wording import amount

EMBEDDINGS_VARIABLE = "OTHER_BACKBONES_DIR_IMDB1_AUG70"
DATA_VARIABLE = "MMIMDB1_DIR"
LABELS_VARIABLE = "IMDB1_LABELS_DIR_23"
IMAGE_VARIABLE, TEXT_VARIABLE = "MMIMDB_IMAGE_LATENTS", "MMIMDB_TEXT_EMBEDS"

FAMILIES = {"clip": ("clip_image", "clip_text"), "blip2": ("blip2_image", "blip2_text")}
_FILE = re.compile(r"(?P<prefix>.+)_(?P<feature>(?:clip|blip2)_(?:image|text))\.npy")
_MANIFEST = "_manifest.json"


@dataclass(frozen=True, slots=True)
class Features:
    """The location of the features of both domains.

    Attributes:
        folder: a store, or a folder of materialized files.
        names: the name of the feature by domain.
        prefix: the beginning of the names of materialized files.
    """

    folder: Path
    names: dict[str, str]
    prefix: str = PREFIX


def family_features(family: Path | str, embeddings: Path | str | None) -> Features:
    """The features of one family; None for ``embeddings`` uses the environment variable.

    Raises:
        ConfigError: the family is unknown, or the variable is not set.
    """
    if family not in FAMILIES:
        hint = " Pass batch_size by name." if isinstance(family, int) else ""
        if isinstance(family, Path) or Path(str(family)).is_dir():
            hint = "\nWith a store, name its features too: make_datamodule(store, features)."
        raise ConfigError(f"family is one of {', '.join(FAMILIES)}, found {family!r}.{hint}")
    image, text = FAMILIES[str(family)]
    folder = expanded(embeddings) if embeddings is not None else variable(EMBEDDINGS_VARIABLE)
    return Features(folder, {IMAGE: image, TEXT: text})


def file_features(image: Path | str | None, text: Path | str | None) -> Features:
    """The features that the names of two published files refer to; the folder may be a store.

    Args:
        image: ``FOLDER/PREFIX_clip_image.npy``; None uses the published variable, or CLIP.
        text: the same for texts.

    Raises:
        ConfigError: a name is not of this form, or the folders or prefixes differ.
    """
    named = {}
    for domain, path, name, feature in (
        (IMAGE, image, IMAGE_VARIABLE, "clip_image"),
        (TEXT, text, TEXT_VARIABLE, "clip_text"),
    ):
        path = path or os.environ.get(name, "").strip()
        named[domain] = (
            expanded(path) if path else variable(EMBEDDINGS_VARIABLE) / f"{PREFIX}_{feature}.npy"
        )
    parts = {domain: _parts(path) for domain, path in named.items()}
    (folder, prefix, _), other = parts[IMAGE], parts[TEXT]
    if other[:2] != (folder, prefix):
        raise ConfigError(
            f"Image and text features are files of one folder and one run, found "
            f"{named[IMAGE]} and {named[TEXT]}."
        )
    return Features(folder, {domain: part[2] for domain, part in parts.items()}, prefix)


def _parts(path: Path) -> tuple[Path, str, str]:
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise ConfigError(
            f"{path} does not name a feature.\nExpected a name such as {PREFIX}_clip_image.npy, "
            "in a folder of materialized files or in a store."
        )
    return path.parent, match["prefix"], match["feature"]


def variable(name: str, needed_by: str = "") -> Path:
    """The folder that an environment variable names.

    Raises:
        ConfigError: the variable is not set.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"The environment variable {name} is not set{needed_by}.")
    return expanded(value)


def expanded(path: Path | str) -> Path:
    """The path with ``~`` replaced by the home folder.

    Raises:
        ConfigError: the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise ConfigError(f"{path}: {e}") from e


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """Keywords of the published factories that have no effect here, with accepted values.

    Attributes:
        val_ratio: any value; the split file decides, as in the published code.
        seed: as ``val_ratio``.
        manifest_path: a manifest with the features' numbers of samples and views, or None.
        extra_image_latents: rows to append; only None or an empty value is accepted.
        extra_caption_embeddings: as ``extra_image_latents``.
        extra_train: as ``extra_image_latents``.
        extra_val: as ``extra_image_latents``.
        extra_test: as ``extra_image_latents``.
    """

    val_ratio: Any = 0.1
    seed: Any = 42
    manifest_path: Path | str | None = None
    extra_image_latents: Any = None
    extra_caption_embeddings: Any = None
    extra_train: Any = None
    extra_val: Any = None
    extra_test: Any = None

    @classmethod
    def of(cls, keywords: dict[str, Any]) -> WithoutEffect:
        """Collects the keywords and checks what can be checked before a file is opened.

        Raises:
            TypeError: the published factories do not have a keyword either.
            ConfigError: a value would have an effect.
        """
        unknown = sorted(set(keywords) - set(cls.__slots__))
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(unknown)}")
        for name, value in keywords.items():
            if name.startswith("extra_") and value is not None and not _is_empty(value):
                raise ConfigError(
                    f"{name} appends rows of other samples, found {value!r}.\n"
                    "Add the samples to the data folder and build with --append instead."
                )
        return cls(**keywords)

    def check(self, rows: FeatureRows) -> None:
        """Refuses a manifest of other rows.

        Raises:
            ConfigError: the file does not have the name of a manifest.
            InputError: the manifest cannot be read, or states other numbers of samples or views.
        """
        if self.manifest_path is None:
            return
        path = expanded(self.manifest_path)
        if not path.name.endswith(_MANIFEST):
            raise ConfigError(f"manifest_path is a file *{_MANIFEST}, found {path}.")
        manifest = read_manifest(path.parent, path.name.removesuffix(_MANIFEST))
        samples, views = manifest["original_rows"], manifest["views_per_sample"]
        if (samples, views) != (rows.samples, rows.views):
            raise InputError(
                f"manifest_path: {path} is of {samples} samples with {views} views, the features "
                f"of {amount(rows.samples, 'sample')} with {amount(rows.views, 'view')}.\n"
                "Leave manifest_path out: features carry their own numbers."
            )


def _is_empty(value: Any) -> bool:
    return hasattr(value, "__len__") and len(value) == 0
