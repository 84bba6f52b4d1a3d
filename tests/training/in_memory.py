"""An independent datamodule with the published interface: plain tensors, everything in memory.

The tests put it beside a script as ``dataset_1x_aug70``, to compare the numbers.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, Dataset

IMAGE, TEXT, LABELS = "image_latents", "caption_embeddings", "labels"
FOUR = (IMAGE, TEXT, f"{IMAGE}_clean", f"{TEXT}_clean")
KEYS = (
    *((IMAGE,), (TEXT,), (IMAGE, TEXT), (FOUR[2],), (FOUR[3],)),
    *((IMAGE, FOUR[2]), (TEXT, FOUR[3]), FOUR),
    *((LABELS,), (IMAGE, TEXT, LABELS), (*FOUR, LABELS)),
)


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, domain_data: dict[str, torch.Tensor]) -> None:
        self.domain_data = domain_data

    def __len__(self) -> int:
        return len(next(iter(self.domain_data.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[index] for name, rows in self.domain_data.items()}


Groups = dict[frozenset[str], Rows]


class DataModule(LightningDataModule):
    def __init__(self, train: Groups, val: Groups, test: Groups, batch_size: int) -> None:
        super().__init__()
        self.train_datasets, self.val_datasets, self.test_datasets = train, val, test
        self.batch_size = batch_size

    def loader(self, datasets: Groups, shuffle: bool) -> CombinedLoader:
        each = {k: DataLoader(d, self.batch_size, shuffle=shuffle) for k, d in datasets.items()}
        return CombinedLoader(each, mode="min_size")

    def train_dataloader(self) -> CombinedLoader:
        return self.loader(self.train_datasets, True)

    def val_dataloader(self) -> CombinedLoader:
        return self.loader(self.val_datasets, False)


def load(family: str, view_mode: str) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """Per domain float32 ``[samples, V or 1, D]``, and the samples of each part."""
    files = Path(os.environ["OTHER_BACKBONES_DIR_IMDB1_AUG70"])
    labels = Path(os.environ["IMDB1_LABELS_DIR_23"])
    stems = (labels / "ids_all.txt").read_text().split()
    domains = {}
    for name, kind in ((IMAGE, "image"), (TEXT, "text")):
        flat = np.load(files / f"mm_imdb1_globals_aug70_{family}_{kind}.npy")
        rows = torch.from_numpy(flat).reshape(len(stems), -1, flat.shape[1])
        domains[name] = rows if view_mode == "all" else rows[:, :1]
        domains[f"{name}_clean"] = rows[:, :1].expand(domains[name].shape)
    each = domains[IMAGE].shape[1]
    clean = torch.from_numpy(np.load(labels / "labels_all_23.npy"))
    domains[LABELS] = clean[:, None].expand(-1, each, -1)
    split = json.loads((Path(os.environ["MMIMDB1_DIR"]) / "split.json").read_text())
    parts = [sorted(stems.index(s) for s in split[part]) for part in ("train", "dev", "test")]
    return domains, parts


def make(family: str, batch_size: int, view_mode: str = "clean", **_: object) -> DataModule:
    domains, parts = load(family, view_mode)
    groups = []
    for number, part in enumerate(parts):
        rows = {name: domain[part].flatten(0, 1) for name, domain in domains.items()}
        keys = KEYS[2 * (number > 0) :]
        groups.append({frozenset(k): Rows({name: rows[name] for name in k}) for k in keys})
    train, val, test = groups
    return DataModule(train, val, test, batch_size)


def make_datamodule_clip_aug70(**keywords: Any) -> DataModule:
    return make("clip", **keywords)


def make_datamodule_blip2_aug70(**keywords: Any) -> DataModule:
    return make("blip2", **keywords)
