"""``views``: recompute every view of one sample as the build computed it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.errors import ConfigError
from featurestore.wording import amount
from manyviews.commands.inputs import InputOptions, input_options
from manyviews.commands.options import FOLDER, common_options, json_option, say

if TYPE_CHECKING:
    from manyviews.operations.replay.replay import Replay


@click.command()
@input_options
@click.option(
    "--id",
    "--stem",
    "id_",
    required=True,
    help="The sample's id; of a file its path without the suffix.",
)
@click.option(
    "--store",
    type=FOLDER,
    help="Store built from the inputs: it gives the seed, the number of views and the hashes of "
    "the inputs.",
)
@click.option("--view", type=int, help="Number of the only view to show.  [default: all]")
@click.option(
    "--sheet",
    "--out",
    "out",
    type=FOLDER,
    help="PNG file to write: all views on a contact sheet, or the pixels of --view alone.",
)
@click.option(
    "--processor",
    type=click.Choice(["clip", "blip2"]),
    help="With --view 0: show what this model's image processor computes.  "
    "[default: the image itself]",
)
@click.option(
    "--views", type=int, help="Number of views, without --store.  [default: 70 for MM-IMDb, else 8]"
)
@click.option("--seed", type=int, help="Base seed, without --store.  [default: 123]")
@click.option(
    "--size", type=int, help="Side of the views in pixels.  [default: 224, or the store's]"
)
@json_option
@common_options
def views(out: Path | None, as_json: bool, **options: Any) -> int:
    """Replay the views of one sample: the parameters, pixels and text of each.

    The views are recomputed from the sample's image and text, and equal those of the build bit for
    bit. With --store, an input that differs from the one that the store was built from is refused.
    Masked words are shown as [MASK:word], words left out as [-word-]. Crops are in pixels of the
    image.

    \b
    Example:
      python cli.py views --data-dir imdb/dataset --id 0000001 --sheet views.png
    """
    replay = _replay(**{k: v for k, v in options.items() if k not in ("view", "processor")})
    view, processor = options["view"], options["processor"]
    if view is not None and not 0 <= view < replay.settings.views:
        raise ConfigError(f"--view must be 0 to {replay.settings.views - 1}, found {view}.")
    if processor is not None and view != 0:
        raise ConfigError("--processor applies to the clean view only: give --view 0 as well.")
    chosen = range(replay.settings.views) if view is None else [view]
    if as_json:
        click.echo(json.dumps(_facts(replay, chosen, processor)))
    else:
        _print(replay, chosen)
    if out is not None:
        _write(replay, view, processor, out)
    return 0


def _replay(
    *,
    store: Path | None,
    inputs: InputOptions,
    id_: str,
    views: int | None,
    seed: int | None,
    size: int | None,
) -> Replay:
    """The replay: seed, views and recipes of the store, or else of the options and the file."""
    from consumers.resume.completion import default_text_recipe, fixed_views
    from featurestore.records import FEATURES, GENERIC_VIEWS, PAPER_VIEWS
    from featurestore.storage.store import FeatureStore
    from manyviews.operations.replay import replay
    from producers.recipes.images.random_crops import Simclr
    from producers.sources.collection import MM_IMDB

    collection = inputs.require()
    if store is not None:
        for name, value in (("views", views), ("seed", seed)):
            if value is not None:
                raise ConfigError(f"--{name} comes from the store: remove --{name} or --store.")
        return replay.from_store(FeatureStore(store), collection, id_, size, inputs.folder)
    said = inputs.recipes()
    image = said.get("image_recipe", Simclr())
    text = said.get("text_recipe", default_text_recipe(collection))
    views = said.get("views") if views is None else views
    views = fixed_views([image, text], FEATURES, views) or views
    if views is None:
        views = PAPER_VIEWS if collection.kind == MM_IMDB else GENERIC_VIEWS
    seed = said.get("seed") if seed is None else seed
    given: dict[str, Any] = {"seed": seed, "size": size}
    given = {name: value for name, value in given.items() if value is not None}
    settings = replay.Settings(views=views, image=image, text=text, **given)
    return replay.from_collection(collection, id_, settings)


def _write(replay: Replay, view: int | None, processor: str | None, out: Path) -> None:
    from featurestore.system.durable import replace_file
    from manyviews.operations.replay.contact_sheet import png, sheet

    picture = sheet(replay) if view is None else replay.pixels(view, processor)
    replace_file(out, png(picture))
    say(f"written: {out}")


def _facts(replay: Replay, chosen: Any, processor: str | None) -> dict[str, Any]:
    """The replay as plain values for ``--json``."""
    from manyviews.operations.replay.replay import PROCESSORS

    cleans = PROCESSORS if processor is None else (processor,)
    return {
        "stem": replay.sample.stem,
        "index": replay.sample.index,
        "seed": replay.settings.seed,
        "size": replay.settings.size,
        "poster": list(replay.poster.size) if replay.poster is not None else None,
        "recorded_inputs": list(replay.recorded),
        "bad": [[b.modality, b.reason, b.detail] for b in replay.bad],
        "words": len(replay.text_words),
        "views": [_view_facts(replay, view, cleans) for view in chosen],
    }


def _view_facts(replay: Replay, view: int, cleans: tuple[str, ...]) -> dict[str, Any]:
    facts: dict[str, Any] = {"view": view, "text": replay.texts[view]}
    if view == 0:
        digests = {name: _digest(replay.pixels(0, name)) for name in cleans}
        return facts | {"pixels_sha256": digests}
    words = replay.text_words
    facts["hidden"] = [[at, words[at]] for at in replay.hidden(view)]
    facts |= {"image_seed": replay.image_seed(view), "text_seed": replay.text_seed(view)}
    facts["pixels_sha256"] = _digest(replay.pixels(view))
    drawn = replay.drawn(view)
    if drawn is None:
        return facts
    left, top, width, height = drawn.box
    return facts | {
        "crop": {"top": top, "left": left, "height": height, "width": width},
        "flip": drawn.flip,
        "jitter": [list(step) for step in drawn.jitter],
        "gray": drawn.gray,
        "blur_sigma": drawn.sigma,
    }


def _digest(pixels: Any) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _print(replay: Replay, chosen: Any) -> None:
    """Prints the replay as text on standard output."""
    image = replay.words.image
    size = f"no {image}"
    if replay.poster is not None:
        size = "{} x {} {}".format(*replay.poster.size, image)
    _line(
        f"{replay.sample.stem!r}: sample {replay.sample.index}, {size}, "
        f"{amount(len(replay.text_words), 'word')}; seed {replay.settings.seed}, "
        f"{amount(replay.settings.views, 'view')} of {amount(replay.settings.size, 'pixel')}"
    )
    if replay.recorded:
        _line(_comparison(replay))
    for bad in replay.bad:
        _line(f"{bad.modality} {bad.reason} ({bad.detail}): a placeholder replaces it")
    for view in chosen:
        _line(f"view {view}: {_drawn(replay, view)}")
        _line(f"  {_marked(replay, view)}")


def _comparison(replay: Replay) -> str:
    """Which inputs were compared with the hashes in the store."""
    words = replay.words
    if len(replay.recorded) == 2:
        return f"the {words.file}s are those that the store was built from"
    nouns = {"image": words.image, "text": words.text}
    (read,) = replay.recorded
    other = "text" if read == "image" else "image"
    why = f"the store has no hash of the {nouns[other]}"
    return f"the {nouns[read]} is the one that the store was built from; {why}"


def _drawn(replay: Replay, view: int) -> str:
    """The parameters of a view in one line, in the order in which they are applied."""
    if replay.poster is None:
        return "black" if any(b.modality == "image" for b in replay.bad) else "no image"
    drawn = replay.drawn(view)
    if drawn is None:
        return f"made by {replay.settings.image.name}" if view else "clean"
    left, top, width, height = drawn.box
    steps = [f"crop top={top} left={left} height={height} width={width}"]
    steps += ["flip"] * drawn.flip
    steps += [f"{name} {factor:.4f}" for name, factor in drawn.jitter]
    steps += ["gray"] * drawn.gray
    steps += [] if drawn.sigma is None else [f"blur sigma={drawn.sigma:.4f}"]
    if view and not replay.settings.image.draws_all:
        steps.append(f"then {replay.settings.image.name}")
    return ", ".join(steps)


def _marked(replay: Replay, view: int) -> str:
    """The text of a view with its hidden words shown."""
    hidden = replay.hidden(view)
    if not hidden:
        return replay.texts[view]
    words = list(replay.text_words)
    is_masked = replay.settings.text.name == "mask"
    for at in hidden:
        words[at] = f"[MASK:{words[at]}]" if is_masked else f"[-{words[at]}-]"
    return " ".join(words)


def _line(line: str) -> None:
    """Prints a line of untrusted text; control characters are escaped."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(shown.encode(encoding, "backslashreplace").decode(encoding))
