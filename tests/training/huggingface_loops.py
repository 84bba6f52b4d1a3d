"""One of two ranks of Accelerate and of Transformers' Trainer; arguments STORE OUT_DIR."""

# ruff: noqa: E402

import os
import sys
from collections.abc import Sequence
from typing import Any

from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments

from featurestore import DeviceBatches, FeatureBatchSampler, FeatureDataset, Shard, Shuffle
from featurestore.errors import ConfigError
from tests.training.logged import FEATURE, Log, model

EPOCHS, SIZE = 3, 4


class Probe(torch.nn.Module):
    """A model for Transformers' Trainer."""

    def __init__(self, log: Log, name: str) -> None:
        super().__init__()
        self.model, self.log, self.name = model(), log, name

    def forward(self, clip_image: torch.Tensor, index: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.training:
            return {"logits": index}
        self.log.batch(self.name, {"index": index, FEATURE: clip_image})
        return {"loss": self.model(clip_image).square().mean()}


class Epochs(TrainerCallback):  # type: ignore[misc]
    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **keywords: Any
    ) -> None:
        probe = getattr(model, "module", model)
        probe.log.epoch(probe.name)


class ViewsOfEpoch(TrainerCallback):  # type: ignore[misc]
    """The example of docs/training.md for loaders with workers."""

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **keywords: Any
    ) -> None:
        train_dataloader.dataset.set_epoch(round(state.epoch))


class OwnBatches(Trainer):  # type: ignore[misc]
    """The example of docs/training.md."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        shuffle = Shuffle(seed=self.args.seed)
        batches = FeatureBatchSampler(
            self.train_dataset, self.args.train_batch_size, shuffle=shuffle, shard=Shard.current()
        )
        return DataLoader(self.train_dataset, batch_sampler=batches)


class Loops:
    def __init__(self, store: str, folder: str) -> None:
        self.store, self.folder, self.log = store, folder, Log(store)

    def data(self, views: int | str = "random") -> FeatureDataset:
        return FeatureDataset(self.store, [FEATURE], views=views, seed=1)

    # Accelerate ---------------------------------------------------------------------------------

    def prepared(self, dataset: Any, config: dict[str, Any] | None = None, **keywords: Any) -> Any:
        loader = DataLoader(dataset, batch_sampler=FeatureBatchSampler(dataset, SIZE, **keywords))
        self.accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(**(config or {}))
        )
        return self.accelerator.prepare(loader)

    def walk(self, name: str, loader: Any, epochs: int = EPOCHS) -> None:
        try:
            for _ in range(epochs):
                self.log.epoch(name)
                for batch in loader:
                    self.log.batch(name, batch)
        except ConfigError as e:
            self.log.refused(name, e)

    def accelerate(self) -> None:
        uneven, dispatch = {"even_batches": False}, {"dispatch_batches": True}
        self.walk("even", self.prepared(self.data()))
        self.walk("uneven", self.prepared(self.data(), uneven))
        self.walk("subset", self.prepared(Subset(self.data(), range(0, 47, 2)), uneven))
        self.walk("window", self.prepared(self.data(), uneven, shuffle=Shuffle(window=2)))
        self.walk("split", self.prepared(self.data(), uneven | {"split_batches": True}))
        self.walk("dispatch", self.prepared(self.data(), dispatch))
        shard = Shard.current()
        self.walk("twice", self.prepared(self.data(), shard=shard))
        self.walk("dispatch twice", self.prepared(self.data(), dispatch, shard=shard))
        for name, part in (("own", shard), ("nobody's", None), ("everything", Shard())):
            keywords: dict[str, Any] = {} if part is None else {"shard": part}
            data = self.data()
            plain, device = (FeatureBatchSampler(data, SIZE, **keywords) for _ in range(2))
            self.walk(f"plain {name}", DataLoader(data, batch_sampler=plain))
            self.walk(f"device {name}", DeviceBatches(data, device, "cpu"))
        loader = self.prepared(self.data(), uneven)
        self.walk("skipped", loader, 1)
        fresh = self.prepared(self.data(), uneven)
        fresh.set_epoch(1)
        self.walk("skipped", self.accelerator.skip_first_batches(fresh, 2), 1)
        fresh.set_epoch(2)
        self.walk("skipped", fresh, 1)
        data = self.data()
        self.walk("torch's", self.accelerator.prepare(DataLoader(data, SIZE, shuffle=True)))
        ordered = self.prepared(self.data(3), shuffle=None)
        found = [self.accelerator.gather_for_metrics(batch["index"]) for batch in ordered]
        self.log.seen["gathered"] = torch.cat(found).tolist()

    # Trainer ------------------------------------------------------------------------------------

    def trainer(self, kind: Any, name: str, callbacks: Sequence[Any] = (), **keywords: Any) -> Any:
        arguments = TrainingArguments(
            output_dir=f"{self.folder}/trainer",
            use_cpu=True,
            ddp_backend="gloo",
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=SIZE,
            per_device_eval_batch_size=SIZE,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **{"save_strategy": "no"} | keywords,
        )
        return kind(
            model=Probe(self.log, name),
            args=arguments,
            train_dataset=self.data(),
            callbacks=[Epochs(), *callbacks],
        )

    def transformers(self) -> None:
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
        own = self.trainer(OwnBatches, "trainer own", **saving)
        own.train()
        for step in (6, 8):  # six steps an epoch: the first is its end
            again = self.trainer(OwnBatches, f"trainer resumed {step}")
            again.train(resume_from_checkpoint=f"{self.folder}/trainer/checkpoint-{step}")
        workers: dict[str, Any] = {"dataloader_num_workers": 1}
        self.trainer(Trainer, "trainer workers", [ViewsOfEpoch()], **workers).train()
        self.trainer(Trainer, "trainer bare").train()
        self.log.seen["trainer predict"] = own.predict(self.data(3)).predictions.tolist()


def main(store: str, folder: str) -> None:
    torch.set_num_threads(1)
    loops = Loops(store, folder)
    torch.distributed.init_process_group("gloo")
    loops.accelerate()
    loops.transformers()
    loops.log.save(folder, torch.distributed.get_rank())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(*sys.argv[1:])
