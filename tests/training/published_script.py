"""A training script that uses the published datamodule.

A small shared space for image and text features, trained to find a film's text by its image, with
a classifier on top. It prints one line of JSON. It does not depend on manyviews; the test changes
only its import line.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from dataset_1x_aug70 import make_datamodule_blip2_aug70, make_datamodule_clip_aug70
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch.nn import functional as F

I, C, I0, C0, L = (  # noqa: E741
    "image_latents",
    "caption_embeddings",
    "image_latents_clean",
    "caption_embeddings_clean",
    "labels",
)
PAIR, LABELLED = frozenset({I, C}), frozenset({I, C, L})


class SharedSpace(LightningModule):
    def __init__(self, image_dim: int, text_dim: int, size: int = 32) -> None:
        super().__init__()
        self.image = torch.nn.Linear(image_dim, size)
        self.text = torch.nn.Linear(text_dim, size)
        self.genres = torch.nn.Linear(2 * size, 23)
        self.scores: dict[str, list[torch.Tensor]] = {"retrieval": [], "logits": [], "labels": []}

    def embed(self, domains: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(self.image(domains[I]), dim=1), F.normalize(self.text(domains[C]), dim=1)

    def classify(self, domains: dict[str, torch.Tensor]) -> torch.Tensor:
        both = torch.cat([self.image(domains[I]), self.text(domains[C])], dim=1)
        logits: torch.Tensor = self.genres(both)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        image, text = self.embed(batch[PAIR])
        logits = 10 * image @ text.T
        target = torch.arange(len(logits))
        contrastive = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        labelled = batch[LABELLED]
        classes = F.binary_cross_entropy_with_logits(self.classify(labelled), labelled[L])
        # Every domain is also in a group by itself.
        for name in (I, C, I0, C0):
            if frozenset({name}) in batch:
                assert set(batch[frozenset({name})]) == {name}
        return contrastive + 10 * classes

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert frozenset({I}) not in batch
        domains = batch[LABELLED]
        image, text = self.embed(domains)
        self.scores["retrieval"].append(image @ text.T)
        self.scores["logits"].append(self.classify(domains))
        self.scores["labels"].append(domains[L])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)


def train(make: Callable[..., Any], epochs: int, view_mode: str) -> tuple[Any, SharedSpace]:
    seed_everything(0, verbose=False)
    data = make(
        batch_size=64,
        include_labels=True,
        num_workers=0,
        pin_memory=False,
        normalize="none",
        view_mode=view_mode,
    )
    image, text = (data.train_datasets[PAIR].domain_data[name] for name in (I, C))
    model = SharedSpace(image.shape[1], text.shape[1])
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    return data, model


def f1(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    hits = float((predicted & truth).sum())
    return 2 * hits / max(1.0, float(predicted.sum() + truth.sum()))


def test_scores(make: Callable[..., Any], model: SharedSpace) -> dict[str, float]:
    """Scores on clean views of the test films: genres, and retrieval of texts by images."""
    data = make(batch_size=1000, include_labels=True, num_workers=0, view_mode="clean")
    with torch.no_grad():
        for batch, batch_idx, dataloader_idx in data.test_dataloader():
            assert dataloader_idx == 0
            model.validation_step(batch, batch_idx)
    truth = torch.cat(model.scores["labels"]) > 0.5
    similar = model.scores["retrieval"][0]
    train_labels = data.train_datasets[LABELLED].domain_data[L][:]
    often = train_labels.mean(0).topk(2).indices
    guess = torch.zeros_like(truth)
    guess[:, often] = True
    rank = (similar > similar.diag()[:, None]).sum(1).double()
    return {
        "f1": f1(torch.cat(model.scores["logits"]) > 0, truth),
        "guess_f1": f1(guess, truth),
        "mean_rank": float(rank.mean()),
        "chance_rank": (len(similar) - 1) / 2,
    }


FAMILIES = {"clip": make_datamodule_clip_aug70, "blip2": make_datamodule_blip2_aug70}


def main() -> None:
    torch.set_num_threads(1)
    make = FAMILIES[sys.argv[1]]
    data, model = train(make, epochs=30, view_mode="all")
    samples = data.get_samples("val", 4)[frozenset({I, C, I0, C0})]
    shapes = {key: list(value.shape) for key, value in samples.items()}
    print(json.dumps({**test_scores(make, model), "shapes": shapes}))


if __name__ == "__main__":
    main()
