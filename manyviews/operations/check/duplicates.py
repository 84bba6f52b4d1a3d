"""Inputs of a collection that have identical content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from featurestore.errors import BadSampleError
from featurestore.imdb.splits import SplitComparison
from featurestore.records import Modality, Sample
from featurestore.wording import amount
from manyviews.operations.check.findings import Group
from manyviews.operations.check.reading import evenly
from manyviews.operations.words import words_of
from producers.sources.inputs import sha256_of
from producers.sources.scan import Inputs, Scan

# Threads help: reading waits for the disk, and hashlib releases the interpreter lock.
_THREADS = 8
# Samples of a larger collection that are compared, evenly spaced.
COMPARED = 50_000


def duplicates_into(
    group: Group, scanned: Scan, split: SplitComparison | None, *, full: bool = False
) -> None:
    """Adds the inputs whose content equals those of another sample.

    Args:
        group: the group to add to.
        scanned: the collection.
        split: the split, or None.
        full: whether to compare all samples of a large collection.
    """
    words = words_of(scanned.collection)
    chosen = scanned.samples if full else evenly(scanned.samples, COMPARED)
    among = f" among {len(chosen):,} of them" if len(chosen) < len(scanned.samples) else ""
    nouns: dict[Modality, str] = {"image": words.images, "text": words.texts}
    for modality in scanned.modalities:
        kind, groups = nouns[modality], duplicate_inputs(scanned, modality, chosen)
        group.facts[f"duplicate_{kind}"] = [[s.stem for s in same] for same in groups]
        label = f"equal {kind}"
        if not groups:
            group.ok(label, f"none{among}, by SHA-256")
            continue
        count = amount(sum(map(len, groups)), words.file)
        first = " = ".join(s.stem for s in groups[0][:3])
        text = f"{count} in {amount(len(groups), 'group')}{among}, first {first!r}"
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


def duplicate_inputs(
    scanned: Scan, modality: Modality, chosen: Sequence[Sample] | None = None
) -> list[list[Sample]]:
    """Groups of samples with identical inputs, in the order of the samples.

    Reads only inputs whose size occurs twice, or is unknown.

    Args:
        scanned: the collection.
        modality: the inputs to compare.
        chosen: the samples to compare; None for all.
    """
    inputs = Inputs(scanned)

    def digest(sample: Sample) -> str | None:
        try:
            return sha256_of(inputs, sample, modality)
        except BadSampleError:
            return None

    # Empty files are reported as bad inputs, not as duplicates.
    sizes = list(scanned.places.sizes(modality))
    samples = scanned.samples if chosen is None else chosen
    alike = _groups(samples, (sizes[s.index] for s in samples), empty=0)
    suspects = [sample for group in alike for sample in group]
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
