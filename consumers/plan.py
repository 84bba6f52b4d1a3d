"""The plan of a build: everything that is decided before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumers.backbones import declared, registry
from consumers.config import CompleteConfig
from consumers.decisions import (
    Decided,
    batch_size_of,
    chunk_of,
    declared_backbones,
    require_input,
)
from consumers.engine.batch_plan import plan_multiple
from consumers.resume.extension import Extension
from featurestore.errors import ConfigError, ManyViewsError, StorageError
from featurestore.records import Modality
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.shape import StoreSpec
from featurestore.system.limits import usable_cpus
from producers.kernels.implementations import has_compiled
from producers.slots import require_room
from producers.sources.scan import Scan
from producers.worker import Job

if TYPE_CHECKING:
    import torch


# Loaded backbones by feature, checkpoint, device and dtype.
Loaded = dict[tuple[str, str, str, str], Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """A build that can start.

    Attributes:
        decided: what was decided before the models were loaded.
        backbones: the loaded ``Backbone`` of each feature.
        batch_sizes: batch size of each feature, in rows.
        producers: number of producer processes.
        job: what each producer does.
        spec: shape of the store.
        fingerprint: everything that determines the features' values.
        changed: fingerprint fields that differ from those of the store, and were allowed to.
    """

    decided: Decided
    backbones: Mapping[str, Any]
    batch_sizes: Mapping[str, int]
    producers: int
    job: Job
    spec: StoreSpec
    fingerprint: Fingerprint
    changed: Mapping[str, str]

    @property
    def device(self) -> torch.device:
        """The device on which the backbones compute."""
        return next(iter(self.backbones.values())).device  # type: ignore[no-any-return]

    @property
    def text_multiple(self) -> int:
        """Number of tokens that the padded length of a batch of texts is a multiple of."""
        return plan_multiple(str(self.fingerprint["batch_plan"]))

    @property
    def view_parts(self) -> list[range]:
        """The views to build, split into the ranges whose rows may share a batch."""
        wanted = self.decided.wanted
        ends = [int(end) for end in str(self.fingerprint.get("view_parts", "")).split(",") if end]
        ends = ends or [self.spec.views]
        parts = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return parts[-1:] if wanted is not None and wanted.kind == "views" else parts


def make_plan(
    decided: Decided,
    notify: Callable[..., None],
    refused: Callable[[str, ManyViewsError], None] | None = None,
    loaded_before: Loaded | None = None,
) -> Plan:
    """Loads the backbones and checks the rest; writes nothing.

    Args:
        decided: what was decided without the models.
        notify: callback that receives the event ``loading``.
        refused: callback that receives each feature whose model cannot be loaded, with the error,
            before the first of these errors is raised; None to stop at the first error.
        loaded_before: backbones that are used instead of loading them again; those that are loaded
            are added to it.

    Raises:
        ConfigError: a model or the machine does not suit the build.
        InputError: the features to add do not fit the chunks of the store.
        StoreMismatchError: stored features would change.
    """
    config, stored, known = decided.config, decided.stored, decided.known
    fingerprint, device = dict(decided.asked), decided.device
    batch_sizes = {name: batch_size_of(config, name, device, known) for name in decided.features}
    producers = config.producers or default_producers()
    notify("loading", device=device)
    loaded = load_all(decided, refused, {} if loaded_before is None else loaded_before)
    job = _job(config, loaded, producers, decided.wanted, decided.found)
    require_room(job.layout, job.slots)
    if config.worker is not None and (machine := config.worker.machine) is not None:
        require_room(job.layout, machine.slots, machine.free_bytes)
    dims = {name: backbone.dim for name, backbone in loaded.items()}
    spec = StoreSpec(
        len(decided.found.samples),
        config.views,
        chunk_of(config, stored, dims),
        dims,
        config.codec,
        {name: registry.modality_of(backbone) for name, backbone in loaded.items()},
    )
    _require_inputs(decided.found, spec.modalities)
    fingerprint |= _backbone_fields(config, loaded, batch_sizes)
    fingerprint["chunk"] = spec.chunk
    return Plan(
        decided=decided,
        backbones=loaded,
        batch_sizes=batch_sizes,
        producers=producers,
        job=job,
        spec=spec,
        fingerprint=fingerprint,
        changed={} if stored is None else known.compare(fingerprint),
    )


def _require_inputs(found: Scan, modalities: Mapping[str, Modality]) -> None:
    """Refuses features whose input the collection does not have."""
    for name, modality in modalities.items():
        require_input(found, name, modality)


def default_slots(producers: int) -> int:
    """Default number of slots: two for each producer, and two that wait for the backbones."""
    return 2 * producers + 2


def default_producers() -> int:
    """Default number of producer processes: one CPU is left to this process."""
    return max(1, usable_cpus() - 1)


def load_all(
    decided: Decided,
    refused: Callable[[str, ManyViewsError], None] | None,
    before: Loaded,
) -> dict[str, Any]:
    """Loads the backbone of each feature; see :func:`make_plan`."""
    loaded: dict[str, Any] = {}
    errors: list[ManyViewsError] = []
    for name in decided.features:
        try:
            loaded[name] = _load(decided, name, before)
            _require_mask_token(decided.config, name, loaded[name])
        except (ConfigError, StorageError) as error:
            if refused is None:
                raise
            refused(name, error)
            errors.append(error)
    if errors:
        raise errors[0]
    return loaded


def _require_mask_token(config: CompleteConfig, name: str, backbone: Any) -> None:
    """Refuses a model without the mask token that the recipe of texts needs.

    Raises:
        ConfigError: its tokenizer has none.
    """
    recipe = config.text_recipe
    is_text = registry.modality_of(backbone) == "text"
    if is_text and recipe.needs_mask_token and not backbone.text.mask_token:
        raise ConfigError(
            f"{name}: the tokenizer of {backbone.model} has no mask token, which the recipe "
            f'"{recipe.name}" with token = "model" needs.\n'
            'Set name = "drop" in [recipe.text], which leaves words out, or name a token.'
        )


def _load(decided: Decided, name: str, before: Loaded) -> Any:
    """Loads the backbone of one feature, unless it has been loaded before."""
    config, device = decided.config, decided.device
    dtype = config.dtype
    if dtype == "auto":
        dtype = str(decided.known.get(f"{name}.dtype", dtype)).removeprefix("torch.")
    own = declared_backbones(config, [name]).get(name)
    model = config.models.get(name) or ("" if own else registry.info(name).model())
    key = (name, repr(own) if own else model, device)
    if (*key, dtype) not in before:
        backbone = (
            declared.load(name, own, device, dtype)
            if own
            else registry.load(name, model, device, dtype)
        )
        # What "auto" chose is the dtype that the store records, which the next plan asks for.
        for each in (dtype, str(backbone.dtype).removeprefix("torch.")):
            before[(*key, each)] = backbone
    return before[(*key, dtype)]


def _job(
    config: CompleteConfig,
    backbones: Mapping[str, Any],
    producers: int,
    wanted: Extension | None,
    found: Scan,
) -> Job:
    kinds = {name: registry.modality_of(backbone) for name, backbone in backbones.items()}
    images = [b.image for name, b in backbones.items() if kinds[name] == "image"]
    texts = [b.text for name, b in backbones.items() if kinds[name] == "text"]
    return Job(
        source=found.places.source,
        views=config.views,
        seed=config.seed,
        image_recipe=config.image_recipe.values(),
        text_recipe=config.text_recipe.values(),
        images=tuple(dict.fromkeys(images)),
        texts=tuple(texts),
        slots=config.slots or default_slots(producers),
        compiled=has_compiled(),
        first_view=0 if wanted is None else wanted.first_view,
    )


def _backbone_fields(
    config: CompleteConfig, backbones: Mapping[str, Any], batch_sizes: Mapping[str, int]
) -> Fingerprint:
    """The part of the fingerprint that is known when the backbones are loaded."""
    fingerprint: Fingerprint = {}
    for name, backbone in backbones.items():
        fingerprint[f"{name}.model"] = backbone.model
        fingerprint[f"{name}.weights_sha256"] = backbone.fingerprint
        fingerprint[f"{name}.dtype"] = str(backbone.dtype)
        fingerprint[f"{name}.batch_size"] = batch_sizes[name]
        if name in config.backbones:
            fingerprint |= declared.settings(name, config.backbones[name], backbone)
    return fingerprint
