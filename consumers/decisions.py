"""What is decided about a build without loading its models.

What can be refused without the models is refused here, before seconds or minutes are spent on
loading them. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from consumers.backbones import declared, registry
from consumers.backbones.config import BackboneConfig
from consumers.config import CompleteConfig
from consumers.engine.batch_plan import batch_plan
from consumers.resume.checks import Known, check_inputs, check_placeholders, check_samples
from consumers.resume.extension import Extension, features_to_build
from featurestore.errors import ConfigError, InputError
from featurestore.records import Modality
from featurestore.storage.codecs import NONE
from featurestore.storage.fingerprint import VERSION, Fingerprint
from featurestore.storage.shape import choose_chunk, chunk_fits, rows_of
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount
from producers.sources.inputs import InputStat, stat_inputs
from producers.sources.scan import InputStats, Scan

# The versions of these libraries can change features; those of zarr, click and rich cannot.
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
class Decided:
    """What is decided about a build without loading its models.

    Attributes:
        config: the complete configuration.
        found: the samples of the collection.
        stored: the store to continue, or None for a new one.
        wanted: the extension of ``stored`` to build, or None.
        known: the fingerprints that the build must agree with.
        features: names of the features to compute.
        device: ``cpu`` or ``cuda:N``.
        threads: number of batches that are computed at the same time on ``device``.
        stats: sizes and modification times of all inputs, taken before any input is read.
        confirmed: the stats of those inputs of committed samples that were read again and found
            unchanged, by sample index.
        remade: committed chunks to rebuild because their inputs changed.
        asked: the part of the fingerprint that is known without the models.
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
    """Decides and checks everything that does not need the models.

    Args:
        config: the complete configuration.
        found: the samples of the collection.
        stored: the store to continue, or None for a new one.
        wanted: the extension of ``stored`` to build, or None.

    Raises:
        ConfigError: an option or the machine does not suit the build.
        StoreMismatchError: features of ``stored`` would change.
        BadInputsError: ``stored`` has placeholders, and ``bad_sample`` is ``fail``.
    """
    known = Known(config, stored, wanted)
    features = features_to_build(config, wanted)
    for name, own in declared_backbones(config, features).items():
        declared.check(name, own)
    for name in features:
        if name not in config.backbones:
            require_input(found, name, registry.info(name).modality)
    asked = _asked(config, found, features) | known.view_parts()
    _check_chunk(config, stored, features)
    if stored is not None:
        known.compare({"preset": asked["preset"]})  # its samples have other names of files
        check_samples(stored, found, wanted)
        known.compare(asked)
    # From here on torch is needed; its import takes seconds.
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


def require_input(found: Scan, feature: str, modality: Modality) -> None:
    """Refuses a feature whose input no sample of the collection has.

    Raises:
        ConfigError: the collection has none.
    """
    if modality not in found.modalities:
        has = found.modalities[0]
        raise ConfigError(
            f"{feature} is computed from {modality}s, and {found.path} holds {has}s only.\n"
            f"Choose features of {has}s with --features, or name a collection with {modality}s."
        )


def _settled(
    config: CompleteConfig,
    stored: FeatureStore,
    wanted: Extension | None,
    features: Sequence[str],
    device: str,
    known: Known,
) -> Fingerprint:
    """The fingerprint fields that follow from the options and the store, without the models."""
    fields: Fingerprint = {
        f"{name}.batch_size": batch_size_of(config, name, device, known) for name in features
    }
    if config.dtype != "auto":
        fields |= {
            f"{name}.dtype": f"torch.{registry.resolve_dtype(config.dtype, device, name)}"
            for name in features
            if name not in config.backbones  # their adapters may choose another dtype
        }
    if wanted is None or wanted.kind != "features":
        return fields | {"chunk": chunk_of(config, stored, stored.spec.dims)}
    return fields | {
        "chunk": config.chunk or stored.spec.chunk
    }  # the dimensions of new features are unknown


def chunk_of(config: CompleteConfig, stored: FeatureStore | None, dims: Mapping[str, int]) -> int:
    """Samples per chunk: the configured number, that of the store, or a suitable default."""
    asked = config.chunk or (0 if stored is None else stored.spec.chunk)
    if stored is None or asked != stored.spec.chunk or chunk_fits(asked, config.views, dims):
        return choose_chunk(asked, config.views, dims)
    # Another --chunk would be refused next, because the chunks of a store cannot change.
    raise InputError(
        f"{stored.path} has chunks of {amount(asked, 'sample')}, which do not fill "
        f"whole memory pages with {rows_of(config.views, dims)}; nothing was changed.\n"
        "Build them into another --store."
    )


def _check_chunk(
    config: CompleteConfig, stored: FeatureStore | None, features: Sequence[str]
) -> None:
    """Refuses a chunk size by the dimensions that are known before the models are loaded.

    Raises:
        ConfigError: chunks would not fill whole memory pages.
        InputError: those of the store would not.
    """
    if not config.chunk:
        return
    known = {
        name: registry.known_dim(name, config.models.get(name) or registry.info(name).model())
        for name in features
        if name not in config.backbones
    }
    dims = {name: dim for name, dim in known.items() if dim}
    if dims:
        chunk_of(config, stored, dims)


def batch_size_of(config: CompleteConfig, name: str, device: str, known: Known) -> int:
    """Batch size of a feature: the configured one, that of the store, or the device's default."""
    own = config.backbones.get(name)
    asked = config.batch_sizes.get(name) or (own.batch_size if own else 0)
    stored = int(known.get(f"{name}.batch_size", 0))
    default = declared.batch_size if own else registry.info(name).batch_size
    return asked or stored or default(device)


def _asked(config: CompleteConfig, found: Scan, features: Sequence[str]) -> Fingerprint:
    """The part of the fingerprint that depends neither on the device nor on the backbones."""
    return {
        "samples": len(found.samples),
        "stems_sha256": found.stems_sha256,
        "preset": found.collection.preset,
        "clean_text": found.collection.clean_rule,
        "views": config.views,
        "seed": config.seed,
        **config.image_recipe.settings(),
        **config.text_recipe.settings(),
        "codec": config.codec,
        "features": ",".join(features),
        **{VERSION + name: _version(name) for name in (*_VERSIONED, *_libraries(config, features))},
    }


def _libraries(config: CompleteConfig, features: Sequence[str]) -> list[str]:
    """The distributions that recipes, adapters and the codec need beyond the common ones."""
    used = {*config.image_recipe.libraries(), *config.text_recipe.libraries()} - {*_VERSIONED}
    for own in declared_backbones(config, features).values():
        used |= declared.libraries(own.adapter)
    if config.codec != NONE:
        used.add("numcodecs")  # another version may compress differently
    return sorted(used)


def _version(name: str) -> str:
    """The version of an installed distribution.

    Raises:
        ConfigError: it is not installed here; another machine of the build has it.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        raise ConfigError(
            f"A recipe of this build uses {name}, which is not installed on this machine.\n"
            "Install the version that the other machines have."
        ) from None


def declared_backbones(
    config: CompleteConfig, features: Sequence[str]
) -> dict[str, BackboneConfig]:
    """The declared backbones of ``features``, each with the checkpoint to use."""
    return {
        name: replace(own, model=config.models.get(name) or own.model)
        for name, own in config.backbones.items()
        if name in features
    }
