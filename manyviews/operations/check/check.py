"""Check data, models and machine before a build, and predict its duration.

Nothing is fetched. The store is opened for reading only, and the trial build writes to temporary
files. An error in one group does not keep the other groups from being checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consumers.backbones.protocol import modality_of
from consumers.backbones.registry import resolve_device
from consumers.config import BuildConfig, CompleteConfig
from consumers.decisions import Decided, decide
from consumers.notices import slow_paths
from consumers.plan import Plan, make_plan
from consumers.resume.completion import completed
from consumers.resume.extension import features_to_build
from featurestore.errors import (
    BadInputsError,
    ConfigError,
    InputError,
    InterruptedBuildError,
    ManyViewsError,
    StorageError,
    StoreMismatchError,
)
from featurestore.storage.shape import StoreSpec, choose_chunk
from featurestore.storage.space import store_bytes
from featurestore.system.limits import usable_cpus
from featurestore.system.platforms import require_linux
from featurestore.wording import amount
from manyviews.operations.check import collection, duplicates, inputs, libraries, machine
from manyviews.operations.check.findings import CheckReport, Group
from manyviews.operations.check.forecast import forecast_group, spread_into
from manyviews.operations.check.labels import labels_group
from manyviews.operations.check.machine import Free, need_of
from manyviews.operations.check.models import find_models, known_dims, models_group
from manyviews.operations.check.reading import Reading, evenly, read
from manyviews.operations.check.spread import spread_of
from manyviews.operations.check.target import Target, open_target
from manyviews.operations.check.trial import run_trial
from producers.sources.collection import GENERIC
from producers.sources.kinds import scan_collection
from producers.sources.scan import Scan

SAMPLED = 500
_UNLOADED = "First correct the errors above that prevent loading the models."

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """The options of a check.

    Attributes:
        config: the configuration of the build.
        has_store: whether ``config.store`` was named; if not, there is no group about the store.
        split_json: the split file to check, or None.
        full: read every input instead of ``SAMPLED`` of them.
        calibrate: load the models, count tokens, and run a trial build of a few samples.
        sheet: a PNG file to write, with the first samples and their views, or None.
        devices: the device of each worker of this machine; empty for one build process.
    """

    config: BuildConfig
    has_store: bool = True
    split_json: Path | None = None
    full: bool = False
    calibrate: bool = True
    sheet: Path | None = None
    devices: tuple[str, ...] = ()


def run_check(request: CheckRequest, say: Say) -> CheckReport:
    """Runs all checks.

    Args:
        request: the options.
        say: called with a line of text before each step that takes time.

    Raises:
        InputError: the data folder cannot be read, or holds no sample.
        ConfigError: an option is not possible on this machine.
        InterruptedBuildError: a signal ended the trial.
    """
    require_linux("A build")
    scanned = scan_collection(request.config.inputs)
    target = open_target(request.config, scanned) if request.has_store else Target.none()
    config = completed(request.config, target.stored, scanned)
    device = resolve_device(request.config.device)
    return _Check(request, scanned, config, device, target, say).run()


class _Check:
    """One check; holds the results that several of its steps need."""

    def __init__(
        self,
        request: CheckRequest,
        scanned: Scan,
        config: CompleteConfig,
        device: str,
        target: Target,
        say: Say,
    ) -> None:
        self._request = request
        self._scanned = scanned
        self._config = config
        self._target = target
        self._say = say
        self._device = device
        self._free = Free.now(device)
        self._spread = spread_of(request.devices, request.config.worker, device)
        features = features_to_build(config, target.wanted)
        self._models = find_models(config, features, device)
        self._models_group = models_group(self._models)

    def run(self) -> CheckReport:
        """Runs every step."""
        groups = [collection.choices_group(self._config, self._scanned), *self._folder()]
        plan, why = self._plan()
        groups += [*self._read(plan), *self._labels()]
        forecast, peak = self._forecast(plan, why)
        resources = self._machine(plan, peak, why)
        if self._request.has_store:
            groups.append(self._target.group)
        return CheckReport((*groups, self._models_group, resources, forecast))

    def _folder(self) -> list[Group]:
        self._say("comparing files by content")
        data = collection.data_group(self._scanned)
        full = self._request.full
        if self._request.split_json is None:
            duplicates.duplicates_into(data, self._scanned, None, full=full)
            return [data]
        group, split = inputs.split_group(self._request.split_json, self._scanned)
        duplicates.duplicates_into(data, self._scanned, split, full=full)
        return [data, group]

    def _labels(self) -> list[Group]:
        """The labels of a collection other than MM-IMDb, whose genres are read with the texts."""
        is_generic = self._scanned.collection.preset == GENERIC
        return [labels_group(self._scanned)] if is_generic else []

    def _plan(self) -> tuple[Plan | None, str]:
        """The plan of the build with its models loaded; or None, and what to do to get one."""
        decided = self._decided()
        if not self._request.calibrate:
            return None, "Leave --no-calibration out to have the models loaded and tried."
        absent = [m.feature for m in self._models if not m.is_here]
        room = self._free.memory if self._free.device is None else self._free.device
        fits = sum(m.weight_bytes for m in self._models) <= room
        if absent:
            if fits and decided is not None:
                self._load_the_others(decided, absent)
            return None, f"Fetch or name the models first: {', '.join(absent)}."
        if not fits:
            return None, "The weights do not fit: use fewer --features, or a larger machine."
        try:
            plan = self._loaded(decided)
        except (BadInputsError, InputError, StoreMismatchError) as error:
            self._refuse(error)
            plan = self._loaded_anew()
        return plan, "" if plan is not None else _UNLOADED

    def _load_the_others(self, decided: Decided, absent: Sequence[str]) -> None:
        """Loads the models that are on this machine, to list each that cannot be loaded."""
        present = tuple(name for name in decided.features if name not in absent)
        if present:
            # Without the store: its features and chunks fit all models only.
            self._loaded(replace(decided, features=present, stored=None, wanted=None))

    def _loaded_anew(self) -> Plan | None:
        """The plan of a new store, for a check whose existing store does not match."""
        try:
            return self._loaded(self._decided())
        except ManyViewsError as error:
            self._models_group.failure("loading", error)
            return None

    def _loaded(self, decided: Decided | None) -> Plan | None:
        """The plan with its models; None if a model cannot be loaded. Lists each such model."""
        if decided is None:
            return None
        refused: list[tuple[str, ManyViewsError]] = []
        try:
            return make_plan(decided, self._on_event, lambda *why: refused.append(why))
        except (ConfigError, StorageError) as error:
            for feature, why in refused or [("loading", error)]:
                self._models_group.failure(feature, why)
            return None

    def _decided(self) -> Decided | None:
        """What a build decides before it loads models; None if the configuration is wrong."""
        try:
            return decide(self._config, self._scanned, self._target.stored, self._target.wanted)
        except (BadInputsError, InputError, StoreMismatchError) as error:
            self._refuse(error)
            return self._decided()
        except ConfigError as error:
            self._models_group.failure("loading", error)
            return None

    def _refuse(self, error: ManyViewsError) -> None:
        """Lists why the store does not match; the remaining steps assume a new store."""
        self._target.group.failure("resume", error)
        self._target = replace(self._target, stored=None, wanted=None)

    def _on_event(self, event: str, **facts: Any) -> None:
        self._say(f"{event} the backbones on {facts['device']}")

    def _read(self, plan: Plan | None) -> list[Group]:
        found = self._scanned
        samples = found.samples
        chosen = samples if self._request.full else evenly(samples, SAMPLED)
        texts = {} if plan is None else _texts(plan)
        used = plan is None or bool(plan.job.images)
        reading = Reading(
            found.places.source,
            images=used and "image" in found.modalities,
            texts=tuple(texts.values()),
            every_text=self._config.text_recipe.every_text,
        )
        self._say(f"reading {len(chosen):,} of {amount(len(samples), 'sample')}")
        first = samples[: collection.FIRST]
        indices = {sample.index for sample in chosen}
        more = [sample for sample in first if sample.index not in indices]
        workers = self._config.producers or usable_cpus()
        timeout_s = self._config.sample_timeout_s
        looks = read(reading, [*chosen, *more], workers, timeout_s, found.places.where)
        shown = sorted(looks, key=lambda look: look.index)[: len(first)]
        groups = [collection.first_group(shown, samples)]
        if self._request.sheet is not None:
            collection.draw_first(self._config, found, self._request.sheet)
            self._say(f"written: {self._request.sheet}")
        limits = {name: spec.max_length for name, spec in texts.items()}
        fatal = self._config.bad_sample == "fail"
        return groups + collection.input_groups(
            looks[: len(chosen)], found, limits, images=reading.images, fatal=fatal
        )

    def _forecast(self, plan: Plan | None, why: str) -> tuple[Group, int | None]:
        """The predicted duration, and the peak of GPU memory in the trial in bytes, or None."""
        group = Group("forecast", {"seconds": None})
        if plan is None:
            group.warn("trial", "not run", why)
            return group, None
        self._say("building a few samples as a trial")
        try:
            trial = run_trial(plan, self._target.parent)
        except InterruptedBuildError:
            raise
        except ManyViewsError as error:
            group.failure("trial", error)
            return group, None
        todo = self._target.todo(len(self._scanned.samples))
        todo += sum(len(plan.spec.samples_of(chunk)) for chunk in plan.decided.remade)
        group = forecast_group(plan, trial, todo)
        if self._spread.workers > 1:
            spread_into(group, trial, self._spread, plan.producers, todo)
        for notice in slow_paths(plan.job, _texts(plan)):
            what, _, advice = notice.partition(": ")
            group.warn("slow", what, advice)
        return group, self._free.peak(plan)

    def _machine(self, plan: Plan | None, peak: int | None, why: str) -> Group:
        group = Group("machine")
        machine.device_into(group, self._device)
        libraries.torchvision_into(group)
        on_cpu = self._free.device is None
        threads = (self._config.threads or usable_cpus()) if on_cpu else 1
        need = need_of(plan, self._models, self._config, threads).of(self._spread)
        machine.memory_into(group, need, self._free, peak, why)
        store = self._config.store if self._request.has_store else None
        try:
            spec = self._spec(plan)
        except ConfigError as error:
            group.failure("chunk", error)
            return group
        samples = self._scanned.samples
        needed = None if spec is None else store_bytes(spec, samples)
        remade = () if plan is None else plan.decided.remade
        left = None if spec is None else self._target.missing_bytes(spec, samples, remade)
        machine.disk_into(group, store, needed, left, self._target.freed_bytes, why)
        machine.limits_into(group, need.producers, need.threads)
        return group

    def _spec(self, plan: Plan | None) -> StoreSpec | None:
        """The shape of the store to build; None if it is not known without loading the models."""
        if plan is not None:
            return plan.spec
        dims, config = known_dims(self._models), self._config
        if len(dims) < len(self._models):
            return None
        chunk = choose_chunk(config.chunk, config.views, dims)
        return StoreSpec(len(self._scanned.samples), config.views, chunk, dims, config.codec)


def _texts(plan: Plan) -> dict[str, Any]:
    """The tokenizer of each text feature."""
    return {n: b.text for n, b in plan.backbones.items() if modality_of(b) == "text"}
