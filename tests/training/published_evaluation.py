"""Training, FLOP counting and evaluation as the published scripts do them, import order included.

It uses the interfaces in the same way, without their code: a small model with attention over two
domains is trained with Lightning on batches of every set of domains, one step is profiled, and
clean views are evaluated from the datasets' tensors. It prints one line of JSON for each family in
its arguments. The test changes only its import line.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

# isort: split
from dataset_1x_aug70 import make_datamodule_blip2_aug70, make_datamodule_clip_aug70

STEPS = 40
FAMILIES = {"clip": make_datamodule_clip_aug70, "blip2": make_datamodule_blip2_aug70}
IMAGE, TEXT, LABELS = "image_latents", "caption_embeddings", "labels"
CLEAN = {IMAGE: "image_latents_clean", TEXT: "caption_embeddings_clean"}
PAIR, ALONE = frozenset([IMAGE, TEXT]), frozenset([LABELS])
THREE = frozenset([IMAGE, TEXT, LABELS])
FIVE = frozenset([*THREE, *CLEAN.values()])


class Workspace(LightningModule):
    def __init__(self, dims: dict[str, int], size: int = 24) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(dim, size) for name, dim in dims.items()})
        self.decoders = nn.ModuleDict({name: nn.Linear(size, dim) for name, dim in dims.items()})
        self.query = nn.Linear(size, 1)
        self.losses: list[float] = []

    def fuse(self, domains: dict[str, torch.Tensor]) -> torch.Tensor:
        encoded = torch.stack([self.encoders[n](domains[n]) for n in (IMAGE, TEXT)])  # [2, B, size]
        return torch.tanh((self.query(encoded).softmax(dim=0) * encoded).sum(dim=0))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        domains = batch[FIVE]
        shared = self.fuse(domains)
        loss = F.binary_cross_entropy_with_logits(self.decoders[LABELS](shared), domains[LABELS])
        for name, clean in CLEAN.items():
            loss = loss + 0.1 * F.mse_loss(self.decoders[name](shared), domains[clean])
        for key, rows in batch.items():  # the other sets of domains are included
            loss = loss + 0.0 * sum(rows[name].sum() for name in key)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch[THREE][LABELS].shape[1] == 23

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def make_model(data: Any) -> Workspace:
    pair = data.train_datasets[PAIR].domain_data
    dims = {name: int(pair[name].shape[1]) for name in (IMAGE, TEXT)}
    dims[LABELS] = int(data.train_datasets[ALONE].domain_data[LABELS].shape[1])
    return Workspace(dims)


def make_trainer(**keywords: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    return Trainer(
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **quiet,
        **keywords,
    )


def train(make: Callable[..., Any], seed: int) -> Workspace:
    seed_everything(seed, workers=True, verbose=False)
    data = make(
        batch_size=32,
        num_workers=0,
        pin_memory=True,
        normalize="none",
        view_mode="all",
        include_labels=True,
    )
    model = make_model(data)
    make_trainer(max_steps=STEPS).fit(model=model, datamodule=data)
    return model


def flops_of_a_step(make: Callable[..., Any]) -> int:
    data = make(batch_size=1, num_workers=0, view_mode="all", include_labels=True)
    data.prepare_data()
    data.setup("fit")
    model, trainer = make_model(data), make_trainer(max_steps=1, limit_val_batches=0)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as found:
        trainer.fit(model=model, datamodule=data)
    return sum(int(event.flops or 0) for event in found.key_averages())


def clean_loader(dataset: Any) -> DataLoader[Any]:
    domains = dataset.domain_data
    held = [domains[name].contiguous() for name in (IMAGE, TEXT, LABELS)]
    return DataLoader(TensorDataset(*held), batch_size=4, shuffle=False, num_workers=1)


@torch.no_grad()
def evaluate(make: Callable[..., Any], model: Workspace) -> dict[str, float]:
    model.eval()
    data = make(
        batch_size=1024, num_workers=8, pin_memory=True, view_mode="clean", include_labels=True
    )
    scores: dict[str, float] = {}
    parts = {"val": data.val_datasets[THREE], "test": data.test_datasets.get(THREE)}
    for name, dataset in parts.items():
        loader = clean_loader(dataset)
        outputs, answers = [], []
        for image, text, labels in loader:
            shared = model.fuse({IMAGE: image.to("cpu", non_blocking=True), TEXT: text})
            outputs.append(model.decoders[LABELS](shared).float().cpu().numpy())
            answers.append(labels.numpy())
        logits, truth = np.concatenate(outputs), np.concatenate(answers).astype(np.int64)
        predicted = (1.0 / (1.0 + np.exp(-logits)) >= 0.5).astype(np.int64)
        scores[f"n_{name}"] = len(truth)
        scores[f"macro_f1_{name}"] = f1_score(truth, predicted, average="macro", zero_division=0)
        scores[f"bce_{name}"] = F.binary_cross_entropy_with_logits(
            torch.from_numpy(logits), torch.from_numpy(truth.astype(np.float32))
        ).item()
    return scores


def main() -> None:
    torch.set_num_threads(1)
    for backbone in sys.argv[1:]:
        make = FAMILIES[backbone]
        model = train(make, seed=42)
        row = {"backbone": backbone, "losses": model.losses, "flops": flops_of_a_step(make)}
        print(json.dumps(row | evaluate(make, model)))


if __name__ == "__main__":
    main()
