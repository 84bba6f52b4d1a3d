"""Whether a store can be continued: its fingerprint, samples, inputs and placeholders."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from consumers.config import BuildConfig, CompleteConfig
from consumers.resume.extension import Extension, sample_changes, some
from featurestore.errors import BadInputsError, ConfigError, InputError, StoreMismatchError
from featurestore.records import BadInput, Sample
from featurestore.storage.fingerprint import Fingerprint, compare_fingerprints
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount
from producers.sources.collection import MM_IMDB
from producers.sources.inputs import InputStat, changed_inputs, read_caches
from producers.sources.scan import InputStats, Scan

# Sizes and modification times of the inputs that the store's rows were computed from.
INPUT_CACHE = "records/runs/inputs.jsonl"


def input_cache_of(writer: str) -> str:
    """The file in which a worker keeps them, as several processes must not extend one file."""
    return f"records/runs/inputs-{writer}.jsonl"


_RIGHT = "are these the right inputs, columns and keys?"


def check_intent(config: BuildConfig, state: str) -> None:
    """Refuses an existing store without --resume or --overwrite, and options that need --resume."""
    if config.append and not config.resume:
        raise ConfigError("--append extends an existing store: give --resume as well.")
    if config.remake_changed and not config.resume:
        raise ConfigError("--remake-changed continues an existing store: give --resume as well.")
    if state == "store" and not (config.resume or config.overwrite):
        raise InputError(
            f"{config.store} already holds a feature store; nothing was changed.\n"
            "Continue it with --resume, or start again with --overwrite, which deletes it."
        )


class Known:
    """The recorded fingerprints that a continued build is compared with.

    They are those of the store and of its unfinished extension, whichever exist.

    Args:
        config: the complete configuration.
        stored: the store to continue, or None for a new one.
        wanted: the samples, views or features to add to ``stored``; None if nothing is added.
    """

    def __init__(
        self, config: CompleteConfig, stored: FeatureStore | None, wanted: Extension | None
    ) -> None:
        self._config = config
        self._stored = stored
        self._wanted = wanted
        self._made = None if wanted is None else wanted.made

    def get(self, field: str, default: str | int) -> str | int:
        """A field of the extension's fingerprint, else of the store's, else ``default``."""
        for store in (self._made, self._stored):
            if store is not None and field in store.fingerprint:
                return store.fingerprint[field]
        return default

    def view_parts(self) -> Fingerprint:
        """The field ``view_parts``: ends of view ranges that were built separately; else empty."""
        parts = str(self._stored.fingerprint.get("view_parts", "")) if self._stored else ""
        if self._wanted is not None and self._wanted.kind == "views":
            parts = self._wanted.parts(self._config.views)
        return {"view_parts": parts} if parts else {}

    def compare(self, new: Fingerprint) -> dict[str, str]:
        """Compares this run's fingerprint with the recorded ones.

        Returns:
            The fields whose differences are allowed, each as ``stored -> new``.

        Raises:
            StoreMismatchError: another field differs.
        """
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
    """Whether the extension may differ from the store in a fingerprint field."""
    if wanted is None:
        return False
    if field == "codec":  # one for all features, and absent from older fingerprints
        return False
    return wanted.differs(field) or (wanted.kind == "features" and field not in stored)


def check_samples(stored: FeatureStore, found: Scan, wanted: Extension | None) -> None:
    """Refuses a sample list that differs from the one that the store was built from."""
    last = stored
    if wanted is not None and wanted.kind == "samples":
        if wanted.made is None:
            return
        last = wanted.made
    if last.samples != found.samples:
        raise sample_changes(last, found)


def check_inputs(
    config: CompleteConfig,
    stored: FeatureStore,
    wanted: Extension | None,
    found: Scan,
    stats: InputStats,
) -> tuple[dict[int, InputStat], list[int]]:
    """Compares the inputs of committed samples with the inputs that were read for them.

    Returns:
        Sizes and modification times of the inputs that were read again, so that the next resume
        need not read them; and the chunks to rebuild if ``remake_changed`` is set.

    Raises:
        StoreMismatchError: inputs changed, and their chunks may not or cannot be rebuilt.
    """
    cached = {} if config.verify_inputs else read_caches((stored.path / INPUT_CACHE).parent)
    records, remake = stored.records, config.remake_changed
    changed, confirmed = changed_inputs(found, records, stats, cached, repaired=remake)
    if not changed:
        return confirmed, []
    is_paper = found.collection.kind == MM_IMDB
    names = [repr(name) for of in changed.values() for name in of]
    advice = ""
    if not remake:
        advice = "Restore them; or, if the change is intended, add --remake-changed."
    elif wanted is not None:
        advice = "Restore them: what is being added must be computed from the inputs of the store."
    elif 2 * len(names) > sum(bool(r.image_sha256) + bool(r.text_sha256) for r in records):
        which = "is it the right --data-dir?" if is_paper else _RIGHT
        advice = f"Most inputs changed: {which} If so, --overwrite the store."
    if advice:
        raise StoreMismatchError(
            stored.path,
            "content of inputs",
            "the content that was read",
            f"other content in {amount(len(names), 'file' if is_paper else 'input')}: "
            f"{some(names)}",
            advice,
        )
    return confirmed, sorted({index // stored.spec.chunk for index in changed})


def check_placeholders(
    config: CompleteConfig, stored: FeatureStore, remade: Collection[int]
) -> None:
    """Refuses a store with placeholders if ``bad_sample`` is ``fail``."""
    if config.bad_sample == "fail":
        kept = [b for b in stored.bad_inputs if b.index // stored.spec.chunk not in remade]
        refuse_bad(kept, stored.samples, f"{stored.path} has placeholders for")


def refuse_bad(bad: Sequence[BadInput], samples: Sequence[Sample], where: str) -> None:
    """Raises BadInputsError if there are bad inputs."""
    if not bad:
        return
    listed = [f"{samples[b.index].stem!r} {b.modality} {b.reason}" for b in bad]
    raise BadInputsError(
        f"{where} {amount(len(bad), 'input')} that cannot be used: {some(listed)}.\n"
        "Repair them and continue with --resume --remake-changed; or remove them and use another "
        "--store; or accept --bad-sample placeholder."
    )
