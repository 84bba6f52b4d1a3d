"""The stems behind rows of features, in their order."""

from __future__ import annotations

import csv
from pathlib import Path

from featurestore.errors import InputError
from featurestore.store import FeatureStore, is_store


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
