"""Two real processes over localhost read the split exactly once, with the result of one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from featurestore import FeatureDataset
from tests import warm
from tests.conftest import ROOT
from tests.featurestore.stores import make_store
from tests.training.ddp_epochs import EPOCHS, FEATURE, loss_of, make_model

RANKS, TRAIN = 2, 23


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(arguments: Sequence[object], rank: int, port: int) -> subprocess.Popen[str]:
    variables = {"RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables |= {"PYTHONPATH": ROOT}
    return warm.Popen(
        [sys.executable, "-m", "tests.training.ddp_epochs", *map(str, arguments)],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_ranks(arguments: Sequence[object]) -> None:
    port = free_port()
    ranks = [start(arguments, rank, port) for rank in range(RANKS)]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(errors)


def test_two_ranks_read_the_split_once_and_learn_what_one_process_learns(tmp_path: Path) -> None:
    make_store(tmp_path / "store", samples=31, views=4, chunk=4)
    stems = FeatureDataset(tmp_path / "store").stems
    train = [stem for i, stem in enumerate(stems) if i % 4 != 3][:TRAIN]
    rest = [stem for stem in stems if stem not in train]
    split = {"train": train, "dev": rest[:2], "test": rest[2:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    run_ranks([tmp_path / "store", tmp_path / "split.json", tmp_path])

    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    dataset = FeatureDataset(tmp_path / "store", [FEATURE], views="random")
    model = make_model(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(len(EPOCHS)):
        steps = list(zip(*(rank["seen"][epoch] for rank in found), strict=True))
        seen = [item for step in steps for batch in step for item in batch]
        assert sorted(seen) == [stems.index(stem) for stem in train]  # the split, once each
        dataset.set_epoch(epoch)
        for step in steps:  # all ranks' items as one batch
            loss = loss_of(model, dataset.batch([item for batch in step for item in batch]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    sizes = [[[len(batch) for batch in epoch] for epoch in rank["seen"]] for rank in found]
    assert sizes == [[[4, 4, 4], [11, 1]], [[4, 4, 3], [10, 1]]]
    for rank in found:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(rank["weights"][name], value, rtol=1e-9, atol=1e-12)
