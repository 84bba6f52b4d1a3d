"""Everything that is decided before anything is written.

What can be refused without the models is refused before they are loaded, and what can be refused at
all before the store is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from consumers.backbones import declared, registry
from consumers.backbones.config import BackboneConfig
from consumers.config import BuildConfig, CompleteConfig
from consumers.engine.batch_plan import batch_plan, plan_multiple
from consumers.resume.checks import Known, check_inputs, check_placeholders, check_samples
from consumers.resume.extension import Extension, made_features
from featurestore.errors import ConfigError, InputError, ManyViewsError, StorageError
from featurestore.storage.codecs import NONE
from featurestore.storage.fingerprint import VERSION, Fingerprint
from featurestore.storage.store import FeatureStore, StoreSpec, choose_chunk, chunk_fits
from featurestore.system.limits import usable_cpus
from featurestore.wording import amount
from producers.kernels.implementations import has_compiled
from producers.slots import require_room
from producers.sources.inputs import InputStat, InputStats, stat_inputs
from producers.sources.source import Scan
from producers.worker import Job

if TYPE_CHECKING:
    import torch

# Raised whenever a result changes, so that no store mixes two.
IMAGE_RECIPE = "simclr-2"
TEXT_RECIPE = "mask-15-1"

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
        threads: batches that are computed side by side.
        job: what each producer does.
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
    threads: int
    job: Job
    spec: StoreSpec
    fingerprint: Fingerprint
    changed: Mapping[str, str]
    wanted: Extension | None

    @property
    def device(self) -> torch.device:
        """Where the backbones compute."""
        return next(iter(self.backbones.values())).device  # type: ignore[no-any-return]

    @property
    def text_multiple(self) -> int:
        """Of how many tokens the length of a batch of texts is a multiple."""
        return plan_multiple(str(self.fingerprint["batch_plan"]))

    @property
    def view_parts(self) -> list[range]:
        """The views that are made, in the parts whose rows share batches."""
        ends = [int(end) for end in str(self.fingerprint.get("view_parts", "")).split(",") if end]
        ends = ends or [self.spec.views]
        parts = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return parts[-1:] if self.wanted is not None and self.wanted.kind == "views" else parts


@dataclass(frozen=True, slots=True)
class Decided:
    """What is decided without the models.

    Attributes:
        config, found, stored, wanted: what :func:`decide` was given.
        known: what the store and its extension were begun with.
        features: those that are made.
        device: ``cpu`` or ``cuda:N``.
        threads: batches that are computed side by side on it.
        stats, confirmed, remade: as in ``Plan``.
        asked: the part of the fingerprint that is known.
    """

    config: CompleteConfig
    found: Scan
    stored: FeatureStore | None
    wanted: Extension | None
    known: Known
    features: tuple[str, ...]
    device: str
    threads: int
    stats: InputStats
    confirmed: Mapping[int, InputStat]
    remade: Sequence[int]
    asked: Fingerprint


def decide(
    config: CompleteConfig, found: Scan, stored: FeatureStore | None, wanted: Extension | None
) -> Decided:
    """Checks everything that can be checked without the models; writes nothing.

    Args:
        config: what was asked for, completed.
        found: the data folder.
        stored: the store to go on with, or None for a new one.
        wanted: what is to be added to it, or None.

    Raises:
        ConfigError: an option or the machine does not fit.
        StoreMismatchError: numbers of ``stored`` would change.
        BadInputsError: it has placeholders that are not wanted.
    """
    known = Known(config, stored, wanted)
    features = made_features(config, wanted)
    for name, own in _declared(config, features).items():
        declared.check(name, own)
    asked = _asked(config, found, features) | known.view_parts()
    if stored is not None:
        check_samples(stored, found, wanted)
        known.compare(asked)
    # From here on torch is needed, whose import takes seconds.
    device = registry.resolve_device(config.device)
    threads = registry.resolve_threads(config.threads, device)
    stats = stat_inputs(found)
    confirmed: dict[int, InputStat] = {}
    remade: list[int] = []
    asked["batch_plan"] = batch_plan(device, str(known.get("batch_plan", "")))
    if stored is not None:
        known.compare({"batch_plan": asked["batch_plan"]})
        confirmed, remade = check_inputs(config, stored, wanted, found, stats)
        check_placeholders(config, stored, remade)
    kind: Fingerprint = {"device_kind": registry.device_kind(device)}
    if stored is not None:
        known.compare(kind | _settled(config, stored, wanted, features, device, known))
    return Decided(
        config=config,
        found=found,
        stored=stored,
        wanted=wanted,
        known=known,
        features=features,
        device=device,
        threads=threads,
        stats=stats,
        confirmed=confirmed,
        remade=remade,
        asked=asked | kind,
    )


def make_plan(
    decided: Decided,
    tell: Callable[..., None],
    refused: Callable[[str, ManyViewsError], None] | None = None,
) -> Plan:
    """Loads the backbones and checks the rest; writes nothing.

    Args:
        decided: what is decided already.
        tell: told of ``loading``.
        refused: called with each feature whose model cannot be loaded, and why, before the first
            of these errors is raised; None to try no other model after one that cannot be loaded.

    Raises:
        ConfigError: a model or the machine does not fit.
        InputError: what is to be added does not fit the store's chunks.
        StoreMismatchError: numbers of the store would change.
    """
    config, found, stored, known = decided.config, decided.found, decided.stored, decided.known
    fingerprint, device = dict(decided.asked), decided.device
    batch_sizes = {name: _batch_size(config, name, device, known) for name in decided.features}
    workers = config.workers or default_workers()
    tell("loading", device=device)
    loaded = _load_all(decided, refused)
    job = _job(config, loaded, workers, decided.wanted)
    require_room(job.layout, job.slots)
    dims = {name: backbone.dim for name, backbone in loaded.items()}
    spec = StoreSpec(
        len(found.samples), config.views, _chunk(config, stored, dims), dims, config.codec
    )
    fingerprint |= _made_by(config, loaded, batch_sizes)
    fingerprint["chunk"] = spec.chunk
    return Plan(
        config=config,
        found=found,
        stats=decided.stats,
        confirmed=decided.confirmed,
        remade=decided.remade,
        backbones=loaded,
        batch_sizes=batch_sizes,
        workers=workers,
        threads=decided.threads,
        job=job,
        spec=spec,
        fingerprint=fingerprint,
        changed={} if stored is None else known.compare(fingerprint),
        wanted=decided.wanted,
    )


def default_workers() -> int:
    """Producer processes where nobody says how many: a CPU is left to this process."""
    return max(1, usable_cpus() - 1)


def _settled(
    config: CompleteConfig,
    stored: FeatureStore,
    wanted: Extension | None,
    features: Sequence[str],
    device: str,
    known: Known,
) -> Fingerprint:
    """What of the fingerprint options alone decide, once the store's own say what is left open."""
    fields: Fingerprint = {
        f"{name}.batch_size": _batch_size(config, name, device, known) for name in features
    }
    if config.dtype != "auto":
        fields |= {
            f"{name}.dtype": f"torch.{registry.resolve_dtype(config.dtype, device, name)}"
            for name in features
            if name not in config.backbones  # whose adapters may do otherwise
        }
    if wanted is None or wanted.kind != "features":
        return fields | {"chunk": _chunk(config, stored, stored.spec.dims)}
    return fields | {"chunk": config.chunk or stored.spec.chunk}  # new features' dims are unknown


def _chunk(config: CompleteConfig, stored: FeatureStore | None, dims: Mapping[str, int]) -> int:
    """Samples of a chunk: as asked for, else the store's, else what suits the features."""
    if config.chunk or stored is None or chunk_fits(stored.spec.chunk, config.views, dims):
        return choose_chunk(
            config.chunk or (0 if stored is None else stored.spec.chunk), config.views, dims
        )
    raise InputError(
        f"{stored.path} has chunks of {amount(stored.spec.chunk, 'sample')}, which "
        f"{amount(config.views, 'view')} of "
        f"{dict(dims)} do not fill whole pages of memory with; nothing was changed.\n"
        "Build them into another --store."
    )


def _batch_size(config: CompleteConfig, name: str, device: str, known: Known) -> int:
    """What was asked for, else what the store was begun with, else the device's default."""
    own = config.backbones.get(name)
    asked = config.batch_sizes.get(name) or (own.batch_size if own else 0)
    begun = int(known.get(f"{name}.batch_size", 0))
    default = declared.batch_size if own else registry.info(name).batch_size
    return asked or begun or default(device)


def _load_all(
    decided: Decided, refused: Callable[[str, ManyViewsError], None] | None
) -> dict[str, Any]:
    """The backbone of each feature; see :func:`make_plan`."""
    loaded: dict[str, Any] = {}
    errors: list[ManyViewsError] = []
    for name in decided.features:
        try:
            loaded[name] = _load(decided.config, name, decided.device, decided.known)
        except (ConfigError, StorageError) as error:
            if refused is None:
                raise
            refused(name, error)
            errors.append(error)
    if errors:
        raise errors[0]
    return loaded


def _load(config: CompleteConfig, name: str, device: str, known: Known) -> Any:
    dtype = config.dtype
    if dtype == "auto":
        dtype = str(known.get(f"{name}.dtype", dtype)).removeprefix("torch.")
    if name in config.backbones:
        return declared.load(name, _declared(config, [name])[name], device, dtype)
    return registry.load(
        name, config.models.get(name) or registry.info(name).model(), device, dtype
    )


def _job(
    config: CompleteConfig, backbones: Mapping[str, Any], workers: int, wanted: Extension | None
) -> Job:
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
        first_view=0 if wanted is None else wanted.first_view,
    )


def _asked(config: CompleteConfig, found: Scan, features: Sequence[str]) -> Fingerprint:
    """The part of the fingerprint that is known before the device and the backbones are."""
    return {
        "samples": len(found.samples),
        "stems_sha256": found.stems_sha256,
        "views": config.views,
        "seed": config.seed,
        "image_recipe": IMAGE_RECIPE,
        "text_recipe": TEXT_RECIPE,
        "codec": config.codec,
        "features": ",".join(features),
        **{VERSION + name: version(name) for name in (*_VERSIONED, *_libraries(config, features))},
    }


def _libraries(config: CompleteConfig, features: Sequence[str]) -> list[str]:
    """The distributions that only some adapters or codecs need, of those that are used."""
    used: set[str] = set()
    for own in _declared(config, features).values():
        used |= declared.libraries(own.adapter)
    if config.codec != NONE:
        used.add("numcodecs")  # another version may compress in another way
    return sorted(used)


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
