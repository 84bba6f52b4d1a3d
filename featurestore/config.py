"""What a build is asked for, and the fingerprint of everything that changes its numbers."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from featurestore.backbone_config import BackboneConfig, check_name, parse_backbone
from featurestore.codecs import CODECS, NONE
from featurestore.errors import ConfigError, StoreMismatchError
from featurestore.records import FEATURES

Fingerprint = dict[str, str | int]

VERSION = "version."
PAPER_VIEWS = 70
# Recorded but not compared: a folder's name says nothing about the weights in it, their hash does.
_INFORMATIVE = (".model",)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """One build, as asked for. Defaults are the paper's.

    Attributes:
        data_dir: folder of posters and synopses.
        follow_links: use symbolic links in it that lead out of it.
        store: folder of the store.
        resume: go on with the store that is there; features or views that a complete one lacks are
            added to it.
        append: with ``resume``, add samples that come after the last one of a complete store.
        overwrite: delete the store that is there.
        views: views per sample, the clean one included; None for the store's, or the paper's 70.
        seed: base seed of both recipes.
        features: which features to make; None for the store's, or the paper's four.
        models: hub id or local folder per feature, where it is not the default.
        batch_sizes: rows per forward pass and feature, where it is not the default.
        backbones: by feature, the backbones beside the paper's; ``features`` chooses among them.
        workers: producer processes; 0 chooses from the number of CPUs.
        threads: batches that a CPU computes side by side; 0 chooses the number of CPUs.
        slots: samples in flight between producers and backbones; 0 chooses from the workers.
        chunk: samples per chunk, the unit of commit; 0 chooses 64, or more where the dimensions
            need it to fill whole pages.
        codec: ``none``, which training maps, or ``zstd`` for an archive; None for the store's, or
            ``none``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto`` (bfloat16 on CUDA, float32 on the CPU), ``float32``, ``bfloat16`` or
            ``float16``.
        bad_sample: ``placeholder`` goes on and lists them, ``fail`` stops.
        allow_version_change: resume although library versions or the device kind changed.
        verify_inputs: on resume, read every input of the committed samples again, not only those
            whose size or modification time differs.
        remake_changed: on resume, make the chunks again whose inputs are others than were read,
            instead of refusing.
        sample_timeout_s: seconds of work after which a sample counts as stuck.
    """

    data_dir: Path
    store: Path
    follow_links: bool = False
    resume: bool = False
    append: bool = False
    overwrite: bool = False
    views: int | None = None
    seed: int = 123
    features: tuple[str, ...] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    backbones: Mapping[str, BackboneConfig] = field(default_factory=dict)
    workers: int = 0
    threads: int = 0
    slots: int = 0
    chunk: int = 0
    codec: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    bad_sample: str = "placeholder"
    allow_version_change: bool = False
    verify_inputs: bool = False
    remake_changed: bool = False
    sample_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        """Checks each field and the fields against each other.

        Raises:
            ConfigError: a value is out of range, with the value found.
        """
        if self.views is not None:
            _at_least("views", self.views, 1)
        _at_least("seed", self.seed, 0)
        for name in ("workers", "threads", "slots", "chunk"):
            _at_least(name, getattr(self, name), 0)
        _one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        if self.codec is not None:
            _one_of("codec", self.codec, CODECS)
        _one_of("bad-sample", self.bad_sample, ("placeholder", "fail"))
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other: choose one.")
        for name in self.backbones:
            check_name(name)
        known = (*FEATURES, *self.backbones)
        if self.features is not None:
            if not self.features or len(set(self.features)) != len(self.features):
                raise ConfigError(f"--features names each feature once, found {self.features!r}.")
            for name in self.features:
                _known_feature("features", name, known)
        for feature, size in self.batch_sizes.items():
            _known_feature("batch-size", feature, known)
            _at_least(f"batch-size {feature}", size, 1)
        for feature in self.models:
            _known_feature("model", feature, known)
        if not 0 < self.sample_timeout_s < math.inf:
            raise ConfigError(f"sample_timeout_s is positive, found {self.sample_timeout_s}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteConfig(BuildConfig):
    """A configuration in which everything is said.

    Attributes:
        views: views per sample.
        features: which features the store is to have.
        codec: of its chunks.
    """

    views: int = PAPER_VIEWS
    features: tuple[str, ...] = FEATURES
    codec: str = NONE

    def __post_init__(self) -> None:
        """Nothing: what was said is checked, and a store's own features need no declaration."""


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{name} is at least {least}, found {value}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{name} is one of {', '.join(allowed)}, found {value!r}.")


def _known_feature(option: str, name: str, known: Collection[str], more: str = "") -> None:
    """Refuses a feature that is neither the paper's nor declared, and says how to declare one."""
    if name not in known:
        raise ConfigError(
            f"--{option} is one of {', '.join(known)}{more}, found {name!r}.\n"
            "Another backbone is declared in a table [backbones.NAME] of a TOML file, which is "
            "given with --config."
        )


def expand_models(models: Mapping[str, str], declared: Collection[str] = ()) -> dict[str, str]:
    """Spells ``blip2`` out as both BLIP-2 features.

    Args:
        models: hub id or folder per feature.
        declared: the features beside the paper's.

    Raises:
        ConfigError: a name is neither a feature nor ``blip2``.
    """
    known = (*FEATURES, *declared)
    expanded: dict[str, str] = {}
    for name, model in models.items():
        if name == "blip2":
            expanded.update(blip2_image=model, blip2_text=model)
        else:
            _known_feature("model", name, known, " or blip2")
            expanded[name] = model
    return expanded


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a configuration file: the fields of :class:`BuildConfig`, as TOML.

    Raises:
        ConfigError: not readable, not TOML, an unknown key, or a value of another type.
    """
    try:
        # Editors on Windows begin a file with a byte order mark, which TOML does not know.
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} is not a readable TOML file: {e}.") from None
    known = {f.name: f for f in fields(BuildConfig)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"{path} sets {', '.join(unknown)}, which is not known.\n"
            f"Known: {', '.join(sorted(known))}."
        )
    typed = {name: _typed(path, name, value) for name, value in values.items()}
    if "models" in typed:
        typed["models"] = expand_models(typed["models"], typed.get("backbones", {}))
    return typed


_TOML_TYPES: dict[str, Any] = {
    **dict.fromkeys(("data_dir", "store", "codec", "device", "dtype", "bad_sample"), str),
    **dict.fromkeys(
        (
            "follow_links",
            "resume",
            "append",
            "overwrite",
            "allow_version_change",
            "verify_inputs",
            "remake_changed",
        ),
        bool,
    ),
    **dict.fromkeys(("views", "seed", "workers", "threads", "slots", "chunk"), int),
    **dict.fromkeys(("models", "batch_sizes", "backbones"), dict),
    "features": list,
    "sample_timeout_s": (int, float),
}


_TOML_ITEMS = {"features": str, "models": str, "batch_sizes": int}


def _typed(path: Path, name: str, value: Any) -> Any:
    expected: Any = _TOML_TYPES[name]
    fits = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if name in _TOML_ITEMS:
        items = value.values() if isinstance(value, dict) else value
        fits = fits and all(type(item) is _TOML_ITEMS[name] for item in items)
    if not fits:
        raise ConfigError(f"{path}: {name} has the wrong type: {value!r}.")
    if name in ("data_dir", "store"):
        return Path(value)
    if name == "features":
        return tuple(value)
    if name == "backbones":
        return {feature: parse_backbone(str(path), feature, t) for feature, t in value.items()}
    return value


_OPTIONS = ("views", "seed", "chunk", "codec", "features")
# What a store was made with that does not say so.
_UNSAID = {"codec": NONE}


def _advice(name: str, stored: object) -> str:
    """How to go on with the stored value of a fingerprint field."""
    feature, _, part = name.rpartition(".")
    if name in _OPTIONS:
        option = f"--{name} {stored}"
    elif part == "batch_size":
        option = f"--batch-size {feature}={stored}"
    elif part == "dtype":
        option = f"--dtype {str(stored).removeprefix('torch.')}"
    elif part == "weights_sha256":
        option = f"the stored checkpoint (--model {feature}=...)"
    elif part in ("adapter", "pooling", "size", "max_length"):
        option = f"{part} = {json.dumps(stored)} in [backbones.{feature}]"
    else:
        return "Build into another --store, or start again with --overwrite."
    return f"Go on with {option}, or build into another --store."


def compare_fingerprints(
    path: Path, stored: Fingerprint, new: Fingerprint, *, allow_version_change: bool
) -> dict[str, str]:
    """Compares the store's fingerprint with this run's.

    Returns:
        The fields that differ and were allowed to, as ``stored -> new``: library versions and the
        device kind, and only with ``allow_version_change``.

    Raises:
        StoreMismatchError: any other field differs, or these without the permission.
    """
    changed: dict[str, str] = {}
    for name in sorted(stored.keys() | new.keys()):
        before, now = stored.get(name, _UNSAID.get(name)), new.get(name)
        if before == now or name.endswith(_INFORMATIVE):
            continue
        if not (name.startswith(VERSION) or name == "device_kind"):
            raise StoreMismatchError(path, name, before, now, _advice(name, before))
        if not allow_version_change:
            advice = (
                "Go back to the stored one for byte-identical rows, or accept with "
                "--allow-version-change; it is recorded with each later chunk."
            )
            raise StoreMismatchError(path, name, before, now, advice)
        changed[name] = f"{before} -> {now}"
    return changed
