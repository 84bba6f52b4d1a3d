"""A folder of materialized files, with the interface of a store."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import InputError
from featurestore.records import BadInput, stems_sha256
from featurestore.storage.digests import fits_checksum
from featurestore.storage.shape import StoreSpec
from featurestore.storage.store import FeatureStore, is_store, record_crc32c
from featurestore.system.refusals import is_absent, refusal
from featurestore.wording import amount

_MANIFEST = "_manifest.json"
_LABELS_MANIFEST = "_labels_manifest.json"
PRESENCE = "_presence.npy"
_INPUTS = ("image", "text")  # the columns of the file
# Materialized files have no chunks; this is the number of samples that are read as a unit.
_CHUNK = 64
_PAPER_SEED = 123


def find_prefix(folder: Path) -> str | None:
    """The beginning of the names of the folder's materialized files; None if there are none.

    Raises:
        InputError: the folder holds several sets of files.
    """
    prefixes = sorted(
        p.name.removesuffix(_MANIFEST)
        for p in folder.glob(f"*{_MANIFEST}")
        if not p.name.endswith(_LABELS_MANIFEST)
    )
    if len(prefixes) > 1:
        raise InputError(f"{folder} holds files of several runs: set prefix= to one of {prefixes}.")
    return prefixes[0] if prefixes else None


def read_manifest(folder: Path, prefix: str) -> dict[str, Any]:
    """The manifest of materialized files, which is written after all of them.

    Raises:
        InputError: the manifest is missing or damaged.
    """
    path = folder / f"{prefix}{_MANIFEST}"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {path.name}, so its files may be incomplete.\n"
            "Run `materialize` again; the manifest is written last."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"Could not read {path}: {str(e)[:200]}") from e
    if not isinstance(manifest, dict) or not {"original_rows", "views_per_sample"} <= set(manifest):
        raise InputError(f"{path} is not a manifest of materialized files.")
    if not fits_checksum(manifest):
        raise InputError(f"{path} does not match its checksum.\nRun `materialize` again.")
    return manifest


class NpyFolder:
    """Materialized files opened for reading, with the attribute names of a ``FeatureStore``.

    Attributes:
        path: the folder.
        prefix: the beginning of its files' names.
        spec: the numbers of samples, views and dimensions, from the manifest.
        zscore: the scaling of the rows: ``all``, ``train`` or ``none``.
        seed: the seed of the views and of the labels' noise.
        bad_inputs: the inputs that a placeholder replaces, from the manifest.
    """

    def __init__(self, path: Path | str, prefix: str) -> None:
        """Reads the manifest.

        Raises:
            InputError: the manifest is missing or damaged.
        """
        self.path, self.prefix = Path(path), prefix
        self._manifest = read_manifest(self.path, prefix)
        try:
            self.spec = StoreSpec(
                self._manifest["original_rows"],
                self._manifest["views_per_sample"],
                _CHUNK,
                dict(self._manifest.get("dims", {})),
                modalities=dict(self._manifest.get("modalities", {})),
            )
            # The published scripts always scale by all rows, and do not record it.
            self.zscore = str(self._manifest.get("zscore", "all"))
            self.seed = int(self._manifest.get("seed", _PAPER_SEED))
            self.bad_inputs = [
                BadInput(bad["orig_idx"], bad["input"], bad["reason"], "")
                for bad in self._manifest.get("placeholders", [])
            ]
            numbers = (self.spec.samples, self.spec.views, *self.spec.dims.values())
            if not all(type(number) is int and number > 0 for number in numbers):
                raise ValueError(f"its numbers are {numbers}")
            if not set(self.spec.modalities.values()) <= set(_INPUTS):
                raise ValueError(f"its modalities are {self.spec.modalities}")
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"{self.path / prefix}{_MANIFEST} is not a manifest: {e!r}") from e

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the manifest lists."""
        return tuple(self.spec.dims)

    @property
    def content_crc32c(self) -> str:
        """CRC-32C of the manifest with all files' digests, or with their sizes and times."""
        record: dict[str, Any] = dict(self._manifest)
        if "sha256" not in record:  # a manifest of the published scripts
            status = [(self.path / f"{self.prefix}_{name}.npy").stat() for name in self.features]
            record["files"] = [[each.st_size, each.st_mtime_ns] for each in status]
        return record_crc32c(record)

    @cached_property
    def stems_sha256(self) -> str | None:
        """Hash of the stems in order: from the manifest, else of the stems in the index.

        None if there is no index either.

        Raises:
            InputError: the index does not belong to these files.
        """
        digest: str | None = self._manifest.get("stems_sha256")
        if digest is None and (self.path / f"{self.prefix}_aug_index.csv").is_file():
            # Manifests of the published scripts hold no hash, but their index names every sample.
            digest = stems_sha256(self.stems)
        return digest

    @cached_property
    def stems(self) -> list[str]:
        """The samples' stems in order, from the index of rows.

        Raises:
            InputError: the index is missing, or does not belong to these files.
        """
        path = self.path / f"{self.prefix}_aug_index.csv"
        stems = indexed_stems(path)
        if len(stems) != self.spec.samples:
            raise InputError(f"{path} names {len(stems)} of {amount(self.spec.samples, 'sample')}.")
        if self._manifest.get("stems_sha256") not in (None, stems_sha256(stems)):
            raise InputError(
                f"{path} names other samples, or another order, than the manifest beside it.\n"
                "Restore the index and the manifest of one export, or export again."
            )
        return stems

    @property
    def has_digests(self) -> bool:
        """Whether the manifest holds digests of the files; those of published scripts do not."""
        return isinstance(self._manifest.get("sha256"), dict)

    def present(self, feature: str) -> npt.NDArray[np.bool_]:
        """Whether each sample has the input of a feature, bool ``[N]``; the others' rows are zeros.

        Raises:
            InputError: the file of presence is missing, or is not what was written.
        """
        modality = self.spec.modalities.get(feature)
        if modality is None or self._presence is None:
            return np.ones(self.spec.samples, bool)
        return np.ascontiguousarray(self._presence[:, _INPUTS.index(modality)])

    @cached_property
    def _presence(self) -> npt.NDArray[np.bool_] | None:
        """Bool ``[N, 2]``, from a file that exists only if a sample lacks an input."""
        name = f"{self.prefix}{PRESENCE}"
        digest = self._manifest.get("sha256", {}).get(name)
        if digest is None:
            return None
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as e:
            if is_absent(e):
                raise InputError(f"Could not read {path}: {e.strerror or e}") from e
            raise refusal(path, e) from e
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"{path} is not what was written.\nRun `materialize` again.")
        presence = np.lib.format.read_array(io.BytesIO(content))
        if presence.dtype != bool or presence.shape != (self.spec.samples, len(_INPUTS)):
            raise InputError(f"{path} holds {presence.dtype} {presence.shape}.")
        return presence

    def check(self, features: Iterable[str]) -> None:
        """Compares the features' files with the digests in the manifest.

        Raises:
            InputError: a file differs from what was written, or the manifest holds no digests.
        """
        if not self.has_digests:
            raise InputError(f"The manifest of {self.path} holds no digests to compare with.")
        digests = self._manifest["sha256"]
        for name in features:
            path = self.path / f"{self.prefix}_{name}.npy"
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as e:
                if is_absent(e):
                    raise InputError(f"Could not read {path}: {e.strerror or e}") from e
                raise refusal(path, e) from e
            if digest != digests.get(path.name):
                raise InputError(f"{path} is not what was written.\nRun `materialize` again.")


def stems_of(embeddings: Path, prefix: str) -> list[str]:
    """The stems of a store, or of materialized files from their index.

    Args:
        embeddings: a store, or a folder that ``materialize`` or the published scripts wrote.
        prefix: the beginning of the names of materialized files.

    Raises:
        InputError: the folder is neither, or the index is damaged.
    """
    if is_store(embeddings):
        return FeatureStore(embeddings).stems
    index = embeddings / f"{prefix}_aug_index.csv"
    if not index.exists():
        raise InputError(
            f"{embeddings} is neither a store nor a folder of materialized files: there is no "
            f"{index.name}."
        )
    return indexed_stems(index)


def indexed_stems(path: Path) -> list[str]:
    """The stems that the index of materialized rows names, in the order of the samples.

    Only the lines of view 0 are used; the published scripts wrote lines in no reliable order.

    Raises:
        InputError: the index is missing, unreadable or damaged.
    """
    stems: dict[int, str] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for line in csv.DictReader(file):
                if line["view"] == "0":
                    stems[int(line["orig_idx"])] = line["stem"]
    except OSError as e:
        raise InputError(f"Could not read {path}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, csv.Error) as e:
        raise InputError(f"{path} is not an index of materialized files: {str(e)[:200]}") from e
    if not stems or sorted(stems) != list(range(len(stems))):
        raise InputError(f"{path} does not name every sample; run `materialize` again.")
    return [stems[index] for index in range(len(stems))]
