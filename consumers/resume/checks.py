"""Whether a store can be gone on with: its numbers, samples, inputs and placeholders."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from consumers.config import BuildConfig, CompleteConfig
from consumers.resume.extension import Extension, sample_changes, some
from featurestore.errors import BadInputsError, ConfigError, InputError, StoreMismatchError
from featurestore.records import BadInput, Sample
from featurestore.storage.fingerprint import Fingerprint, compare_fingerprints
from featurestore.storage.store import FeatureStore
from featurestore.wording import amount
from producers.sources.inputs import InputStat, InputStats, changed_inputs, read_cache
from producers.sources.source import Scan

# Beside the store's records: sizes and times of the inputs that its rows were made of.
INPUT_CACHE = "records/runs/inputs.jsonl"


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


class Known:
    """The fingerprints that a build must agree with: the store's, and its extension's.

    Args:
        config: what was asked for.
        stored: the store to go on with, or None for a new one.
        wanted: what is to be added to it, or None.
    """

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


def check_samples(stored: FeatureStore, found: Scan, wanted: Extension | None) -> None:
    """Refuses another sample list than the one that is built from."""
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
        hold = "holds" if len(names) == 1 else "hold"
        raise StoreMismatchError(
            stored.path,
            "content of inputs",
            "the SHA-256 of what was read",
            f"{amount(len(names), 'file')} {hold} something else: {some(names)}",
            advice,
        )
    return confirmed, sorted({index // stored.spec.chunk for index in changed})


def check_placeholders(
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
        f"{where} {amount(len(bad), 'input')} that cannot be used: {some(listed)}.\n"
        "Mend them and go on with --resume --remake-changed; or leave them out in another --store; "
        "or accept --bad-sample placeholder."
    )
