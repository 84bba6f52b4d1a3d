"""The published datamodule's interface, against a plain in-memory reference written here."""

import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurestore.datamodule import (
    make_datamodule,
    make_datamodule_blip2_aug70,
    make_datamodule_clip_aug70,
)
from featurestore.errors import ConfigError, InputError
from featurestore.imdb.labels import write_labels
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.reading.npy_folder import NpyFolder
from featurestore.storage.store import FeatureStore
from tests.featurestore.stores import StoreAndRows
from tests.featurestore.worlds import domain_data

from .stores import make_store

DIMS = {"clip_image": 64, "clip_text": 128, "blip2_image": 192, "blip2_text": 64}
STEMS = [f"{i:07d}" for i in range(14)]
SPLIT = {"train": STEMS[:8], "dev": STEMS[8:11], "test": [1, *range(11, 14)][1:]}
PARTS = {"train": range(8), "val": range(8, 11), "test": range(11, 14)}
VIEWS = 4

I, C, I0, C0, L = (  # noqa: E741  the names of formats.md
    "image_latents",
    "caption_embeddings",
    "image_latents_clean",
    "caption_embeddings_clean",
    "labels",
)
PAIRED = [{I, C}, {I0}, {C0}, {I, I0}, {C, C0}, {I, C, I0, C0}]
LABELLED = [{L}, {I, C, L}, {I, C, I0, C0, L}]

Make = Callable[..., Any]  # creates a Lightning data module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_store(root / "store", dims=DIMS, views=VIEWS, chunk=8, stems=STEMS)
    materialize(FeatureStore(root / "store"), root / "embeddings")
    genres = ["Drama", "Comedy", "Horror"]
    write_labels(STEMS, [{"genres": [genres[i % 3]]} for i in range(14)], root / "labels")
    (root / "split.json").write_text(json.dumps(SPLIT))
    return root


@pytest.fixture(params=["store", "embeddings"])
def make(request: pytest.FixtureRequest, folders: Path) -> Make:
    def module(family: str = "clip", **keywords: Any) -> Any:
        keywords = {"num_workers": 0, "batch_size": 5, **keywords}
        return make_datamodule(
            family,
            embeddings=folders / request.param,
            data_root=folders,
            labels_dir=folders / "labels",
            **keywords,
        )

    return module


def reference(
    folders: Path, family: str, part: str, mode: str, k: int = 0
) -> dict[str, np.ndarray]:
    """Every domain of a part, from the published files, all in memory."""
    actual = {}
    for kind, name, clean in (("image", I, I0), ("text", C, C0)):
        rows = np.load(folders / "embeddings" / f"{PREFIX}_{family}_{kind}.npy")
        cube = rows.reshape(len(STEMS), VIEWS, -1)[list(PARTS[part])]  # [n, V, D]
        actual[name] = {
            "clean": cube[:, 0],
            "view_k": cube[:, k],
            "mean": cube.mean(axis=1),
            "all": cube.reshape(-1, cube.shape[2]),
        }[mode]
        each = VIEWS if mode == "all" else 1
        actual[clean] = cube[:, 0].repeat(each, axis=0)
    labels = np.load(folders / "labels" / "labels_all_23.npy")[list(PARTS[part])]
    actual[L] = labels.repeat(VIEWS if mode == "all" else 1, axis=0)
    return actual


def datasets_of(module: Any) -> dict[str, Any]:
    return {p: getattr(module, f"{p}_datasets") for p in ("train", "val", "test")}


def test_keys(make: Make) -> None:
    for labelled in (False, True):
        actual = datasets_of(make(include_labels=labelled))
        more = LABELLED if labelled else []
        assert set(actual["train"]) == {frozenset(k) for k in [{I}, {C}, *PAIRED, *more]}
        for part in ("val", "test"):
            assert set(actual[part]) == {frozenset(k) for k in [*PAIRED, *more]}
        for datasets in actual.values():
            assert all(set(d.domain_data) == key for key, d in datasets.items())


@pytest.mark.parametrize("family", ["clip", "blip2"])
@pytest.mark.parametrize(("mode", "k"), [("clean", 0), ("view_k", 3), ("mean", 0), ("all", 0)])
def test_values_of_every_domain(make: Make, folders: Path, family: str, mode: str, k: int) -> None:
    module = make(family, view_mode=mode, view_k=k, include_labels=True)
    for part, datasets in datasets_of(module).items():
        wanted = reference(folders, family, part, mode, k)
        dataset = datasets[frozenset({I, C, I0, C0, L})]
        assert len(dataset) == len(wanted[I])
        for name, rows in dataset.domain_data.items():
            assert rows.shape == wanted[name].shape
            np.testing.assert_allclose(np.asarray(rows), wanted[name], rtol=1e-5, atol=1e-6)
            last = dataset[len(dataset) - 1][name]
            torch.testing.assert_close(last, torch.from_numpy(wanted[name][-1].copy()))


def test_rows_index_as_a_tensor_does(make: Make, folders: Path) -> None:
    rows = make(view_mode="all").train_datasets[frozenset({I})].domain_data[I]
    wanted = torch.from_numpy(np.asarray(rows))
    assert wanted.dtype == torch.float32
    for item in (0, -1, 31, slice(2, 9, 3), [3, 1, 3], np.array([7]), torch.tensor([5, 0])):
        assert torch.equal(rows[item], wanted[item])
    for item in (32, -33):
        with pytest.raises(IndexError):
            rows[item]
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(rows, copy=False)


@pytest.mark.parametrize("family", ["clip", "blip2"])
@pytest.mark.parametrize("mode", ["clean", "view_k", "all", "mean"])
def test_train_split_scales_each_domain_by_its_training_rows_but_not_labels(
    make: Make, folders: Path, mode: str, family: str
) -> None:
    module = make(family, normalize="train_split", view_mode=mode, view_k=2, include_labels=True)
    train = reference(folders, family, "train", mode, 2)
    for part, datasets in datasets_of(module).items():
        wanted = reference(folders, family, part, mode, 2)
        actual = datasets[frozenset({I, C, I0, C0, L})].domain_data
        for name in (I, C, I0, C0):
            wide = torch.from_numpy(train[name].astype(np.float64))
            scaled = (wanted[name] - wide.mean(0).numpy()) / wide.std(0).numpy()
            # float32 rounds the mean and the difference: three roundings of the larger of both.
            bound = 3 * 2**-24 * (np.abs(wanted[name]) + wide.mean(0).abs().numpy())
            error = np.abs(np.asarray(actual[name]) - scaled)
            assert (error <= bound / wide.std(0).numpy() + 1e-6 * np.abs(scaled)).all()
        assert np.array_equal(np.asarray(actual[L]), wanted[L])


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> StoreAndRows:
    """A store of one view, whose first dimension is 2.5 but for the last sample's 3.5."""
    root = tmp_path_factory.mktemp("constant")
    rows = {
        name: np.random.default_rng(4).normal(3, 1e-4, (len(STEMS), 1, dim)).astype(np.float32)
        for name, dim in DIMS.items()
    }
    for each in rows.values():
        each[..., 0] = 2.5
        each[-1, :, 0] = 3.5
    make_store(root / "store", dims=DIMS, views=1, chunk=16, stems=STEMS, rows=rows)
    materialize(FeatureStore(root / "store"), root / "embeddings", zscore="none")
    (root / "split.json").write_text(json.dumps(SPLIT))
    return root, rows


def test_a_dimension_without_deviation_is_divided_by_a_millionth(constant: StoreAndRows) -> None:
    """Small deviations divide unchanged: nothing is added to them."""
    root, rows = constant
    module = make_datamodule(
        "clip", embeddings=root / "embeddings", data_root=root, normalize="train_split"
    )
    for part, datasets in datasets_of(module).items():
        actual = np.asarray(datasets[frozenset({I, C})].domain_data[I])
        raw = torch.from_numpy(rows["clip_image"][:, 0].astype(np.float64))
        mean, deviation = raw[:8].mean(0), raw[:8].std(0)
        assert deviation[0] == 0
        deviation[0] = 1e-6
        wanted = ((raw - mean) / deviation)[list(PARTS[part])].numpy()
        bound = 1.5 * 2**-22 / deviation.numpy()  # the mean and a difference of float32 near 3
        assert (np.abs(actual - wanted) <= bound + 1e-6 * np.abs(wanted)).all()
        assert np.isfinite(actual).all()
        assert (actual[:, 0] == 0).sum() == len(actual) - (part == "test")


def test_one_training_row_has_no_deviation(constant: StoreAndRows, tmp_path: Path) -> None:
    split = {"train": STEMS[:1], "dev": STEMS[1:2], "test": STEMS[2:3]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match="at least two"):
        make_datamodule(
            "clip", embeddings=constant[0] / "store", data_root=tmp_path, normalize="train_split"
        )


def test_get_samples(make: Make, folders: Path) -> None:
    module = make(include_labels=True)
    actual = module.get_samples("val", 2)
    assert set(actual) == set(module.val_datasets)
    wanted = reference(folders, "clip", "val", "clean")
    rows = actual[frozenset({I, C, L})]
    assert {n: tuple(v.shape) for n, v in rows.items()} == {I: (2, 64), C: (2, 128), L: (2, 23)}
    np.testing.assert_allclose(rows[C].numpy(), wanted[C][:2], rtol=1e-5, atol=1e-6)
    for arguments in (("dev", 1), ("val", 0), ("val", -1)):
        with pytest.raises(ConfigError):
            module.get_samples(*arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_give_aligned_batches(make: Make, folders: Path, workers: int) -> None:
    module = make(view_mode="all", include_labels=True, num_workers=workers)
    wanted = reference(folders, "clip", "train", "all")
    seen: list[int] = []
    sizes: list[int] = []
    for batch, index, loader in module.train_dataloader():
        assert set(batch) == set(module.train_datasets)
        assert (index, loader) == (len(sizes), 0)
        rows = batch[frozenset({I, C, I0, C0, L})]
        sizes.append(len(rows[I]))
        for i in range(sizes[-1]):
            nearest = np.abs(wanted[C] - rows[C][i].numpy()).max(axis=1).argmin()
            seen.append(int(nearest))
            for name in (I, C, I0, C0, L):  # rows of one sample, in any order
                torch.testing.assert_close(
                    rows[name][i], torch.from_numpy(wanted[name][nearest].copy())
                )
    assert sizes == [5] * 6 + [2]  # the last partial batch is kept
    assert sorted(seen) == list(range(32))
    assert seen != sorted(seen)  # shuffled


def test_validation_is_in_order(make: Make, folders: Path) -> None:
    module = make(batch_size=2)
    wanted = reference(folders, "clip", "val", "clean")
    actual = [batch[frozenset({I0})][I0] for batch, _, _ in module.val_dataloader()]
    np.testing.assert_allclose(torch.cat(actual).numpy(), wanted[I0], rtol=1e-5, atol=1e-6)
    assert len(list(module.test_dataloader())) == 2


def test_a_trainer_takes_it(make: Make) -> None:
    from lightning.pytorch import LightningDataModule

    assert isinstance(make(), LightningDataModule)


def test_datasets_travel_to_other_processes_without_their_rows(make: Make) -> None:
    dataset = make(view_mode="all", normalize="train_split").train_datasets[frozenset({I, I0})]
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    again = pickle.loads(data)
    for item in (0, 17, 31):
        for name in (I, I0):
            assert torch.equal(again[item][name], dataset[item][name])


def test_nothing_is_copied_for_all_views(tmp_path: Path, folders: Path) -> None:
    stems = [f"{i:05d}" for i in range(800)]
    make_store(tmp_path / "store", dims=DIMS, views=VIEWS, chunk=8, stems=stems)
    write_labels(stems, [{"genres": ["Drama"]}] * 800, tmp_path / "labels")
    split = {"train": stems[:700], "dev": stems[700:750], "test": stems[750:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    tracemalloc.start()
    module = make_datamodule(
        "blip2",
        embeddings=tmp_path / "store",
        data_root=tmp_path,
        labels_dir=tmp_path / "labels",
        view_mode="all",
        num_workers=0,
    )
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = domain_data(module.train_datasets[frozenset({I, C, I0, C0})])
    assert sum(r.shape[0] * r.shape[1] * 4 for r in rows.values()) > 5_000_000
    assert held < 2_000_000


def anonymous_bytes() -> int:
    """Memory of this process without mapped files, which the kernel could reclaim."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def test_an_epoch_of_all_views_takes_no_memory(tmp_path: Path) -> None:
    count, views, bound = 512, 8, 24_000_000
    stems = [f"{i:05d}" for i in range(count)]
    dims = {"blip2_image": 768, "blip2_text": 2048}
    # Each sample has another number, but all share one block of memory.
    rows = {
        n: np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, views, d))
        for n, d in dims.items()
    }
    make_store(tmp_path / "store", dims=dims, views=views, chunk=64, stems=stems, rows=rows)
    split = {"train": stems[:500], "dev": stems[500:506], "test": stems[506:]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    module = make_datamodule(
        "blip2",
        embeddings=tmp_path / "store",
        data_root=tmp_path,
        view_mode="all",
        batch_size=64,
        num_workers=0,
    )
    next(iter(module.val_dataloader()))  # what is imported at first use
    before, most, seen = anonymous_bytes(), 0, 0
    for batch, _, _ in module.train_dataloader():
        most = max(most, anonymous_bytes())
        seen += sum(rows.nbytes for rows in batch[frozenset({I, C, I0, C0})].values())
    assert seen == 2 * 500 * views * 4 * sum(dims.values())  # 90 MB, and 7 more groups of domains
    assert most - before < bound < seen / 3


def test_labels_are_required_only_if_requested(
    folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MMIMDB1_DIR", str(folders))
    monkeypatch.delenv("IMDB1_LABELS_DIR_23", raising=False)
    # In the order of the published scripts: in blocks, view by view.
    (tmp_path / "published").mkdir()
    for file in (folders / "embeddings").iterdir():
        (tmp_path / "published" / file.name).write_bytes(file.read_bytes())
    index = tmp_path / "published" / f"{PREFIX}_aug_index.csv"
    head, *lines = index.read_text().splitlines()
    lines.sort(key=lambda line: (int(line.split(",")[2]), -int(line.split(",")[1])))
    index.write_text("\n".join([head, *lines]) + "\n")
    for embeddings in (folders / "store", folders / "embeddings", tmp_path / "published"):
        monkeypatch.setenv("OTHER_BACKBONES_DIR_IMDB1_AUG70", str(embeddings))
        rows = make_datamodule_clip_aug70(view_mode="all").val_datasets[frozenset({I0})]
        wanted = reference(folders, "clip", "val", "all")[I0]
        actual = np.asarray(domain_data(rows)[I0])
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
        with pytest.raises(ConfigError, match="IMDB1_LABELS_DIR_23 is not set"):
            make_datamodule_clip_aug70(include_labels=True)
    index.write_text("\n".join([head, *lines[:3], *lines[4:]]) + "\n")
    with pytest.raises(InputError, match="does not name every sample"):
        make_datamodule_clip_aug70()
    index.write_text("nothing\n1\n")
    with pytest.raises(InputError, match="is not an index"):
        make_datamodule_clip_aug70()
    index.unlink()
    with pytest.raises(InputError, match="neither a store nor"):
        make_datamodule_clip_aug70()
    with pytest.raises(ConfigError, match="include_labels needs labels_dir"):
        make_datamodule("clip", embeddings="x", data_root="x", include_labels=True)


def test_published_files_of_other_samples_are_refused(folders: Path, tmp_path: Path) -> None:
    """Their manifest holds no hash, but their index names the samples."""
    published = tmp_path / "published"
    shutil.copytree(folders / "embeddings", published)
    manifest = published / f"{PREFIX}_manifest.json"
    facts = json.loads(manifest.read_bytes())
    for key in ("stems_sha256", "sha256", "crc32c"):
        del facts[key]
    manifest.write_text(json.dumps(facts))
    given: dict[str, Any] = {
        "data_root": folders,
        "labels_dir": folders / "labels",
        "include_labels": True,
    }
    assert make_datamodule("clip", embeddings=published, **given).train_datasets
    index = published / f"{PREFIX}_aug_index.csv"
    stems = NpyFolder(published, PREFIX).stems
    text = index.read_text()
    swapped = text.replace(stems[0], "?").replace(stems[1], stems[0]).replace("?", stems[1])
    index.write_text(swapped)
    with pytest.raises(InputError, match="of the labels differ, or are in another order"):
        make_datamodule("clip", embeddings=published, **given)
    index.unlink()  # nothing is left to compare with
    assert make_datamodule("clip", embeddings=published, **given).train_datasets


def test_lightning_sets_the_epoch_of_our_batch_sampler(folders: Path) -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    from featurestore import FeatureBatchSampler, FeatureDataset

    dataset = FeatureDataset(folders / "store", views="random")
    sampler = FeatureBatchSampler(dataset, 5)
    _set_sampler_epoch(torch.utils.data.DataLoader(dataset, batch_sampler=sampler), 7)
    assert (sampler.epoch, dataset.epoch) == (7, 7)


@pytest.mark.filterwarnings("ignore")  # Lightning warns of few cores
def test_a_trainer_resumes_in_the_middle_of_an_epoch(folders: Path, tmp_path: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from featurestore import DeviceBatches, FeatureBatchSampler, FeatureDataset

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 1)
            self.seen: list[Any] = []

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            self.seen.append((self.current_epoch, number, batch["index"], batch["clip_image"]))
            loss: torch.Tensor = self.layer(batch["clip_image"]).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def fit(**keywords: Any) -> list[Any]:
        dataset = FeatureDataset(folders / "store", ["clip_image"], views="random")
        batches = DeviceBatches(dataset, FeatureBatchSampler(dataset, 4), "cpu")
        saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        model = Model()
        trainer = Trainer(accelerator="cpu", max_epochs=3, callbacks=[saved], **quiet)
        trainer.fit(model, batches, **keywords)
        return model.seen

    whole = fit()
    assert [seen[:2] for seen in whole] == [(e, n) for e in range(3) for n in range(4)]
    assert not torch.equal(whole[0][2], whole[4][2])  # another order
    for step in (1, 4, 7):  # the first batch, the end of an epoch, the middle of one
        tail = fit(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert len(tail) == 12 - step
        for actual, wanted in zip(tail, whole[step:], strict=True):
            assert actual[:2] == wanted[:2]
            assert torch.equal(actual[2], wanted[2])
            assert torch.equal(actual[3], wanted[3])


def test_factories_read_the_published_variables(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_BACKBONES_DIR_IMDB1_AUG70", str(folders / "embeddings"))
    monkeypatch.setenv("IMDB1_LABELS_DIR_23", str(folders / "labels"))
    monkeypatch.setenv("MMIMDB1_DIR", str(folders))
    clip = make_datamodule_clip_aug70()
    blip2 = make_datamodule_blip2_aug70(view_mode="all", include_labels=True, batch_size=7)
    assert domain_data(clip.train_datasets[frozenset({I})])[I].shape == (8, 64)
    assert domain_data(blip2.test_datasets[frozenset({L})])[L].shape == (12, 23)
    with pytest.raises(TypeError, match="bach_size"):
        make_datamodule_clip_aug70(bach_size=3)
    monkeypatch.delenv("MMIMDB1_DIR")
    with pytest.raises(ConfigError, match="MMIMDB1_DIR is not set"):
        make_datamodule_clip_aug70()


@pytest.mark.parametrize(
    "keywords",
    [
        {"view_mode": "noisy"},
        {"view_mode": "view_k", "view_k": 4},
        {"view_k": -1},
        {"normalize": "all"},
        {"batch_size": 0},
    ],
)
def test_keywords_are_checked(make: Make, keywords: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(**keywords)


def test_what_does_not_belong_together_is_refused(folders: Path, tmp_path: Path) -> None:
    def module(**changes: Any) -> Any:
        places: dict[str, Any] = {"embeddings": folders / "embeddings", "data_root": folders}
        return make_datamodule("clip", **places | {"labels_dir": folders / "labels"} | changes)

    write_labels(STEMS[:-1], [{"genres": ["Drama"]}] * 13, tmp_path / "fewer")
    write_labels([*STEMS[:-1], "x"], [{"genres": ["Drama"]}] * 14, tmp_path / "other")
    (tmp_path / "split.json").write_text(json.dumps(SPLIT | {"dev": STEMS[:1]}))
    for embeddings in (folders / "embeddings", folders / "store"):
        for labels in ("fewer", "other"):
            with pytest.raises(InputError, match="samples"):
                module(embeddings=embeddings, labels_dir=tmp_path / labels)
    with pytest.raises(InputError, match="both in train and in val"):
        module(data_root=tmp_path)
    with pytest.raises(InputError, match="incomplete"):
        module(embeddings=tmp_path)
    with pytest.raises(ConfigError, match="clip, blip2"):
        make_datamodule("vit", embeddings="x", data_root="x", labels_dir="x")
