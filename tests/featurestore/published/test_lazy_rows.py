"""Lazy rows of a domain equal the tensor of the same rows, and read only what is needed."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from featurestore.datamodule import make_datamodule
from featurestore.errors import ConfigError, CorruptStoreError, InputError
from featurestore.imdb.materialize import materialize
from featurestore.published.domains import DomainDataset, DomainRows
from featurestore.published.gw_module import GroupLoaders
from featurestore.published.lazy_rows import LazyRows
from featurestore.storage.store import FeatureStore
from tests.featurestore.stores import make_store
from tests.featurestore.worlds import domain_data

STEMS = [f"{i:07d}" for i in range(14)]
SPLIT = {"train": STEMS[:8], "dev": [], "test": STEMS[11:]}
IMAGE, TEXT = "image_latents", "caption_embeddings"
N, D = 32, 64  # 8 samples with 4 views


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_store(root / "store", views=4, chunk=8, stems=STEMS)
    materialize(FeatureStore(root / "store"), root / "embeddings")
    (root / "split.json").write_text(json.dumps(SPLIT))
    return root


@pytest.fixture(scope="module", params=["store", "embeddings"])
def module(request: pytest.FixtureRequest, folders: Path) -> GroupLoaders:
    return make_datamodule(
        "clip", embeddings=folders / request.param, data_root=folders, view_mode="all"
    )


@pytest.fixture
def rows(module: GroupLoaders) -> DomainRows:
    rows = domain_data(module.train_datasets[frozenset({IMAGE})])[IMAGE]
    assert isinstance(rows, DomainRows)
    return rows


@pytest.fixture
def wanted(rows: DomainRows) -> torch.Tensor:
    """The same rows, read one by one."""
    return torch.stack([rows.take(np.array([i]))[0] for i in range(N)])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each read."""
    seen: list[int] = []
    take = DomainRows.take

    def counted(rows: DomainRows, positions: npt.NDArray[np.int64]) -> torch.Tensor:
        seen.append(positions.size)
        return take(rows, positions)

    monkeypatch.setattr(DomainRows, "take", counted)
    return seen


def test_facts_are_answered_without_reading(
    rows: DomainRows, wanted: torch.Tensor, read: list[int]
) -> None:
    assert isinstance(rows.shape, torch.Size)
    assert rows.shape == wanted.shape == rows.size() == (N, D)
    assert (rows.dtype, rows.device) == (torch.float32, torch.device("cpu"))
    for name in ("ndim", "nbytes", "itemsize", "layout", "requires_grad", "is_cuda", "is_cpu"):
        assert getattr(rows, name) == getattr(wanted, name), name
    for name in ("dim", "numel", "nelement", "element_size", "stride", "is_contiguous"):
        assert getattr(rows, name)() == getattr(wanted, name)(), name
    assert rows.is_floating_point()
    assert (rows.size(0), rows.size(-1), len(rows)) == (N, D, N)
    for name in ("mean", "to", "contiguous", "numpy"):
        assert callable(getattr(rows, name))
    assert f"({N}, {D})" in repr(rows)
    assert read == []


ITEMS = {
    "0": 1,
    "-1": 1,
    "np.int64(5)": 1,
    "torch.tensor(5)": 1,
    "slice(2, 9, 3)": 3,
    "slice(None)": N,
    "slice(40, 50)": 0,
    "[3, 1, 3]": 3,
    "[]": 0,
    "range(4)": 4,
    "np.array([7])": 1,
    "torch.tensor([5, -1])": 2,
    "torch.tensor([[5, 0], [1, 1]])": 4,
    "np.arange(N) % 8 == 0": 4,
    "torch.arange(N) % 8 == 0": 4,
    "(0, 0)": 1,
    "(0, slice(3))": 1,
    "(slice(None), slice(None, 3))": N,
    "(slice(2), slice(None, 3))": 2,
    "(slice(2), -1)": 2,
    "(slice(2), None)": 2,
    "(slice(2), Ellipsis, 3)": 2,
    "(3, None, [1, 2])": 1,
    "([1, 2], [5, 6])": 2,
    "([[1], [2]], [5, 6, 7])": 2,
    "(torch.arange(N) < 3, [5, 6, 7])": 3,
    "None": N,
    "(None, 0)": N,
    "Ellipsis": N,
    "(Ellipsis, 0)": N,
    "()": N,
    "torch.ones(N, D) > 0": N,
}


@pytest.mark.parametrize("item", ITEMS)
def test_indexing_is_a_tensors_and_reads_the_rows_it_names(
    rows: DomainRows, wanted: torch.Tensor, read: list[int], item: str
) -> None:
    key = eval(item)
    actual = rows[key]
    assert type(actual) is torch.Tensor
    assert actual.shape == wanted[key].shape
    assert torch.equal(actual, wanted[key])
    assert sum(read) == ITEMS[item]


@pytest.mark.parametrize("item", ["N", "-N - 1", "[0, 32]", "(32, 0)", "0.5", "(0, 64)", "'a'"])
def test_invalid_indices_are_refused(rows: DomainRows, item: str) -> None:
    with pytest.raises(IndexError):
        rows[eval(item)]


CALLS = (
    "x.contiguous()",
    "x.to(torch.float64)",
    "x.to('cpu', non_blocking=True)",
    "x.float()",
    "x.half()",
    "x.cpu()",
    "x.clone()",
    "x.detach()",
    "x.mean()",
    "x.mean(0)",
    "x.mean(dim=0, keepdim=True)",
    "x.sum(dim=1)",
    "x.std(0)",
    "x.unsqueeze(0)",
    "x.index_select(0, torch.tensor([3, 1]))",
    "x.index_select(1, torch.tensor([3, 1]))",
    "x.view(-1, 4, D)",
    "x.reshape(-1)",
    "x.T",
    "x.topk(2).indices",
    "torch.from_numpy(x.numpy())",
    "torch.tensor(x.tolist())",
    "x @ x.T",
    "x[:2] - x[2:4]",
    "2 - x",
    "-x",
    "x > 0",
    "x == x",
    "x != 0.5",
    "torch.ones(D) + x",
    "torch.ones(3, N) @ x",
    "torch.cat([x, x], dim=1)",
    "torch.stack((x, torch.zeros(N, D)))",
    "torch.as_tensor(x)",
    "torch.as_tensor(x, dtype=torch.float64)",
    "torch.tensor(x) if not torch.is_tensor(x) else x.clone()",
    "torch.from_dlpack(x)",
    "torch.mean(x, 0)",
    "torch.zeros(N, D).copy_(x)",
    "torch.nn.functional.linear(x, torch.ones(3, D))",
    "torch.nn.functional.mse_loss(torch.zeros(N, D), x)",
)


@pytest.mark.parametrize("call", CALLS)
def test_other_tensor_attributes_read_all_rows(
    rows: DomainRows, wanted: torch.Tensor, call: str
) -> None:
    names = globals()
    expected = eval(call, names | {"x": wanted})
    actual = eval(call, names | {"x": rows})
    assert type(actual) is torch.Tensor
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "call", ["np.asarray(x)", "np.mean(x, axis=0)", "np.sum(x)", "np.concatenate([x, x])", "x + y"]
)
def test_numpy_takes_rows_as_an_array(rows: DomainRows, wanted: torch.Tensor, call: str) -> None:
    array = wanted.numpy()
    actual = eval(call, {"np": np, "x": rows, "y": array})
    np.testing.assert_array_equal(actual, eval(call, {"np": np, "x": array, "y": array}))


def test_a_tensor_dataset_of_rows_reads_what_its_batches_need(
    module: GroupLoaders, wanted: torch.Tensor, read: list[int]
) -> None:
    data = domain_data(module.train_datasets[frozenset({IMAGE, TEXT})])
    both = TensorDataset(data[IMAGE], data[TEXT])
    assert (len(both), read) == (N, [])
    loader = DataLoader(both, batch_size=5)
    image, text = next(iter(loader))
    assert sum(read) == 2 * 5
    assert torch.equal(image, wanted[:5])
    assert text.shape == (5, 128)
    held = TensorDataset(data[IMAGE].contiguous())  # in memory, as in the published evaluation
    assert torch.equal(held.tensors[0], wanted)


def test_iteration_reads_in_blocks(
    rows: DomainRows, wanted: torch.Tensor, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.published.lazy_rows.BLOCK", 10)
    for actual, expected in zip(rows, wanted, strict=True):
        assert torch.equal(actual, expected)
    assert read == [10, 10, 10, 2]
    assert torch.equal(rows.tensor(), wanted)  # a last block of another size


def test_rows_are_copied_and_pickled_without_being_read(
    rows: DomainRows, wanted: torch.Tensor, read: list[int]
) -> None:
    for again in (copy.copy(rows), copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        assert type(again) is DomainRows
        assert read == []
        assert torch.equal(again[3], wanted[3])
        read.clear()


def test_nothing_changes_rows_in_place(rows: Any, wanted: torch.Tensor) -> None:
    assert not hasattr(rows, "mul_")
    with pytest.raises(AttributeError, match=r"clone\(\)"):
        rows.add_(1)
    with pytest.raises(TypeError, match="clone"):
        torch.relu_(rows)
    with pytest.raises(TypeError, match="out="):
        torch.add(wanted, 1, out=rows)
    with pytest.raises(TypeError):
        rows[0] = 1
    name = rows
    name += 1  # creates a new object, as for any number
    assert torch.equal(name, wanted + 1)
    assert torch.equal(rows.tensor(), wanted)


def test_errors_are_those_that_happened(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_such_thing", "_private", "__setstate__", "__cuda_array_interface__"):
        with pytest.raises(AttributeError, match=name):
            getattr(rows, name)
    half_made = DomainRows.__new__(DomainRows)
    with pytest.raises(AttributeError, match="shape"):
        half_made.size()
    for error in (CorruptStoreError("c.0", "damaged"), AttributeError("a fault in reading")):

        def fail(
            self: DomainRows, positions: npt.NDArray[np.int64], error: Exception = error
        ) -> None:
            raise error

        monkeypatch.setattr(DomainRows, "take", fail)
        for use in (
            lambda: rows.mean(),
            lambda: rows.T,
            lambda: torch.cat([rows]),
            lambda: rows[0],
        ):
            with pytest.raises(type(error)) as caught:
                use()
            assert caught.value is error


def test_what_does_not_fit_is_refused_before_it_is_read(
    rows: Any, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.published.lazy_rows._SMALL_BYTES", 0)
    monkeypatch.setattr("featurestore.published.lazy_rows.available_bytes", lambda: N * D * 4 - 1)
    for use in (rows.contiguous, rows.numpy, lambda: torch.cat([rows]), lambda: np.asarray(rows)):
        with pytest.raises(ConfigError, match=r"takes 8,192 bytes, and 8,191 are available"):
            use()
    assert read == []
    assert rows[:, :3].shape == (N, 3)


def test_a_part_without_samples_is_an_empty_tensor(module: GroupLoaders) -> None:
    empty = domain_data(module.val_datasets[frozenset({IMAGE, TEXT})])[IMAGE]
    assert empty.tensor().shape == empty.shape == (0, D)
    assert empty[:5].shape == (0, D)
    assert list(empty) == []
    assert torch.cat([empty, torch.ones(1, D)]).shape == (1, D)
    with pytest.raises(IndexError):
        empty[0]


class Doubled(DomainDataset):
    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {name: 2 * row for name, row in super().__getitem__(item).items()}


def test_a_dataset_takes_tensors_too_and_plain_loaders_take_it(
    rows: DomainRows, wanted: torch.Tensor
) -> None:
    mixed: dict[str, LazyRows | torch.Tensor] = {"rows": rows, "numbers": torch.arange(N)}
    for kind, factor in ((DomainDataset, 1), (Doubled, 2)):
        for workers in (0, 1):
            loader = DataLoader(kind(mixed), batch_size=20, num_workers=workers)
            batches = list(loader)
            assert [len(batch["rows"]) for batch in batches] == [20, 12]
            assert torch.equal(torch.cat([b["rows"] for b in batches]), factor * wanted)
            numbers = torch.cat([batch["numbers"] for batch in batches])
            assert torch.equal(numbers, factor * torch.arange(N))
    for wrong in ({}, mixed | {"fewer": torch.arange(3)}):
        with pytest.raises(InputError, match="one length"):
            DomainDataset(wrong)
