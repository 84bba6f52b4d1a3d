"""Put source, producers, backbones and store together: the main loop of a build."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers import backbones as registry
from consumers.backbones import Backbone
from consumers.batching import ImageBatcher, TextBatcher
from featurestore import store as stores
from featurestore.config import VERSION, BuildConfig, Fingerprint, compare_fingerprints
from featurestore.durable import FileLock
from featurestore.errors import InputError, InterruptedBuildError, StoreMismatchError
from featurestore.records import BadInput, SampleRecord
from featurestore.store import FeatureStore, StoreSpec, StoreWriter
from producers.pool import ProducerPool, SampleViews
from producers.ring import require_room
from producers.source import Scan, scan
from producers.worker import STOP_SIGNALS, Job

# Raised whenever a recipe's result changes, so that no store mixes two.
IMAGE_RECIPE = "simclr-1"
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

# Called with an event's name and its facts; see ``progress`` for those that listen.
Observer = Callable[[str, Mapping[str, Any]], None]
Rows = dict[str, npt.NDArray[np.float32]]


@dataclass(slots=True)
class BuildReport:
    """How a build ended.

    Attributes:
        store: the store.
        samples: samples in the store.
        views: views per sample.
        built: samples made by this run.
        seconds: wall-clock seconds of making them.
        waited_s: of these, seconds in which the backbones waited for producers.
        bad: every input of the store that a placeholder stands in for.
        truncated: views cut to the tokenizer's length per text feature, in this run.
        replaced: producers that died and were replaced, by what ended them.
    """

    store: Path
    samples: int
    views: int
    built: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    bad: list[BadInput] = field(default_factory=list)
    truncated: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)


def build(config: BuildConfig, observers: Sequence[Observer] = ()) -> BuildReport:
    """Makes the store that ``config`` asks for, or goes on with it.

    Args:
        config: what to build.
        observers: told of everything that happens.

    Returns:
        The report, when every chunk is committed.

    Raises:
        InputError: the data folder or what is at ``config.store`` does not fit.
        ConfigError: an option, a model or the machine does not fit.
        StoreMismatchError: ``resume`` would change numbers that are already there.
        StoreLockedError: another process is writing to the store.
        InterruptedBuildError: a signal ended it after a committed chunk.
        BackboneError, ProducerError, StorageError: it failed; what is committed stays.
    """

    def tell(event: str, **facts: Any) -> None:
        for observer in observers:
            observer(event, facts)

    found = scan(config.data_dir)
    tell("scanned", **_scan_facts(found))
    state = stores.state_of(config.store)
    _check_intent(config, state)
    with ExitStack() as stack:
        lock = stores.take_lock(config.store) if state != "absent" else None
        if lock is not None:
            stack.callback(lock.release)
        if state == "store" and config.resume:
            _check_samples(FeatureStore(config.store), found)
        device = registry.resolve_device(config.device)
        tell("loading", device=device)
        loaded = _load(config, device)
        batch_sizes = _batch_sizes(config, device)
        job = _job(config, loaded)
        require_room(job.layout, job.slots)
        writer, changed = _open(config, found, loaded, batch_sizes, state, lock)
        stack.enter_context(writer)
        run = _Run(config, found, loaded, batch_sizes, job, writer, changed, tell)
        return run.execute()


def _scan_facts(found: Scan) -> dict[str, Any]:
    return {
        "samples": len(found.samples),
        "unmatched_images": list(found.unmatched_images),
        "unmatched_texts": list(found.unmatched_texts),
        "left_out": [list(pair) for pair in found.left_out],
    }


def _check_intent(config: BuildConfig, state: str) -> None:
    if state == "store" and not (config.resume or config.overwrite):
        raise InputError(
            f"{config.store} already holds a feature store; nothing was changed.\n"
            "Go on with it with --resume, or start again with --overwrite, which deletes it."
        )


def _check_samples(store: FeatureStore, found: Scan) -> None:
    """Refuses another sample list before the models are loaded, naming what came or went."""
    before, now = store.stems, [s.stem for s in found.samples]
    if before == now:
        return
    added, removed = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    changes = [f"+{s!r}" for s in added[:5]] + [f"-{s!r}" for s in removed[:5]]
    more = max(0, len(added) - 5) + max(0, len(removed) - 5)
    listed = ", ".join(changes) + (f" and {more} more" if more else "")
    raise StoreMismatchError(
        store.path,
        "sample list",
        f"{len(before)} samples",
        f"{len(now)} samples ({listed})",
        "Rows are addressed by position: restore the folder, or build into another --store.",
    )


def _load(config: BuildConfig, device: str) -> dict[str, Backbone]:
    return {
        name: registry.load(
            name, config.models.get(name) or registry.info(name).model(), device, config.dtype
        )
        for name in config.features
    }


def _batch_sizes(config: BuildConfig, device: str) -> dict[str, int]:
    return {
        name: config.batch_sizes.get(name) or registry.info(name).batch_size(device)
        for name in config.features
    }


def _workers(config: BuildConfig) -> int:
    return config.workers or max(1, len(os.sched_getaffinity(0)) - 1)


def _job(config: BuildConfig, backbones: Mapping[str, Any]) -> Job:
    """What the producers do for these backbones."""
    images = [b.image for name, b in backbones.items() if registry.info(name).modality == "image"]
    texts = [b.text for name, b in backbones.items() if registry.info(name).modality == "text"]
    return Job(
        data_dir=str(config.data_dir.resolve()),
        views=config.views,
        seed=config.seed,
        images=tuple(dict.fromkeys(images)),
        texts=tuple(texts),
        # Two in hand for each producer, and two that wait for the backbones.
        slots=config.slots or 2 * _workers(config) + 2,
    )


def _device_kind(backbones: Mapping[str, Backbone]) -> str:
    device = next(iter(backbones.values())).device
    if device.type != "cuda":
        return device.type
    import torch

    return f"cuda: {torch.cuda.get_device_name(device)}"


def _fingerprint(
    config: BuildConfig,
    found: Scan,
    backbones: Mapping[str, Backbone],
    batch_sizes: Mapping[str, int],
    chunk: int,
) -> Fingerprint:
    """Everything that changes numbers; see ``BuildConfig`` for what does not."""
    fingerprint: Fingerprint = {
        "samples": len(found.samples),
        "stems_sha256": found.stems_sha256,
        "views": config.views,
        "seed": config.seed,
        "chunk": chunk,
        "image_recipe": IMAGE_RECIPE,
        "text_recipe": TEXT_RECIPE,
        "features": ",".join(config.features),
        "device_kind": _device_kind(backbones),
    }
    for name, backbone in backbones.items():
        fingerprint[f"{name}.model"] = backbone.model
        fingerprint[f"{name}.weights_sha256"] = backbone.fingerprint
        fingerprint[f"{name}.dtype"] = str(backbone.dtype)
        fingerprint[f"{name}.batch_size"] = batch_sizes[name]
    fingerprint.update({VERSION + name: version(name) for name in _VERSIONED})
    return fingerprint


def _open(
    config: BuildConfig,
    found: Scan,
    backbones: Mapping[str, Backbone],
    batch_sizes: Mapping[str, int],
    state: str,
    lock: FileLock | None,
) -> tuple[StoreWriter, dict[str, str]]:
    """The store to write into, and the fingerprint fields that were allowed to differ."""
    dims = {name: backbone.dim for name, backbone in backbones.items()}
    resuming = state == "store" and config.resume
    asked = config.chunk
    if resuming and asked == 0:
        asked = FeatureStore(config.store).spec.chunk
    chunk = stores.choose_chunk(asked, config.views, dims)
    fingerprint = _fingerprint(config, found, backbones, batch_sizes, chunk)
    if resuming and lock is not None:
        writer = StoreWriter(config.store, lock)
        changed = compare_fingerprints(
            config.store,
            writer.fingerprint,
            fingerprint,
            allow_version_change=config.allow_version_change,
        )
        return writer, changed
    spec = StoreSpec(len(found.samples), config.views, chunk, dims)
    if lock is None:
        lock = stores.take_lock(config.store)
        if stores.state_of(config.store) == "store":
            lock.release()
            raise InputError(
                f"Another process made {config.store} meanwhile; nothing was changed.\n"
                "Go on with it with --resume, or choose another --store."
            )
    if state == "store":
        stores.erase(config.store)
    return stores.create(config.store, spec, fingerprint, found.samples, lock), {}


class _Run:
    """One run of the main loop."""

    def __init__(
        self,
        config: BuildConfig,
        found: Scan,
        backbones: Mapping[str, Any],
        batch_sizes: Mapping[str, int],
        job: Job,
        writer: StoreWriter,
        changed: Mapping[str, str],
        tell: Callable[..., None],
    ) -> None:
        self._config = config
        self._found = found
        self._job = job
        self._writer = writer
        self._changed = changed
        self._tell = tell
        rows = writer.spec.chunk * writer.spec.views
        self._images: dict[str, ImageBatcher] = {}
        self._texts: dict[str, TextBatcher] = {}
        for name, backbone in backbones.items():
            if registry.info(name).modality == "image":
                self._images[name] = ImageBatcher(backbone, batch_sizes[name], rows)
            else:
                self._texts[name] = TextBatcher(backbone, batch_sizes[name], rows)
        self._image_specs = {name: backbones[name].image for name in self._images}
        self._workers = _workers(config)
        self._report = BuildReport(config.store, writer.spec.samples, writer.spec.views)

    def execute(self) -> BuildReport:
        """Makes every chunk that is missing, in order."""
        missing = self._writer.ledger.missing
        spec = self._writer.spec
        indices = [i for chunk in missing for i in spec.samples_of(chunk)]
        self._tell(
            "started",
            store=str(self._config.store),
            samples=spec.samples,
            views=spec.views,
            done=spec.samples - len(indices),
            chunk=spec.chunk,
            features=dict(spec.dims),
            workers=self._workers,
            slots=self._job.slots,
            fingerprint=self._writer.fingerprint,
            changed=dict(self._changed),
            notices=self._writer.notices,
        )
        if missing:
            self._make(missing, indices)
        self._writer.finish()
        self._report.bad = self._writer.bad_inputs
        self._tell("finished", **_report_facts(self._report))
        return self._report

    def _make(self, missing: Sequence[int], indices: Sequence[int]) -> None:
        samples = (self._found.samples[i] for i in indices)
        workers = min(self._workers, len(indices))
        timeout_s = self._config.sample_timeout_s
        start = time.monotonic()
        with (
            _stop_signals() as stopped,
            ProducerPool(self._job, samples, workers=workers, timeout_s=timeout_s) as pool,
        ):
            for chunk in missing:
                rows, records = self._chunk(pool, chunk)
                self._refuse_bad(records)
                self._writer.commit_chunk(chunk, rows, records, self._changed)
                self._report.built += len(records)
                self._report.seconds = time.monotonic() - start
                self._report.waited_s = pool.waited_s
                self._report.replaced = pool.replaced
                self._tell("chunk", chunk=chunk, **_chunk_facts(records, self._report))
                if stopped and not self._writer.complete:
                    raise _interrupted(stopped[0], self._writer)

    def _chunk(self, pool: ProducerPool, chunk: int) -> tuple[Rows, list[SampleRecord]]:
        """One chunk's features, float32 ``[n, V, D]`` each, and its sample records."""
        spec = self._writer.spec
        indices = spec.samples_of(chunk)
        records: list[SampleRecord] = []
        for _ in indices:
            views = pool.take()
            self._add(views)
            pool.release(views)
            records.append(views.record)
            self._tell("sample", filled=pool.filled, slots=self._job.slots, waited_s=pool.waited_s)
        batchers: dict[str, ImageBatcher | TextBatcher] = {**self._images, **self._texts}
        for batcher in batchers.values():
            batcher.flush()  # all are on the device before the first is waited for
        rows = {
            name: batchers[name].finish(indices[0]).reshape(len(indices), spec.views, dim)
            for name, dim in spec.dims.items()
        }
        return rows, records

    def _add(self, views: SampleViews) -> None:
        for name, images in self._images.items():
            spec = self._image_specs[name]
            images.add(views.arrays.clean[spec], views.arrays.augmented[spec.size])
        for k, (name, texts) in enumerate(self._texts.items()):
            texts.add(views.arrays.ids[k], views.arrays.lengths[k])
            self._report.truncated[name] += views.cut[k]

    def _refuse_bad(self, records: Sequence[SampleRecord]) -> None:
        bad = [b for r in records for b in r.bad]
        if self._config.bad_sample == "placeholder" or not bad:
            return
        samples = self._found.samples
        listed = "; ".join(f"{samples[b.index].stem!r} {b.modality} {b.reason}" for b in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise InputError(
            f"{len(bad)} inputs of this chunk cannot be used: {listed}{more}.\n"
            "Mend or remove them, or accept placeholders with --bad-sample placeholder."
        )


def _chunk_facts(records: Sequence[SampleRecord], report: BuildReport) -> dict[str, Any]:
    return {
        "samples": len(records),
        "built": report.built,
        "seconds": round(report.seconds, 3),
        "waited_s": round(report.waited_s, 3),
        "bad": [[b.index, b.modality, b.reason, b.detail] for r in records for b in r.bad],
    }


def _report_facts(report: BuildReport) -> dict[str, Any]:
    return {
        "built": report.built,
        "seconds": round(report.seconds, 3),
        "waited_s": round(report.waited_s, 3),
        "bad": len(report.bad),
        "truncated": dict(report.truncated),
        "replaced": dict(report.replaced),
    }


def _interrupted(number: int, writer: StoreWriter) -> InterruptedBuildError:
    done, chunks = len(writer.ledger), writer.spec.chunks
    return InterruptedBuildError(
        number,
        f"Stopped by {signal.Signals(number).name} after {done} of {chunks} chunks.\n"
        "Everything committed is kept; go on with --resume.",
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects the first stop signal, so that the chunk in hand is finished and committed.

    A second one acts as it would have without us: Ctrl-C twice stops at once, and loses nothing
    but the chunk in hand.
    """
    # One that is ignored stays so: nohup's SIGHUP, a background job's SIGINT.
    numbers = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may set handlers
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: object) -> None:
        stopped.append(number)
        signal.signal(number, previous[number])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
