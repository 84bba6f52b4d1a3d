"""A folder of materialized files, looked at as a store is."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from featurestore.errors import InputError
from featurestore.records import BadInput, stems_sha256
from featurestore.storage.digests import fits_checksum
from featurestore.storage.store import FeatureStore, StoreSpec, is_store, record_crc32c
from featurestore.system.refusals import is_absent, refusal
from featurestore.wording import amount

_MANIFEST = "_manifest.json"
_LABELS_MANIFEST = "_labels_manifest.json"
# Files have no chunks; this many samples are as good a unit of reading as any.
_CHUNK = 64
_PAPER_SEED = 123


def find_prefix(folder: Path) -> str | None:
    """What the names of the folder's materialized files begin with; None where there are none.

    Raises:
        InputError: there are several sets of files.
    """
    found = sorted(
        p.name.removesuffix(_MANIFEST)
        for p in folder.glob(f"*{_MANIFEST}")
        if not p.name.endswith(_LABELS_MANIFEST)
    )
    if len(found) > 1:
        raise InputError(f"{folder} holds files of several runs: say which with prefix={found!r}.")
    return found[0] if found else None


def read_manifest(folder: Path, prefix: str) -> dict[str, Any]:
    """The manifest of materialized files, which is written when all of them are there.

    Raises:
        InputError: it is missing, or not what was written.
    """
    path = folder / f"{prefix}{_MANIFEST}"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {path.name}, so its files may be half written.\n"
            "Run `materialize` again; the manifest is written last."
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"Could not read {path}: {str(e)[:200]}") from e
    if not isinstance(manifest, dict) or not {"original_rows", "views_per_sample"} <= set(manifest):
        raise InputError(f"{path} is not a manifest of materialized files.")
    if not fits_checksum(manifest):
        raise InputError(f"{path} does not fit its checksum.\nRun `materialize` again.")
    return manifest


class NpyFolder:
    """Materialized files opened for reading, by the names that a store has for the same things.

    Attributes:
        path: the folder.
        prefix: what its files' names begin with.
        spec: samples, views and dimensions, from the manifest.
        zscore: how the rows were scaled, ``all``, ``train`` or ``none``.
        seed: of the views and of the labels' noise.
    """

    def __init__(self, path: Path | str, prefix: str) -> None:
        """Reads the manifest.

        Raises:
            InputError: it is missing, or not what was written.
        """
        self.path, self.prefix = Path(path), prefix
        self._manifest = read_manifest(self.path, prefix)
        try:
            self.spec = StoreSpec(
                self._manifest["original_rows"],
                self._manifest["views_per_sample"],
                _CHUNK,
                dict(self._manifest.get("dims", {})),
            )
            # The published scripts know one way, and write nothing of it.
            self.zscore = str(self._manifest.get("zscore", "all"))
            self.seed = int(self._manifest.get("seed", _PAPER_SEED))
            self.bad_inputs = [
                BadInput(bad["orig_idx"], bad["input"], bad["reason"], "")
                for bad in self._manifest.get("placeholders", [])
            ]
            numbers = (self.spec.samples, self.spec.views, *self.spec.dims.values())
            if not all(type(number) is int and number > 0 for number in numbers):
                raise ValueError(f"its numbers are {numbers}")
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(f"{self.path / prefix}{_MANIFEST} is not a manifest: {e!r}") from e

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the manifest lists."""
        return tuple(self.spec.dims)

    @property
    def content_crc32c(self) -> str:
        """Of the manifest, which holds the digests of all files; else of their sizes and times."""
        told: dict[str, Any] = dict(self._manifest)
        if "sha256" not in told:  # those of the published scripts
            status = [(self.path / f"{self.prefix}_{name}.npy").stat() for name in self.features]
            told["files"] = [[each.st_size, each.st_mtime_ns] for each in status]
        return record_crc32c(told)

    @cached_property
    def stems_sha256(self) -> str | None:
        """Of the stems in order: as the manifest says, else of those that the index names.

        None where there is no index either.

        Raises:
            InputError: the index is not of these files.
        """
        told: str | None = self._manifest.get("stems_sha256")
        if told is None and (self.path / f"{self.prefix}_aug_index.csv").is_file():
            # Manifests of the published scripts carry no hash, but their index names every sample.
            told = stems_sha256(self.stems)
        return told

    @cached_property
    def stems(self) -> list[str]:
        """The samples' stems in order, from the index of rows.

        Raises:
            InputError: the index is missing, or is not of these files.
        """
        path = self.path / f"{self.prefix}_aug_index.csv"
        found = indexed_stems(path)
        if len(found) != self.spec.samples:
            raise InputError(f"{path} names {len(found)} of {amount(self.spec.samples, 'sample')}.")
        if self._manifest.get("stems_sha256") not in (None, stems_sha256(found)):
            raise InputError(f"{path} names other samples than the manifest was written for.")
        return found

    def check(self, features: Iterable[str]) -> None:
        """Compares the features' files with the digests in the manifest.

        Raises:
            InputError: a file is not what was written, or no digests were.
        """
        digests = self._manifest.get("sha256")
        if not isinstance(digests, dict):
            raise InputError(f"The manifest of {self.path} holds no digests to compare with.")
        for name in features:
            path = self.path / f"{self.prefix}_{name}.npy"
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as e:
                if is_absent(e):
                    raise InputError(f"Could not read {path}: {e.strerror or e}") from e
                raise refusal(path, e) from e
            if found != digests.get(path.name):
                raise InputError(f"{path} is not what was written.\nRun `materialize` again.")


def stems_of(embeddings: Path, prefix: str) -> list[str]:
    """The stems of a store, or of materialized files by their index.

    Args:
        embeddings: a store, or a folder that ``materialize`` or the published scripts wrote.
        prefix: what the names of materialized files begin with.

    Raises:
        InputError: there is neither, or the index is damaged.
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

    Lines of view 0 are read; the published scripts wrote them in no order to rely on.

    Raises:
        InputError: there is none, it cannot be read, or it is damaged.
    """
    found: dict[int, str] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for line in csv.DictReader(file):
                if line["view"] == "0":
                    found[int(line["orig_idx"])] = line["stem"]
    except OSError as e:
        raise InputError(f"Could not read {path}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError, csv.Error) as e:
        raise InputError(f"{path} is not an index of materialized files: {str(e)[:200]}") from e
    if not found or sorted(found) != list(range(len(found))):
        raise InputError(f"{path} does not name every sample; run `materialize` again.")
    return [found[index] for index in range(len(found))]
