"""Files of a data folder that have identical bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from featurestore.errors import BadSampleError
from featurestore.imdb.splits import SplitComparison
from featurestore.records import Modality, Sample
from featurestore.wording import amount
from manyviews.operations.check.findings import Group
from producers.sources.inputs import sha256_of
from producers.sources.scan import Inputs, Scan

# Threads help: reading waits for the disk, and hashlib releases the interpreter lock.
_THREADS = 8


def duplicates_into(group: Group, scanned: Scan, split: SplitComparison | None) -> None:
    """Adds the posters and synopses whose bytes equal those of another sample."""
    for kind, groups in (
        ("posters", duplicate_posters(scanned)),
        ("synopses", duplicate_synopses(scanned)),
    ):
        group.facts[f"duplicate_{kind}"] = [[s.stem for s in same] for same in groups]
        label = f"equal {kind}"
        if not groups:
            group.ok(label, "none, by SHA-256")
            continue
        files = sum(map(len, groups))
        first = " = ".join(s.stem for s in groups[0][:3])
        text = f"{amount(files, 'file')} in {amount(len(groups), 'group')}, first {first!r}"
        advice = "A build keeps all of them. --json lists them."
        across = 0 if split is None else sum(_crosses(same, split) for same in groups)
        if across:
            verb = "is" if across == 1 else "are"
            text += f"; {amount(across, 'group')} {verb} in two parts of the split"
            advice = (
                "Training samples would be tested on: remove them from one part. --json lists them."
            )
        group.warn(label, text, advice)


def _crosses(same: Sequence[Sample], split: SplitComparison) -> bool:
    indices = {s.index for s in same}
    return sum(bool(indices & part) for part in split.parts.values()) > 1


def duplicate_posters(scanned: Scan) -> list[list[Sample]]:
    """Groups of samples whose posters have identical bytes, in the order of the samples."""
    return _duplicates(scanned, "image")


def duplicate_synopses(scanned: Scan) -> list[list[Sample]]:
    """Groups of samples whose synopses have identical bytes, in the order of the samples."""
    return _duplicates(scanned, "text")


def _duplicates(scanned: Scan, modality: Modality) -> list[list[Sample]]:
    """Groups of samples with identical inputs; reads only inputs whose size occurs twice."""
    inputs = Inputs(scanned)

    def digest(sample: Sample) -> str | None:
        try:
            return sha256_of(inputs, sample, modality)
        except BadSampleError:
            return None

    # Empty files are reported as bad inputs, not as duplicates.
    sizes = (max(size, 0) for size in scanned.places.sizes(modality))
    suspects = [sample for group in _groups(scanned.samples, sizes, empty=0) for sample in group]
    with ThreadPoolExecutor(_THREADS) as threads:
        return _groups(suspects, threads.map(digest, suspects), empty=None)


def _groups(
    samples: Sequence[Sample], keys: Iterable[object], *, empty: object
) -> list[list[Sample]]:
    """Groups of at least two samples with equal keys; the key ``empty`` is in no group."""
    groups: dict[object, list[Sample]] = defaultdict(list)
    for sample, key in zip(samples, keys, strict=True):
        if key != empty:
            groups[key].append(sample)
    shared = [group for group in groups.values() if len(group) > 1]
    return sorted(shared, key=lambda group: group[0].index)
