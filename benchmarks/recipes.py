"""What a probe and a small contrastive training gain from the views of three pairs of recipes.

    python -m benchmarks.recipes [--quick]

The data is that of the demo, drawn posters and composed plots, and the backbones have random
weights: the figures show how such a comparison is made, and what views change on this data, not
what they change for a trained model. Each pair of recipes gets a store of its own. Scores are means
over several random splits by sample into 60% for training and 40% for testing.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn

from benchmarks import measuring
from consumers.build import build
from consumers.config import BuildConfig
from featurestore.storage.store import FeatureStore
from manyviews.operations.demo.checkpoints import make_checkpoints
from manyviews.operations.demo.data import make_demo_data
from manyviews.recipes import CleanImage, CleanText, Crop, Drop, Mask, Simclr
from producers.recipes.recipe import Recipe
from producers.recipes.texts.recipe import TextRecipe
from producers.sources.readers import Synopsis

FEATURES = ("clip_image", "clip_text")
PAIRS: dict[str, tuple[Recipe, TextRecipe]] = {
    "none, none": (CleanImage(), CleanText()),
    "crop, drop": (Crop(), Drop()),
    "simclr, mask": (Simclr(), Mask()),
}
VIEWS = 8
_TRAIN_SHARE, _TEMPERATURE, _HEAD = 0.6, 0.2, 32

Floats = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scores:
    """Micro average precision on the test samples of one split.

    Attributes:
        clean: of a linear probe that was trained on clean views.
        views: of one that was trained on all views.
        contrastive: of one on the output of heads that were trained contrastively before.
    """

    clean: float
    views: float
    contrastive: float


def main() -> None:
    """Builds a store for each pair of recipes, and prints the table."""
    quick = measuring.options(__doc__).quick
    samples, seeds, steps = (72, 2, 40) if quick else (480, 8, 400)
    print(measuring.machine("torch", "scikit-learn"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_demo_data(folder / "data", samples)
        checkpoints = make_checkpoints(folder / "checkpoints")
        models = {"clip_image": str(checkpoints["clip"]), "clip_text": str(checkpoints["sentence"])}
        rows = []
        for number, (label, (image, text)) in enumerate(PAIRS.items()):
            config = BuildConfig(
                store=folder / f"store-{number}",
                data_dir=folder / "data/dataset",
                features=FEATURES,
                models=models,
                views=None if image.fixed_views else VIEWS,
                image_recipe=image,
                text_recipe=text,
                device="cpu",
            )
            build(config)
            features = read(config.store)
            labels = labels_of(folder / "data/dataset", FeatureStore(config.store))
            rows.append(row(label, features, labels, seeds, steps))
    head = ("recipes", "views", "probe, clean views", "probe, all views", "contrastive, then probe")
    print(f"{samples} samples, {labels.shape[1]} labels, {seeds} splits: micro average precision")
    print(measuring.table(head, rows))
    print(f"predicting each label by its frequency: {baseline(labels):.3f}")


def read(path: Path) -> list[Floats]:
    """The rows of each feature, standardized by dimension, float32 [N, V, D]."""
    store, found = FeatureStore(path), []
    for name in FEATURES:
        rows = np.concatenate([store.read_chunk(name, chunk) for chunk in range(store.spec.chunks)])
        flat = rows.reshape(-1, rows.shape[-1])
        found.append(((rows - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-6)).astype(np.float32))
    return found


def labels_of(folder: Path, store: FeatureStore) -> Booleans:
    """The genres of each sample, bool [N, G], of those that at least ten samples have."""
    genres = []
    for sample in store.samples:
        document = Synopsis((folder / str(sample.text_name)).read_bytes()).document()
        genres.append(set(document["genres"]) if isinstance(document, dict) else set())
    names = sorted(set().union(*genres))
    found = np.array([[name in own for name in names] for own in genres])
    return found[:, found.sum(axis=0) >= 10]


def baseline(labels: Booleans) -> float:
    """The score without features: each label's frequency as its probability."""
    guesses = np.broadcast_to(labels.mean(axis=0), labels.shape)
    return float(average_precision_score(labels, guesses, average="micro"))


def row(
    label: str, features: Sequence[Floats], labels: Booleans, seeds: int, steps: int
) -> list[str]:
    """A row of the table: mean and standard deviation of each score over the splits."""
    found = [scores(features, labels, seed, steps) for seed in range(seeds)]
    cells = []
    for name in ("clean", "views", "contrastive"):
        values = [getattr(each, name) for each in found]
        cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
    return [label, str(features[0].shape[1]), *cells]


def scores(features: Sequence[Floats], labels: Booleans, seed: int, steps: int) -> Scores:
    """The scores of one random split."""
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = np.split(order, [round(_TRAIN_SHARE * len(order))])
    both = np.concatenate(features, axis=2)  # [N, V, D]
    clean = probe(both[train, :1], labels[train], both[test, 0], labels[test])
    views = probe(both[train], labels[train], both[test, 0], labels[test])
    heads = contrastive([rows[train] for rows in features], seed, steps)
    with torch.inference_mode():
        parts = [head(torch.from_numpy(rows)) for head, rows in zip(heads, features, strict=True)]
    made = torch.cat(parts, dim=2).numpy()
    after = probe(made[train], labels[train], made[test, 0], labels[test])
    return Scores(clean, views, after)


def probe(x: Floats, y: Booleans, test_x: Floats, test_y: Booleans) -> float:
    """Fits a logistic regression for each label on rows [N, V, D]; micro average precision."""
    model = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label that no training sample has
        model.fit(x.reshape(-1, x.shape[-1]), np.repeat(y, x.shape[1], axis=0))
    return float(average_precision_score(test_y, model.predict_proba(test_x), average="micro"))


def contrastive(features: Sequence[Floats], seed: int, steps: int) -> list[nn.Module]:
    """Trains a head of two layers for each feature with InfoNCE.

    Positives are two random views of a sample, of each feature and across the two.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    heads = [
        nn.Sequential(nn.Linear(rows.shape[2], 64), nn.ReLU(), nn.Linear(64, _HEAD))
        for rows in features
    ]
    parameters = [each for head in heads for each in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    samples, views = features[0].shape[:2]
    for _ in range(steps):
        batch = rng.choice(samples, min(128, samples), replace=False)
        one, other = (
            [
                head(torch.from_numpy(rows[batch, rng.integers(views, size=len(batch))]))
                for head, rows in zip(heads, features, strict=True)
            ]
            for _ in range(2)
        )
        loss = info_nce(one[0], other[0]) + info_nce(one[1], other[1]) + info_nce(one[0], one[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [head.eval() for head in heads]


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """InfoNCE of matching rows, in both directions (van den Oord et al., 2018; CLIP)."""
    a, b = nn.functional.normalize(a), nn.functional.normalize(b)
    logits = a @ b.T / _TEMPERATURE
    target = torch.arange(len(a))
    return nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(
        logits.T, target
    )


if __name__ == "__main__":
    main()
