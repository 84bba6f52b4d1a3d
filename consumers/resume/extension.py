"""Extensions of a store: features, views or samples that a build adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from consumers.config import CompleteConfig
from featurestore.errors import InputError, StoreMismatchError
from featurestore.records import Sample, SampleRecord
from featurestore.storage import extension
from featurestore.storage.fingerprint import Fingerprint
from featurestore.storage.store import EXTENSION, FeatureStore
from featurestore.storage.writer import StoreWriter
from featurestore.system.links import FOLLOW
from featurestore.system.refusals import is_folder, status_of
from featurestore.wording import amount
from producers.sources.scan import Scan

# Fingerprint fields in which a store and its extension differ.
_GROWN = {
    "features": {"features"},
    "views": {"views", "view_parts"},
    "samples": {"samples", "stems_sha256"},
}
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension of a complete store.

    Attributes:
        kind: what is added: ``features``, ``views`` or ``samples``.
        base: the store that is extended.
        made: the extension as an earlier build left it, or None if none was started.
    """

    kind: str
    base: FeatureStore
    made: FeatureStore | None

    @classmethod
    def of(cls, base: FeatureStore, made: FeatureStore) -> Extension:
        """The extension of ``base`` that an earlier build left as ``made``."""
        if set(made.features).isdisjoint(base.features):
            return cls("features", base, made)
        return cls("views" if made.spec.views > base.spec.views else "samples", base, made)

    def parts(self, views: int) -> str:
        """The ends of the view ranges that are built separately, for the fingerprint."""
        ends = str(self.base.fingerprint.get("view_parts", self.base.spec.views))
        return f"{ends},{views}" if self.kind == "views" else ends

    @property
    def first_view(self) -> int:
        """Index of the first view to build; the store has the views before it."""
        return self.base.spec.views if self.kind == "views" else 0

    def rows_before(self, feature: str, chunk: int) -> npt.NDArray[np.float32]:
        """The rows of a chunk that the store has already, float32 ``[n, V, D]``."""
        return self.base.read_chunk(feature, chunk)

    def changed_before(self, chunk: int) -> Mapping[str, str]:
        """The fingerprint fields that differed when the store's chunk was built."""
        return self.base.ledger[chunk].changed

    def require_same_inputs(self, record: SampleRecord) -> None:
        """Raises StoreMismatchError unless the sample's inputs are those of the store's sample."""
        extension.require_same_inputs(self.base, record)

    def finish(self, writer: StoreWriter) -> FeatureStore:
        """Puts the extension in place; returns the extended store."""
        extension.finish(self.base, writer, self.whole(writer.fingerprint))
        return FeatureStore(self.base.path)

    def take_over(self, writer: StoreWriter) -> None:
        """Commits those chunks of the extension that are equal to chunks of the store."""
        spec = self.base.spec
        whole = range(spec.samples // spec.chunk if self.kind == "samples" else 0)
        for chunk in sorted(set(writer.ledger.missing).intersection(whole)):
            rows = {name: self.base.read_chunk(name, chunk) for name in writer.features}
            entry = self.base.ledger[chunk]
            writer.commit_chunk(chunk, rows, entry.samples, entry.changed)

    def differs(self, field: str) -> bool:
        """Whether a fingerprint field may differ between the store and its extension."""
        return field in _GROWN[self.kind]

    def whole(self, fingerprint: Fingerprint) -> Fingerprint:
        """The fingerprint of the extended store, given that of the extension.

        The fields are in the order of a store that was built in one run.
        """
        if self.kind != "features":
            return fingerprint
        base = dict(self.base.fingerprint)
        chunk = base.pop("chunk")
        base["features"] = f"{base['features']},{fingerprint['features']}"
        return {**base, **{k: v for k, v in fingerprint.items() if k not in base}, "chunk": chunk}


def find_extension(
    config: CompleteConfig, stored: FeatureStore | None, found: Scan
) -> Extension | None:
    """Finds the extension of ``stored`` that ``config`` asks for; None if it adds nothing.

    Raises:
        InputError: it adds more than one kind, or something else than an unfinished extension
            does, or a file is in the way of a new feature.
        StoreMismatchError: the data folder has new samples that cannot be appended.
    """
    if stored is None or not config.resume:
        return None
    new = [name for name in config.features if name not in stored.features]
    kinds = ["features"] if new else []
    if config.views > stored.spec.views:
        kinds.append("views")
    made = unfinished(stored)
    appending = made is not None and made.spec.samples > stored.spec.samples
    if stored.samples != found.samples and (config.append or appending):
        if not _is_appended(stored, found):
            raise sample_changes(stored, found)
        kinds.append("samples")
    if not kinds or not stored.complete:
        return None  # the fields of an incomplete store are compared, and refused, later
    if len(kinds) > 1:
        raise InputError(
            f"{stored.path} would get more {' and '.join(kinds)} at once; nothing was changed.\n"
            "Add one kind after the other."
        )
    wanted = Extension(kinds[0], stored, made)
    _require_free_names(stored, new)
    if made is not None and not _is_started(wanted, config, found, new):
        raise InputError(
            f"{stored.path} has an unfinished extension by something else; nothing was "
            f"changed.\nContinue that one with --resume alone, or delete {stored.path / EXTENSION} "
            "to drop it."
        )
    return wanted


def _require_free_names(stored: FeatureStore, new: Sequence[str]) -> None:
    """Refuses new features whose folders would replace existing files.

    Raises:
        InputError: a file or folder with a feature's name exists.
    """
    for name in new:
        place = stored.path / name
        if place.is_symlink() or (status_of(place) is not None and not _is_empty_folder(place)):
            raise InputError(
                f"{place} is in the way of the feature {name!r}, and no build created it; nothing "
                "was changed.\nMove it away, or build into another --store."
            )


def _is_empty_folder(path: Path) -> bool:
    return is_folder(path) and next(path.iterdir(), None) is None


def features_to_build(config: CompleteConfig, wanted: Extension | None) -> tuple[str, ...]:
    """The features to compute: those new to the store, or all if samples or views are added."""
    if wanted is None:
        return config.features
    if wanted.kind == "features":
        return tuple(name for name in config.features if name not in wanted.base.features)
    return wanted.base.features


def sample_changes(stored: FeatureStore, found: Scan) -> StoreMismatchError:
    """The error for a changed sample list: which samples came or went, and what can be kept."""
    before = {_names(s) for s in stored.samples}
    now = {_names(s) for s in found.samples}
    renamed = _renamed(before - now, now - before)
    changes = renamed or [f"+{s[0]!r}" for s in sorted(now - before)]
    changes += [] if renamed else [f"-{s[0]!r}" for s in sorted(before - now)]
    if renamed:
        advice = "Give them the names that the store was built from, or build into another --store."
    elif before - now and _are_links(before - now, found):
        advice = (
            f"The missing samples are links out of the data folder: give {FOLLOW}, as for the "
            "build of this store."
        )
    elif before - now:
        advice = (
            "Rows are addressed by position: restore the missing samples, or build into another "
            "--store."
        )
    elif _is_appended(stored, found):
        advice = (
            "All new samples come after the last one, so every row keeps its place. Once the store "
            "is complete, --resume --append adds them; until then, move them away."
        )
    else:
        advice = (
            "New samples come before old ones and would move their rows: move them away, or build "
            "into another --store."
        )
    if now == before:
        changes = _moved(stored, found)
        advice = "Rows are addressed by position: restore the order, or build into another --store."
    return StoreMismatchError(
        stored.path,
        "sample list",
        amount(len(before), "sample"),
        f"{amount(len(now), 'sample')} ({some(changes)})",
        advice,
    )


def _moved(stored: FeatureStore, found: Scan) -> list[str]:
    """The first samples of another place in the same set of samples."""
    pairs = zip(stored.samples, found.samples, strict=True)
    moved = ((old, new) for old, new in pairs if old.stem != new.stem)
    return [f"row {old.index} is {new.stem!r}, was {old.stem!r}" for old, new in moved]


def _are_links(gone: set[tuple[str, str, str]], found: Scan) -> bool:
    """Whether every missing sample is there, as a link out of the folder that is not followed."""
    links = {name for name, reason in found.left_out if reason == "outside"}
    links |= {str(PurePosixPath(name).with_suffix("")) for name in links}  # the ids of a folder
    return all(links.intersection(names) for names in gone)


def _renamed(gone: set[tuple[str, str, str]], new: set[tuple[str, str, str]]) -> list[str]:
    """The files whose suffix changed, if nothing else changed in the sample list."""
    if {names[0] for names in gone} != {names[0] for names in new}:
        return []
    return [
        f"{now!r} was {before!r}"
        for old, other in zip(sorted(gone), sorted(new), strict=True)
        for before, now in zip(old[1:], other[1:], strict=True)
        if before != now
    ]


def some(items: Sequence[str]) -> str:
    """The first few items, and the number of the others."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def unfinished(stored: FeatureStore) -> FeatureStore | None:
    """The extension of a store that an earlier build left unfinished; None if there is none."""
    if not extension.is_unfinished(stored.path):
        return None
    with extension.naming():
        return FeatureStore(stored.path / EXTENSION)


def _is_started(wanted: Extension, config: CompleteConfig, found: Scan, new: Sequence[str]) -> bool:
    """Whether the unfinished extension is the wanted one."""
    made = wanted.made
    assert made is not None
    features = new if wanted.kind == "features" else wanted.base.features
    shape = (made.spec.views, made.spec.samples, list(made.features))
    return shape == (config.views, len(found.samples), list(features))


def _is_appended(stored: FeatureStore, found: Scan) -> bool:
    return found.samples[: len(stored.samples)] == list(stored.samples)


def _names(sample: Sample) -> tuple[str, str, str]:
    return sample.stem, sample.image_name or "", sample.text_name or ""
