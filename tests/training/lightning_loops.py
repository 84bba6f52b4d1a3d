"""A Lightning script whose second process Lightning starts; arguments STORE OUT_DIR.

That process is forked from the first one, which has imported all libraries.

Each scenario logs the batches of its steps. The scenarios of one process run first, in the first
process only.
"""

# ruff: noqa: E402

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

from featurestore import DeviceBatches, FeatureBatchSampler, FeatureDataset, Shard, Shuffle
from featurestore.errors import ConfigError
from tests.training.logged import FEATURE, Log, model

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
WINDOW = Shuffle(seed=5, window=2)


class Probe(LightningModule):
    def __init__(self, log: Log, name: str, hook: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.model, self.log_of, self.name = model(), log, name
        if hook is not None:
            self.train_dataloader = hook  # type: ignore[method-assign]

    def on_train_epoch_start(self) -> None:
        self.log_of.epoch(self.name)

    def on_validation_epoch_start(self) -> None:
        self.log_of.epoch(f"{self.name}/val")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log_of.batch(self.name, batch)
        loss: torch.Tensor = self.model(batch[FEATURE]).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_of.batch(f"{self.name}/val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log_of.batch(f"{self.name}/test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log_of.batch(self.name, batch)
        index: torch.Tensor = batch["index"]
        return index

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Pair(Probe):
    """Two loaders at once."""

    def on_train_epoch_start(self) -> None:
        for side in "ab":
            self.log_of.epoch(f"pair {side}")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        for side in "ab":
            self.log_of.batch(f"pair {side}", batch[side])
        loss: torch.Tensor = self.model(batch["a"][FEATURE]).square().mean()
        return loss


class Loops:
    def __init__(self, store: str, folder: str) -> None:
        self.store, self.folder, self.log = store, folder, Log(store)

    def data(self, views: int | str = "random") -> FeatureDataset:
        return FeatureDataset(self.store, [FEATURE], views=views, seed=1)

    def trainer(self, epochs: int = 1, **keywords: Any) -> Trainer:
        keywords = {"enable_checkpointing": False, "num_sanity_val_steps": 1} | QUIET | keywords
        return Trainer(max_epochs=epochs, default_root_dir=self.folder, **keywords)

    def loader(self, dataset: Any, size: int = 4, kind: Any = DataLoader, **keywords: Any) -> Any:
        sampler = FeatureBatchSampler(dataset, size, **keywords)
        if kind is DeviceBatches:
            return DeviceBatches(dataset, sampler, "cpu")
        return kind(dataset, batch_sampler=sampler)

    def both(self, epochs: int, name: str, **keywords: Any) -> None:
        """Training and validation with loaders that are created before the processes."""
        trained, checked = self.data(), self.data()
        self.trainer(epochs, **keywords).fit(
            Probe(self.log, name), self.loader(trained), self.loader(checked, shuffle=None)
        )

    def alone(self) -> None:
        self.both(3, "one", devices=1)
        one: dict[str, Any] = {"devices": 1}
        for kind in (DataLoader, DeviceBatches):
            name = kind.__name__
            self.trainer(4, overfit_batches=2, num_sanity_val_steps=0, devices=1).fit(
                Probe(self.log, f"overfit {name}"),
                self.loader(self.data(), kind=kind),
                self.loader(self.data(), kind=kind),
            )
            for shuffle in (None, Shuffle()) if kind is DataLoader else (None,):
                loader = self.loader(self.data(3), kind=kind, shuffle=shuffle, drop_last=True)
                kept = "kept" if shuffle is None else "shuffled"
                self.trainer(**one).predict(Probe(self.log, f"predict {name} {kept}"), loader)
            checked = Probe(self.log, name)
            self.trainer(**one).validate(
                checked, self.loader(self.data(), kind=kind), verbose=False
            )
            self.trainer(**one).test(checked, self.loader(self.data(), kind=kind), verbose=False)
        part = Subset(self.data(), range(0, 47, 2))
        self.trainer(3, **one).fit(Probe(self.log, "subset"), self.loader(part))
        together = {"a": self.loader(self.data(), 4), "b": self.loader(self.data(), 8)}
        self.trainer(3, **one).fit(Pair(self.log, "pair"), together)
        self.resumed()

    def resumed(self) -> None:
        for kind in (DeviceBatches, StatefulDataLoader):
            name = f"resumed {kind.__name__}"
            saving = ModelCheckpoint(
                dirpath=f"{self.folder}/{kind.__name__}",
                filename="{step}",
                every_n_train_steps=1,
                save_top_k=-1,
            )
            keywords: dict[str, Any] = {
                "devices": 1,
                "callbacks": [saving],
                "enable_checkpointing": True,
            }
            self.trainer(3, **keywords).fit(
                Probe(self.log, f"{name} whole"), self.loader(self.data(), 8, kind)
            )
            for step in (3, 6, 8, 13):  # six steps an epoch: the second number is its end
                self.trainer(3, devices=1).fit(
                    Probe(self.log, f"{name} {step}"),
                    self.loader(self.data(), 8, kind),
                    ckpt_path=f"{self.folder}/{kind.__name__}/step={step}.ckpt",
                )

    def several(self) -> None:
        two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
        self.both(3, "ddp", **two)
        window = self.loader(self.data(), 5, shuffle=WINDOW, drop_last=True)
        self.trainer(2, **two).fit(Probe(self.log, "window"), window)
        predicted = self.loader(self.data(3), shuffle=None, drop_last=True)
        self.trainer(**two).predict(Probe(self.log, "predict"), predicted)
        shuffled = self.loader(self.data(3))
        self.trainer(**two).predict(Probe(self.log, "predict shuffled"), shuffled)
        self.trainer(4, overfit_batches=2, num_sanity_val_steps=0, **two).fit(
            Probe(self.log, "overfit"), self.loader(self.data()), self.loader(self.data())
        )
        for kind in (DataLoader, DeviceBatches):
            name, data = f"shard {kind.__name__}", self.data()
            hook = lambda data=data, kind=kind: self.loader(  # noqa: E731
                data, kind=kind, shard=Shard.current()
            )
            self.trainer(3, **two).fit(Probe(self.log, name, hook))
        for name, loader, keywords in (
            ("no shard", self.loader(self.data(), kind=DeviceBatches), {}),
            ("left alone", self.loader(self.data()), {"use_distributed_sampler": False}),
        ):
            try:
                self.trainer(**two, **keywords).fit(Probe(self.log, name), loader)
            except (ConfigError, RuntimeError) as e:
                # Lightning's clean-up fails after a failed creation of an iterator.
                self.log.refused(name, e if isinstance(e, ConfigError) else e.__context__)


def main(store: str, folder: str) -> None:
    torch.set_num_threads(1)
    loops = Loops(store, folder)
    if "LOCAL_RANK" not in os.environ:
        loops.alone()
    loops.several()
    loops.log.save(folder, torch.distributed.get_rank())


class ForkedScript(subprocess.Popen[bytes]):
    """Replaces ``subprocess.Popen``: forks the process that runs this script again."""

    def _execute_child(self, args: list[str], *passed: Any) -> None:
        assert args == [sys.executable, "-m", "tests.training.lightning_loops", *sys.argv[1:]]
        [environment] = [each for each in passed if isinstance(each, dict)]
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.environ.clear()
                os.environ.update(environment)
                main(*args[3:])
                code = 0
            except BaseException:  # noqa: BLE001  the process border
                traceback.print_exc()
            finally:
                os._exit(code)
        self._child_created = True


if __name__ == "__main__":
    subprocess.Popen = ForkedScript  # type: ignore[assignment,misc]
    main(*sys.argv[1:])
