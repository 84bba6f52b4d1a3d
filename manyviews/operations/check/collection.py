"""The groups about a collection: what was recognized, its first samples, inputs and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consumers.choices import choice_lines, choices
from consumers.config import CompleteConfig
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.records import Sample
from featurestore.system.durable import replace_file
from featurestore.wording import amount
from manyviews.operations.check import inputs
from manyviews.operations.check.findings import Group, counted
from manyviews.operations.check.reading import Look
from manyviews.operations.words import words_of
from producers.sources.collection import MM_IMDB
from producers.sources.scan import Scan

FIRST = 3


def choices_group(config: CompleteConfig, scanned: Scan) -> Group:
    """What was recognized, and the features and views that a build computes of it."""
    group = Group("choices", choices(config, scanned))
    for label, text in choice_lines(group.facts):
        group.ok(label, text)
    return group


def first_group(looks: Sequence[Look], samples: Sequence[Sample]) -> Group:
    """The first samples as a build would read them.

    Args:
        looks: the first samples of the collection, as they were read.
        samples: all samples.
    """
    group = Group("samples")
    found = [_described(look, samples[look.index]) for look in looks]
    group.facts = {"first": found}
    for number, facts in enumerate(found):
        parts = [repr(facts["id"])]
        if facts["image"] is not None:
            parts.append("{width} x {height} {mode} {format}".format(**facts["image"]))
        if facts["texts"]:
            count = f" (of {facts['texts']} texts)" if facts["texts"] > 1 else ""
            parts.append(f"{facts['text']!r}{count}")
        parts += [f"{modality} {reason}" for modality, reason, _ in facts["bad"]]
        group.ok(f"sample {number}", ", ".join(parts))
    return group


def _described(look: Look, sample: Sample) -> dict[str, Any]:
    image, bad = look.image, (("image", look.image_bad), ("text", look.text_bad))
    return {
        "id": sample.stem,
        "image": image
        and {
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
            "format": image.format,
        },
        "texts": look.texts,
        "text": look.preview,
        "bad": [[modality, *why] for modality, why in bad if why is not None],
    }


def draw_first(config: CompleteConfig, scanned: Scan, out: Path) -> None:
    """Draws the first samples and their views, as a build would read and make them.

    Args:
        config: the configuration of the build, with its seed and number of views.
        scanned: the collection.
        out: the PNG file to write.

    Raises:
        StorageError: the file cannot be written.
    """
    from manyviews.operations.replay.contact_sheet import png, stacked
    from manyviews.operations.replay.recorded import Place
    from manyviews.operations.replay.replay import Settings, replay
    from producers.recipes.images.recipe import ImageRecipe
    from producers.recipes.texts.recipe import TextRecipe

    image, text = config.image_recipe, config.text_recipe
    assert isinstance(image, ImageRecipe)
    assert isinstance(text, TextRecipe)
    settings = Settings(config.seed, config.views, image=image, text=text)
    chosen = scanned.samples[:FIRST]
    replace_file(out, png(stacked([replay(Place(scanned, sample), settings) for sample in chosen])))


def data_group(scanned: Scan) -> Group:
    """The samples of a collection, and all that is not used."""
    if scanned.collection.kind == MM_IMDB:
        return inputs.data_group(scanned)
    group = Group("data", inputs.data_facts(scanned))
    what = " and ".join(f"{modality}s" for modality in scanned.modalities)
    group.ok("samples", f"{amount(len(scanned.samples), 'sample')} with {what}")
    inputs.left_out_into(group, scanned)
    return group


def input_groups(
    looks: Sequence[Look],
    scanned: Scan,
    limits: Mapping[str, int],
    *,
    images: bool,
    fatal: bool,
) -> list[Group]:
    """The groups about the inputs that were read.

    Args:
        looks: the samples that were read.
        scanned: the collection.
        limits: maximum number of ids per text feature, in the order of ``Look.tokens``.
        images: whether the images were read.
        fatal: whether a build stops at an unusable input.
    """
    words, samples = words_of(scanned.collection), scanned.samples
    groups = []
    if images:
        groups.append(inputs.images_group(looks, samples, fatal=fatal, words=words))
    if "text" in scanned.modalities:
        groups.append(inputs.texts_group(looks, samples, limits, fatal=fatal, words=words))
    if scanned.collection.kind == MM_IMDB:
        groups.append(genres_group(looks, samples))
    return groups


def genres_group(looks: Sequence[Look], samples: Sequence[Sample]) -> Group:
    """How often each genre occurs among the synopses that were read."""
    total = len(samples)
    stems = inputs.stems_of(looks, samples)
    group = Group("genres")
    known = Counter(name for look in looks for name in look.genres)
    unknown = Counter(name for look in looks for name in look.unknown_genres)
    without = [stems[look.index] for look in looks if not look.genres]
    group.facts = {
        "read": len(looks),
        "of": total,
        "genres": {name: known[name] for name in CLASS_NAMES},
        "unknown": dict(unknown.most_common()),
        "without": without,
    }
    group.ok("most frequent", counted(known) or "none")
    absent = [name for name in CLASS_NAMES if not known[name]]
    if absent and len(looks) == total:
        group.warn(
            "never", ", ".join(absent), "No sample has them: a classifier cannot learn them."
        )
    if unknown:
        group.warn(
            "unknown",
            counted(unknown),
            "They are not among the paper's 23 genres, and are ignored.",
        )
    if without:
        advice = "Their labels are all zero."
        if len(without) == total:
            advice = "A build does not need genres; `labels` refuses a data set without one."
        group.names("warning", "none known", without, advice)
    return group
