"""Everything that is decided before anything is written.

What can be refused without the models is refused before they are loaded, and what can be refused at
all before the store is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from consumers import backbones as registry
from consumers import declared
from featurestore.backbone_config import BackboneConfig
from featurestore.config import VERSION, BuildConfig, Fingerprint, compare_fingerprints
from featurestore.errors import BadInputsError, InputError, StoreMismatchError
from featurestore.records import BadInput, Sample
from featurestore.store import FeatureStore, StoreSpec, choose_chunk
from producers.inputs import InputStat, changed_inputs, read_cache, stat_inputs
from producers.kernels.implementations import has_compiled
from producers.ring import require_room
from producers.source import Scan
from producers.worker import Job

# Raised whenever a recipe's result changes, so that no store mixes two.
IMAGE_RECIPE = "simclr-1"
TEXT_RECIPE = "mask-15-1"

INPUT_CACHE = "records/runs/inputs.jsonl"

# Their versions can change numbers; zarr's, click's and rich's cannot.
_VERSIONED = (
    "torch",
    "torchvision",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "pillow",
    "numpy",
)
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """A build that may begin.

    Attributes:
        config: what was asked for.
        found: the data folder.
        stats: sizes and times of all inputs, taken before any is read.
        confirmed: those of committed samples that were read again and found unchanged.
        backbones: per feature the loaded ``Backbone``.
        batch_sizes: rows per forward pass and feature.
        workers: producer processes.
        job: what each of them does.
        spec: the store's shape.
        fingerprint: everything that changes its numbers.
        changed: fingerprint fields that differ from the store's and were allowed to.
    """

    config: BuildConfig
    found: Scan
    stats: list[InputStat]
    confirmed: Mapping[int, InputStat]
    backbones: Mapping[str, Any]
    batch_sizes: Mapping[str, int]
    workers: int
    job: Job
    spec: StoreSpec
    fingerprint: Fingerprint
    changed: Mapping[str, str]


def check_intent(config: BuildConfig, state: str) -> None:
    """Refuses a store that is there when nothing was said about it."""
    if state == "store" and not (config.resume or config.overwrite):
        raise InputError(
            f"{config.store} already holds a feature store; nothing was changed.\n"
            "Go on with it with --resume, or start again with --overwrite, which deletes it."
        )


def make_plan(
    config: BuildConfig, found: Scan, stored: FeatureStore | None, tell: Callable[..., None]
) -> Plan:
    """Checks everything and loads the backbones; writes nothing.

    Args:
        config: what was asked for.
        found: the data folder.
        stored: the store to go on with, or None for a new one.
        tell: told of ``loading``.

    Raises:
        ConfigError: an option, a model or the machine does not fit.
        StoreMismatchError: numbers of ``stored`` would change.
    """
    for name, own in _declared(config).items():
        declared.check(name, own)
    stats = stat_inputs(found)
    confirmed: dict[int, InputStat] = {}
    if stored is not None:
        _check_samples(stored, found)
        _compare(config, stored, _asked(config, found))
        confirmed = _check_inputs(config, stored, found, stats)
        _check_placeholders(config, stored)
    device = registry.resolve_device(config.device)
    kind: Fingerprint = {"device_kind": registry.device_kind(device)}
    if stored is not None:
        _compare(config, stored, kind)
    if device == "cpu":
        begun = 0 if stored is None else int(stored.fingerprint.get("cpu_threads", 0))
        kind["cpu_threads"] = registry.use_cpu_threads(begun)
    batch_sizes = {name: _batch_size(config, name, device, stored) for name in config.features}
    workers = config.workers or max(1, len(os.sched_getaffinity(0)) - 1)
    tell("loading", device=device)
    loaded = {name: _load(config, name, device, stored) for name in config.features}
    job = _job(config, loaded, workers)
    require_room(job.layout, job.slots)
    dims = {name: backbone.dim for name, backbone in loaded.items()}
    asked = config.chunk or (0 if stored is None else stored.spec.chunk)
    spec = StoreSpec(
        len(found.samples), config.views, choose_chunk(asked, config.views, dims), dims
    )
    fingerprint = _asked(config, found) | kind | _made_by(config, loaded, batch_sizes)
    fingerprint["chunk"] = spec.chunk
    changed = {} if stored is None else _compare(config, stored, fingerprint)
    return Plan(
        config=config,
        found=found,
        stats=stats,
        confirmed=confirmed,
        backbones=loaded,
        batch_sizes=batch_sizes,
        workers=workers,
        job=job,
        spec=spec,
        fingerprint=fingerprint,
        changed=changed,
    )


def _batch_size(config: BuildConfig, name: str, device: str, stored: FeatureStore | None) -> int:
    """What was asked for, else what the store was begun with, else the device's default."""
    own = config.backbones.get(name)
    asked = config.batch_sizes.get(name) or (own.batch_size if own else 0)
    begun = 0 if stored is None else int(stored.fingerprint.get(f"{name}.batch_size", 0))
    default = declared.batch_size if own else registry.info(name).batch_size
    return asked or begun or default(device)


def _load(config: BuildConfig, name: str, device: str, stored: FeatureStore | None) -> Any:
    dtype = config.dtype
    if dtype == "auto" and stored is not None:
        begun = str(stored.fingerprint.get(f"{name}.dtype", dtype))
        dtype = begun.removeprefix("torch.")
    if name in config.backbones:
        return declared.load(name, _declared(config)[name], device, dtype)
    return registry.load(
        name, config.models.get(name) or registry.info(name).model(), device, dtype
    )


def _job(config: BuildConfig, backbones: Mapping[str, Any], workers: int) -> Job:
    kinds = {name: registry.modality_of(backbone) for name, backbone in backbones.items()}
    images = [b.image for name, b in backbones.items() if kinds[name] == "image"]
    texts = [b.text for name, b in backbones.items() if kinds[name] == "text"]
    return Job(
        data_dir=str(config.data_dir.resolve()),
        views=config.views,
        seed=config.seed,
        images=tuple(dict.fromkeys(images)),
        texts=tuple(texts),
        # Two in hand for each producer, and two that wait for the backbones.
        slots=config.slots or 2 * workers + 2,
        compiled=has_compiled(),
    )


def _asked(config: BuildConfig, found: Scan) -> Fingerprint:
    """The part of the fingerprint that is known before the backbones are."""
    return {
        "samples": len(found.samples),
        "stems_sha256": found.stems_sha256,
        "views": config.views,
        "seed": config.seed,
        "image_recipe": IMAGE_RECIPE,
        "text_recipe": TEXT_RECIPE,
        "features": ",".join(config.features),
        **{VERSION + name: version(name) for name in (*_VERSIONED, *_libraries(config))},
    }


def _libraries(config: BuildConfig) -> list[str]:
    """The distributions that only some adapters need, of those that are used."""
    used = {declared.library(own.adapter) for own in _declared(config).values()}
    return sorted(used - {""})


def _declared(config: BuildConfig) -> dict[str, BackboneConfig]:
    """The declared backbones that are built, each with the checkpoint that is to be used."""
    return {
        name: replace(own, model=config.models.get(name) or own.model)
        for name, own in config.backbones.items()
        if name in config.features
    }


def _made_by(
    config: BuildConfig, backbones: Mapping[str, Any], batch_sizes: Mapping[str, int]
) -> Fingerprint:
    """The part of the fingerprint that the backbones make."""
    fingerprint: Fingerprint = {}
    for name, backbone in backbones.items():
        fingerprint[f"{name}.model"] = backbone.model
        fingerprint[f"{name}.weights_sha256"] = backbone.fingerprint
        fingerprint[f"{name}.dtype"] = str(backbone.dtype)
        fingerprint[f"{name}.batch_size"] = batch_sizes[name]
        if name in config.backbones:
            fingerprint |= declared.settings(name, config.backbones[name], backbone)
    return fingerprint


def _compare(config: BuildConfig, stored: FeatureStore, new: Fingerprint) -> dict[str, str]:
    """Compares those fields that ``new`` holds."""
    held = {name: value for name, value in stored.fingerprint.items() if name in new}
    allow = config.allow_version_change
    return compare_fingerprints(stored.path, held, new, allow_version_change=allow)


def _check_samples(stored: FeatureStore, found: Scan) -> None:
    """Refuses another sample list, naming what came or went."""
    if stored.samples == found.samples:
        return
    before = {(s.stem, s.image_name, s.text_name) for s in stored.samples}
    now = {(s.stem, s.image_name, s.text_name) for s in found.samples}
    changes = [f"+{s[0]!r}" for s in sorted(now - before)]
    changes += [f"-{s[0]!r}" for s in sorted(before - now)]
    raise StoreMismatchError(
        stored.path,
        "sample list",
        f"{len(before)} samples",
        f"{len(now)} samples ({_some(changes)})",
        "Rows are addressed by position: restore the folder, or build into another --store.",
    )


def _check_inputs(
    config: BuildConfig, stored: FeatureStore, found: Scan, stats: list[InputStat]
) -> dict[int, InputStat]:
    """Refuses inputs of committed samples that are not what was read for them.

    Returns:
        Sizes and times of those that were read again, so that the next resume need not.
    """
    cached = {} if config.verify_inputs else read_cache(stored.path / INPUT_CACHE)
    changed, confirmed = changed_inputs(found, stored.records, stats, cached)
    if changed:
        raise StoreMismatchError(
            stored.path,
            "content of inputs",
            "the SHA-256 of what was read",
            f"{len(changed)} files hold something else: {_some([repr(n) for n in changed])}",
            "Restore them, or build again into another --store or with --overwrite.",
        )
    return confirmed


def _check_placeholders(config: BuildConfig, stored: FeatureStore) -> None:
    """Refuses a store that has placeholders where none are wanted."""
    if config.bad_sample == "fail":
        refuse_bad(stored.bad_inputs, stored.samples, f"{stored.path} has placeholders for")


def refuse_bad(bad: Sequence[BadInput], samples: Sequence[Sample], where: str) -> None:
    """Raises BadInputsError where there is a bad input."""
    if not bad:
        return
    listed = [f"{samples[b.index].stem!r} {b.modality} {b.reason}" for b in bad]
    raise BadInputsError(
        f"{where} {len(bad)} inputs that cannot be used: {_some(listed)}.\n"
        "Mend or remove them and build again, or accept placeholders with "
        "--bad-sample placeholder."
    )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
