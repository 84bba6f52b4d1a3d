"""The configuration of a build."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consumers.backbones.config import BackboneConfig, check_name
from consumers.workers.share import Share
from featurestore.errors import ConfigError
from featurestore.records import FEATURES, PAPER_VIEWS
from featurestore.storage.codecs import CODECS, NONE
from producers.recipes.recipe import Recipe
from producers.recipes.texts.recipe import TextRecipe
from producers.sources.collection import CollectionConfig, given_collection, require_one


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """The configuration of a build. Defaults are the paper's.

    Attributes:
        store: folder of the store.
        data_dir: folder of MM-IMDb's posters and synopses.
        data: path of a collection whose kind is recognized.
        collection: the description of a collection. Exactly one of ``data_dir``, ``data`` and
            ``collection`` is given.
        follow_links: whether to use symbolic links in it that lead out of it.
        resume: whether to continue an existing store; features or views that a complete store
            lacks are added to it.
        append: with ``resume``, whether to add samples that come after the last one of a complete
            store.
        overwrite: whether to delete an existing store.
        views: number of views per sample, including the clean one; None for that of the store, or
            the paper's 70 for MM-IMDb and 8 for other collections.
        seed: base seed of both recipes.
        image_recipe: how the views of images are made, one of ``manyviews.recipes``; None for that
            of the store, or SimCLR's.
        text_recipe: how the views of texts are made, one of ``manyviews.recipes``; None for that of
            the store, or masked words for MM-IMDb and words left out for other collections.
        features: names of the features to compute; None for those of the store, or the paper's
            four for MM-IMDb, and those of CLIP for the inputs of other collections.
        models: hub id or local folder of each feature whose model is not the default.
        batch_sizes: batch size, in rows, of each feature whose batch size is not the default.
        backbones: custom backbones, by feature; ``features`` selects among them.
        producers: number of producer processes; 0 chooses it by the number of CPUs.
        threads: number of batches that a CPU computes at the same time; 0 chooses the number of
            CPUs.
        slots: number of samples in flight between producers and backbones; 0 chooses it by
            ``producers``.
        chunk: number of samples per chunk, the unit of commit; 0 chooses about 4,480 rows, at
            least 64 samples, that fill whole memory pages.
        codec: ``none``, which training maps, or ``zstd`` for an archive; None for that of the
            store, or ``none``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto`` (bfloat16 on CUDA, float32 on the CPU), ``float32``, ``bfloat16`` or
            ``float16``.
        bad_sample: ``placeholder`` replaces bad inputs and lists them, ``fail`` stops the build.
        allow_version_change: whether to resume although library versions or the device kind
            changed.
        verify_inputs: on resume, whether to read every input of the committed samples again, not
            only those whose size or modification time differs.
        remake_changed: on resume, whether to rebuild the chunks whose inputs changed, instead of
            refusing.
        sample_timeout_s: time after which a sample counts as stuck, in seconds.
        worker: which of several workers this process is, with ``resume``; they build one store
            together. With ``devices``: which of several machines this one is.
        devices: the devices of this machine, on each of which a worker process builds, with
            ``resume``: ``cpu``, ``cuda`` or ``cuda:N``, or ``all`` alone for every CUDA device. A
            device may be repeated. Empty to build in this process, on ``device``. The workers
            divide ``producers`` and ``slots`` among them, and those on a CPU ``threads``.
        ray: Ray cluster on which ``ray_workers`` workers build: its address, or ``local`` to start
            one on this machine; None to build without Ray.
        ray_workers: number of workers on a Ray cluster.
    """

    store: Path
    data_dir: Path | None = None
    data: Path | None = None
    collection: CollectionConfig | None = None
    follow_links: bool = False
    resume: bool = False
    append: bool = False
    overwrite: bool = False
    views: int | None = None
    seed: int = 123
    image_recipe: Recipe | None = None
    text_recipe: TextRecipe | None = None
    features: tuple[str, ...] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    backbones: Mapping[str, BackboneConfig] = field(default_factory=dict)
    producers: int = 0
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
    worker: Share | None = None
    devices: tuple[str, ...] = ()
    ray: str | None = None
    ray_workers: int = 0

    def __post_init__(self) -> None:
        """Checks each field and the fields against each other.

        Raises:
            ConfigError: a value is out of range, with the value found.
        """
        require_one(
            is_needed=True, data_dir=self.data_dir, data=self.data, collection=self.collection
        )
        if self.views is not None:
            _at_least("views", self.views, 1)
        _at_least("seed", self.seed, 0)
        self._check_recipes()
        for name in ("producers", "threads", "slots", "chunk"):
            _at_least(name, getattr(self, name), 0)
        _one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        if self.codec is not None:
            _one_of("codec", self.codec, CODECS)
        _one_of("bad-sample", self.bad_sample, ("placeholder", "fail"))
        if self.resume and self.overwrite:
            raise ConfigError("--resume and --overwrite exclude each other: choose one.")
        if self.worker is not None and not self.resume:
            raise ConfigError("--worker creates a store or continues it: give --resume as well.")
        self._check_devices()
        self._check_ray()
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

    def _check_recipes(self) -> None:
        for modality in ("image", "text"):
            recipe = getattr(self, f"{modality}_recipe")
            if recipe is not None and recipe.modality != modality:
                raise ConfigError(
                    f"{modality}_recipe is a recipe of {modality}s, found {recipe.name!r} of "
                    f"{recipe.modality}s."
                )

    def _check_devices(self) -> None:
        if not self.devices:
            return
        if self.device != "auto":
            raise ConfigError(
                f"--device {self.device} and --devices {','.join(self.devices)} exclude each "
                "other: choose one."
            )
        if not self.resume:
            raise ConfigError(
                "--devices starts workers, which create a store or continue it: give --resume as "
                "well."
            )

    def _check_ray(self) -> None:
        """Refuses options that do not go together with a Ray cluster."""
        if self.ray is None:
            if self.ray_workers:
                raise ConfigError("--ray-workers needs --ray: local, or the address of a cluster.")
            return
        if self.ray_workers < 1:
            raise ConfigError(
                "--ray needs --ray-workers N, the number of workers: one for each GPU or, without "
                f"GPUs, for some CPUs; found {self.ray_workers}."
            )
        if not self.ray or "://" in self.ray:
            raise ConfigError(
                f"--ray is local, auto, or HOST:PORT of a cluster's head, found {self.ray!r}.\n"
                "Run this command on a machine of the cluster: the store must be visible there."
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"--device {self.device} and --ray exclude each other: Ray chooses the GPU of each "
                "worker.\nGive --device auto, cpu or cuda."
            )
        for name, value in (("worker", self.worker), ("devices", self.devices)):
            if value:
                raise ConfigError(
                    f"--{name} and --ray exclude each other: --ray-workers says how many workers "
                    "Ray starts."
                )
        if not self.resume:
            raise ConfigError(
                "--ray starts workers, which create a store or continue it: give --resume as well."
            )

    @property
    def inputs(self) -> CollectionConfig:
        """The collection that ``data_dir``, ``data`` or ``collection`` names.

        Raises:
            InputError: there is nothing at the path ``data``, or nothing of a known kind.
        """
        found = given_collection(
            data_dir=self.data_dir,
            data=self.data,
            collection=self.collection,
            follow_links=self.follow_links,
        )
        assert found is not None  # checked when this was created
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteConfig(BuildConfig):
    """A configuration without unset values.

    Attributes:
        views: number of views per sample.
        image_recipe: how the views of images are made.
        text_recipe: how the views of texts are made.
        features: names of the features that the store is to have.
        codec: codec of the store's chunks.
    """

    views: int = PAPER_VIEWS
    image_recipe: Recipe
    text_recipe: TextRecipe
    features: tuple[str, ...] = FEATURES
    codec: str = NONE

    def __post_init__(self) -> None:
        """Checks nothing: ``BuildConfig`` has checked what the user set."""


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{name} is at least {least}, found {value}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{name} is one of {', '.join(allowed)}, found {value!r}.")


def _known_feature(option: str, name: str, known: Collection[str], more: str = "") -> None:
    """Refuses an unknown feature, and says how to declare one."""
    if name not in known:
        raise ConfigError(
            f"--{option} is one of {', '.join(known)}{more}, found {name!r}.\n"
            "Declare another backbone in a table [backbones.NAME] of a TOML file, and pass the "
            "file with --config."
        )


def expand_models(models: Mapping[str, str], declared: Collection[str] = ()) -> dict[str, str]:
    """Replaces ``blip2`` by both BLIP-2 features.

    Args:
        models: hub id or folder of each feature.
        declared: names of the custom features.

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
