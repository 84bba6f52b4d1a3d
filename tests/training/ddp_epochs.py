"""One rank of distributed training, for test_distributed.py; arguments STORE SPLIT_JSON OUT_DIR."""

import os
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from featurestore import DeviceBatches, FeatureBatchSampler, FeatureDataset, Shard, Shuffle

FEATURE = "clip_image"
# Batch size and shuffle of each epoch; 23 items of two ranks: 12 and 11.
EPOCHS = ((4, Shuffle(seed=5)), (11, Shuffle(seed=5, window=2)))


def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A mean loss over the batch, to which each item contributes independently."""
    target = torch.sin(batch["index"].double())[:, None]
    loss: torch.Tensor = (model(batch[FEATURE].double()) - target).square().mean()
    return loss


def make_model(dim: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(dim, 1, dtype=torch.float64)


def main(store: str, split_json: str, out_dir: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    train = FeatureDataset(store, [FEATURE], views="random", split="train", split_json=split_json)
    model = DistributedDataParallel(make_model(train.store.spec.dims[FEATURE]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for epoch, (size, shuffle) in enumerate(EPOCHS):
        batches = FeatureBatchSampler(train, size, shuffle=shuffle, shard=Shard.current())
        batches.set_epoch(epoch)
        expected = batches.items
        steps = []
        for step, batch in enumerate(DeviceBatches(train, batches, "cpu")):
            steps.append(batch["index"].tolist())
            optimizer.zero_grad()
            (loss_of(model, batch) * batches.weight(step)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if sum(map(len, steps)) != expected:
            raise RuntimeError(f"{expected} items were promised")
        seen.append(steps)
    torch.save({"seen": seen, "weights": model.module.state_dict()}, Path(out_dir) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(*sys.argv[1:])
