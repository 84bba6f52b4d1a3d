"""Everything that is decided before anything is written.

What can be refused without the models is refused before they are loaded, and what can be refused at
all before the store is touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from consumers import backbones as registry
from consumers import declared
from consumers.batching import batch_plan
from consumers.extending import Extension, made_features, sample_changes, some
from featurestore.backbone_config import BackboneConfig
from featurestore.codecs import NONE
from featurestore.config import (
    VERSION,
    BuildConfig,
    CompleteConfig,
    Fingerprint,
    compare_fingerprints,
)
from featurestore.errors import BadInputsError, ConfigError, InputError, StoreMismatchError
from featurestore.records import BadInput, Sample
from featurestore.store import FeatureStore, StoreSpec, choose_chunk
from producers.inputs import InputStat, InputStats, changed_inputs, read_cache, stat_inputs
from producers.kernels.implementations import has_compiled
from producers.ring import require_room
from producers.source import Scan
from producers.worker import Job

# Raised whenever a result changes, so that no store mixes two.
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


@dataclass(frozen=True, slots=True)
class Plan:
    """A build that may begin.

    Attributes:
        config: what was asked for.
        found: the data folder.
        stats: sizes and times of all inputs, taken before any is read.
        confirmed: those of committed samples that were read again and found unchanged.
        remade: committed chunks that are made again, as their inputs are others now.
        backbones: per feature the loaded ``Backbone``.
        batch_sizes: rows per forward pass and feature.
        workers: producer processes.
        job: what each of them does.
        spec: the store's shape.
        fingerprint: everything that changes its numbers.
        changed: fingerprint fields that differ from the store's and were allowed to.
        wanted: what is added to a store, or None.
    """

    config: CompleteConfig
    found: Scan
    stats: InputStats
    confirmed: Mapping[int, InputStat]
    remade: Sequence[int]
    backbones: Mapping[str, Any]
    batch_sizes: Mapping[str, int]
    workers: int
    job: Job
    spec: StoreSpec
    fingerprint: Fingerprint
    changed: Mapping[str, str]
    wanted: Extension | None

    @property
    def view_parts(self) -> list[range]:
        """The views that are made, in the parts whose rows share batches."""
        ends = [int(end) for end in str(self.fingerprint.get("view_parts", "")).split(",") if end]
        ends = ends or [self.spec.views]
        parts = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return parts[-1:] if self.wanted is not None and self.wanted.kind == "views" else parts


def check_intent(config: BuildConfig, state: str) -> None:
    """Refuses a store that is there when nothing was said about it, and the other way round."""
    if config.append and not config.resume:
        raise ConfigError("--append adds to a store that is there: give --resume as well.")
    if config.remake_changed and not config.resume:
        raise ConfigError("--remake-changed goes on with a store: give --resume as well.")
    if state == "store" and not (config.resume or config.overwrite):
        raise InputError(
            f"{config.store} already holds a feature store; nothing was changed.\n"
            "Go on with it with --resume, or start again with --overwrite, which deletes it."
        )


def make_plan(
    config: CompleteConfig,
    found: Scan,
    stored: FeatureStore | None,
    wanted: Extension | None,
    tell: Callable[..., None],
) -> Plan:
    """Checks everything and loads the backbones; writes nothing.

    Args:
        config: what was asked for, completed.
        found: the data folder.
        stored: the store to go on with, or None for a new one.
        wanted: what is to be added to it, or None.
        tell: told of ``loading``.

    Raises:
        ConfigError: an option, a model or the machine does not fit.
        StoreMismatchError: numbers of ``stored`` would change.
    """
    known = _Known(config, stored, wanted)
    features = made_features(config, wanted)
    for name, own in _declared(config, features).items():
        declared.check(name, own)
    device = registry.resolve_device(config.device)
    stats = stat_inputs(found)
    confirmed: dict[int, InputStat] = {}
    remade: list[int] = []
    asked = _asked(config, found, features, device) | known.view_parts()
    if stored is not None:
        _check_samples(stored, found, wanted)
        known.compare(asked)
        confirmed, remade = _check_inputs(config, stored, wanted, found, stats)
        _check_placeholders(config, stored, remade)
    kind: Fingerprint = {"device_kind": registry.device_kind(device)}
    if stored is not None:
        known.compare(kind)
    if device == "cpu":
        begun = known.get("cpu_threads", 0)
        kind["cpu_threads"] = registry.use_cpu_threads(int(begun))
    batch_sizes = {name: _batch_size(config, name, device, known) for name in features}
    workers = config.workers or max(1, len(os.sched_getaffinity(0)) - 1)
    tell("loading", device=device)
    loaded = {name: _load(config, name, device, known) for name in features}
    job = _job(config, loaded, workers)
    require_room(job.layout, job.slots)
    dims = {name: backbone.dim for name, backbone in loaded.items()}
    rows = config.chunk or (0 if stored is None else stored.spec.chunk)
    spec = StoreSpec(
        len(found.samples), config.views, choose_chunk(rows, config.views, dims), dims, config.codec
    )
    fingerprint = asked | kind | _made_by(config, loaded, batch_sizes)
    fingerprint["chunk"] = spec.chunk
    changed = {} if stored is None else known.compare(fingerprint)
    return Plan(
        config=config,
        found=found,
        stats=stats,
        confirmed=confirmed,
        remade=remade,
        backbones=loaded,
        batch_sizes=batch_sizes,
        workers=workers,
        job=job,
        spec=spec,
        fingerprint=fingerprint,
        changed=changed,
        wanted=wanted,
    )


class _Known:
    """The fingerprints that a build must agree with: the store's, and its extension's."""

    def __init__(
        self, config: CompleteConfig, stored: FeatureStore | None, wanted: Extension | None
    ) -> None:
        self._config = config
        self._stored = stored
        self._wanted = wanted
        self._made = None if wanted is None else wanted.made

    def get(self, field: str, default: str | int) -> str | int:
        """What the extension or else the store was begun with."""
        for store in (self._made, self._stored):
            if store is not None and field in store.fingerprint:
                return store.fingerprint[field]
        return default

    def view_parts(self) -> Fingerprint:
        """Where the parts of the views end, if they were made apart."""
        parts = str(self._stored.fingerprint.get("view_parts", "")) if self._stored else ""
        if self._wanted is not None and self._wanted.kind == "views":
            parts = self._wanted.parts(self._config.views)
        return {"view_parts": parts} if parts else {}

    def compare(self, new: Fingerprint) -> dict[str, str]:
        """Compares those fields that ``new`` holds; returns those that were allowed to differ."""
        allow = self._config.allow_version_change
        changed: dict[str, str] = {}
        for store in (self._stored, self._made):
            if store is None:
                continue
            wanted = self._wanted if store is self._stored else None
            fields = {n for n in new if not _differs(wanted, n, store.fingerprint)}
            held = {n: v for n, v in store.fingerprint.items() if n in fields}
            asked = {n: v for n, v in new.items() if n in fields}
            changed |= compare_fingerprints(store.path, held, asked, allow_version_change=allow)
        return changed


def _differs(wanted: Extension | None, field: str, stored: Fingerprint) -> bool:
    """Whether a field of the fingerprint is the extension's own affair."""
    if wanted is None:
        return False
    if field == "codec":  # one for all features, and older stores do not say it
        return False
    return wanted.differs(field) or (wanted.kind == "features" and field not in stored)


def _batch_size(config: CompleteConfig, name: str, device: str, known: _Known) -> int:
    """What was asked for, else what the store was begun with, else the device's default."""
    own = config.backbones.get(name)
    asked = config.batch_sizes.get(name) or (own.batch_size if own else 0)
    begun = int(known.get(f"{name}.batch_size", 0))
    default = declared.batch_size if own else registry.info(name).batch_size
    return asked or begun or default(device)


def _load(config: CompleteConfig, name: str, device: str, known: _Known) -> Any:
    dtype = config.dtype
    if dtype == "auto":
        dtype = str(known.get(f"{name}.dtype", dtype)).removeprefix("torch.")
    if name in config.backbones:
        return declared.load(name, _declared(config, [name])[name], device, dtype)
    return registry.load(
        name, config.models.get(name) or registry.info(name).model(), device, dtype
    )


def _job(config: CompleteConfig, backbones: Mapping[str, Any], workers: int) -> Job:
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


def _asked(
    config: CompleteConfig, found: Scan, features: Sequence[str], device: str
) -> Fingerprint:
    """The part of the fingerprint that is known before the backbones are."""
    return {
        "samples": len(found.samples),
        "stems_sha256": found.stems_sha256,
        "views": config.views,
        "seed": config.seed,
        "image_recipe": IMAGE_RECIPE,
        "text_recipe": TEXT_RECIPE,
        "batch_plan": batch_plan(device),
        "codec": config.codec,
        "features": ",".join(features),
        **{VERSION + name: version(name) for name in (*_VERSIONED, *_libraries(config, features))},
    }


def _libraries(config: CompleteConfig, features: Sequence[str]) -> list[str]:
    """The distributions that only some adapters or codecs need, of those that are used."""
    used = {declared.library(own.adapter) for own in _declared(config, features).values()}
    if config.codec != NONE:
        used.add("numcodecs")  # another version may compress in another way
    return sorted(used - {""})


def _declared(config: CompleteConfig, features: Sequence[str]) -> dict[str, BackboneConfig]:
    """The declared backbones that are built, each with the checkpoint that is to be used."""
    return {
        name: replace(own, model=config.models.get(name) or own.model)
        for name, own in config.backbones.items()
        if name in features
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


def _check_samples(stored: FeatureStore, found: Scan, wanted: Extension | None) -> None:
    """Refuses another sample list than the one that is built from."""
    last = stored
    if wanted is not None and wanted.kind == "samples":
        if wanted.made is None:
            return
        last = wanted.made
    if last.samples != found.samples:
        raise sample_changes(last, found)


def _check_inputs(
    config: CompleteConfig,
    stored: FeatureStore,
    wanted: Extension | None,
    found: Scan,
    stats: InputStats,
) -> tuple[dict[int, InputStat], list[int]]:
    """Compares the inputs of committed samples with what was read for them.

    Returns:
        Sizes and times of those that were read again, so that the next resume need not; and the
        chunks to make again, as ``remake_changed`` asks for.

    Raises:
        StoreMismatchError: inputs are others, and their chunks are not to be made again or cannot.
    """
    cached = {} if config.verify_inputs else read_cache(stored.path / INPUT_CACHE)
    records, remake = stored.records, config.remake_changed
    changed, confirmed = changed_inputs(found, records, stats, cached, mended=remake)
    if not changed:
        return confirmed, []
    names = [repr(name) for of in changed.values() for name in of]
    advice = ""
    if not remake:
        advice = "Restore them; or, if they are as they should be, add --remake-changed."
    elif wanted is not None:
        advice = "Restore them: what is being added is made of the same inputs as the store."
    elif 2 * len(names) > sum(bool(r.image_sha256) + bool(r.text_sha256) for r in records):
        advice = "These are most of them: is it the right --data-dir? If so, --overwrite the store."
    if advice:
        raise StoreMismatchError(
            stored.path,
            "content of inputs",
            "the SHA-256 of what was read",
            f"{len(names)} files hold something else: {some(names)}",
            advice,
        )
    return confirmed, sorted({index // stored.spec.chunk for index in changed})


def _check_placeholders(
    config: CompleteConfig, stored: FeatureStore, remade: Collection[int]
) -> None:
    """Refuses a store that has placeholders where none are wanted."""
    if config.bad_sample == "fail":
        kept = [b for b in stored.bad_inputs if b.index // stored.spec.chunk not in remade]
        refuse_bad(kept, stored.samples, f"{stored.path} has placeholders for")


def refuse_bad(bad: Sequence[BadInput], samples: Sequence[Sample], where: str) -> None:
    """Raises BadInputsError where there is a bad input."""
    if not bad:
        return
    listed = [f"{samples[b.index].stem!r} {b.modality} {b.reason}" for b in bad]
    raise BadInputsError(
        f"{where} {len(bad)} inputs that cannot be used: {some(listed)}.\n"
        "Mend them and go on with --resume --remake-changed; or leave them out in another --store; "
        "or accept --bad-sample placeholder."
    )
