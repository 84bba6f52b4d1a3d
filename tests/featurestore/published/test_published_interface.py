"""The names that scripts for the published datamodule use: keywords, variables, attributes."""

import itertools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import featurestore.datamodule as ours
from featurestore.datamodule import (
    DomainDataset,
    make_datamodule,
    make_datamodule_blip2_aug70,
    make_datamodule_clip_aug70,
    make_datasets,
)
from featurestore.errors import ConfigError, InputError
from featurestore.imdb.labels import write_labels
from featurestore.imdb.materialize import PREFIX, materialize
from featurestore.published.arguments import variable
from featurestore.published.gw_module import Datasets
from featurestore.storage.store import FeatureStore
from tests.featurestore.stores import make_store
from tests.featurestore.worlds import domain_data

DIMS = {"clip_image": 64, "clip_text": 128, "blip2_image": 192, "blip2_text": 64}
STEMS = [f"{i:07d}" for i in range(14)]
PARTS = {"train": range(8), "val": range(8, 11), "test": range(11, 14)}
SPLIT = {"train": STEMS[:8], "dev": STEMS[8:11], "test": STEMS[11:]}
VIEWS = 4
VARIABLES = {
    "OTHER_BACKBONES_DIR_IMDB1_AUG70": "embeddings",
    "IMDB1_LABELS_DIR_23": "labels",
    "MMIMDB1_DIR": ".",
}
I, C, I0, C0, L = (  # noqa: E741  the names of formats.md
    "image_latents",
    "caption_embeddings",
    "image_latents_clean",
    "caption_embeddings_clean",
    "labels",
)
# In the order of the published code.
TRAIN_KEYS = [
    *({I}, {C}, {I, C}, {I0}, {C0}, {I, I0}, {C, C0}, {I, C, I0, C0}),
    *({L}, {I, C, L}, {I, C, I0, C0, L}),
]


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
def surroundings(
    request: pytest.FixtureRequest, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The variables set, for a store and for files."""
    for name, folder in VARIABLES.items():
        monkeypatch.setenv(name, str(folders / folder))
    for name in ("MMIMDB_IMAGE_LATENTS", "MMIMDB_TEXT_EMBEDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTHER_BACKBONES_DIR_IMDB1_AUG70", str(folders / request.param))
    return folders


def all_rows(groups: Datasets) -> dict[tuple[frozenset[str], str], torch.Tensor]:
    return {
        (key, name): rows.tensor()
        for key, dataset in groups.items()
        for name, rows in domain_data(dataset).items()
    }


def assert_equal_groups(actual: Datasets, wanted: Datasets) -> None:
    found, expected = all_rows(actual), all_rows(wanted)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


HARMLESS = [
    {"val_ratio": 0.3, "seed": 7},
    {"manifest_path": None},
    {"extra_image_latents": None, "extra_caption_embeddings": []},
    {"extra_train": None, "extra_val": (), "extra_test": ""},
]


@pytest.mark.parametrize("keywords", HARMLESS)
def test_keywords_without_effect_are_accepted(surroundings: Path, keywords: dict[str, Any]) -> None:
    plain = make_datamodule_clip_aug70()
    for module in (make_datamodule_clip_aug70(**keywords), make_datamodule("clip", **keywords)):
        assert_equal_groups(module.train_datasets, plain.train_datasets)
    assert_equal_groups(make_datasets(**keywords)[1], plain.val_datasets)


@pytest.mark.parametrize(
    "name",
    [
        *("extra_image_latents", "extra_caption_embeddings"),
        *("extra_train", "extra_val", "extra_test"),
    ],
)
def test_keywords_that_would_have_an_effect_are_refused(surroundings: Path, name: str) -> None:
    for value in ("more.npy", ["more.npy"], Path("more.npy")):
        keywords: dict[str, Any] = {name: value}
        for make in (make_datamodule_blip2_aug70, make_datasets):
            with pytest.raises(ConfigError, match=f"{name} appends rows"):
                make(**keywords)


def test_a_manifest_is_accepted_where_it_is_of_these_rows(
    surroundings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = surroundings / "embeddings" / f"{PREFIX}_manifest.json"
    monkeypatch.setenv("HOME", str(manifest.parent))
    for path in (manifest, str(manifest), f"~/{manifest.name}"):
        assert make_datamodule_clip_aug70(manifest_path=path, view_mode="all").train_datasets
    other = tmp_path / "other_manifest.json"
    facts = {"original_rows": 7, "views_per_sample": 8, "total_rows": 56}
    other.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"7 samples with 8 views.*14 samples with 4 views"):
        make_datasets(manifest_path=other)
    with pytest.raises(InputError, match=r"holds no absent_manifest\.json"):
        make_datasets(manifest_path=tmp_path / "absent_manifest.json")
    with pytest.raises(ConfigError, match="manifest_path is a file"):
        make_datasets(manifest_path=tmp_path / "facts.json")


def test_other_keywords_are_a_type_error(surroundings: Path) -> None:
    for make in (make_datamodule_clip_aug70, make_datamodule, make_datasets):
        with pytest.raises(TypeError, match="bach_size"):
            make(bach_size=3)


def test_home_folders_are_found_in_variables_and_arguments(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folders))
    for name, folder in VARIABLES.items():
        monkeypatch.setenv(name, f"~/{folder}")
    wanted = make_datamodule(
        "clip",
        embeddings=folders / "embeddings",
        data_root=folders,
        labels_dir=folders / "labels",
        include_labels=True,
    )
    actual = make_datamodule_clip_aug70(include_labels=True)
    assert_equal_groups(actual.test_datasets, wanted.test_datasets)
    given = make_datamodule("clip", embeddings="~/embeddings", data_root="~", labels_dir="~/labels")
    assert I in domain_data(given.train_datasets[frozenset({I, C})])
    monkeypatch.setenv("MMIMDB_IMAGE_LATENTS", f"~/embeddings/{PREFIX}_blip2_image.npy")
    assert make_datasets()[0][frozenset({I})].domain_data[I].shape[1] == DIMS["blip2_image"]
    monkeypatch.setenv("MMIMDB1_DIR", "~nobody-of-this-name/imdb")
    with pytest.raises(ConfigError, match="nobody-of-this-name"):
        make_datamodule_clip_aug70()


def test_datasets_are_created_from_the_paths_of_published_files(
    surroundings: Path, folders: Path
) -> None:
    folder = Path(variable("OTHER_BACKBONES_DIR_IMDB1_AUG70"))
    paths = [folder / f"{PREFIX}_blip2_{kind}.npy" for kind in ("image", "text")]
    options: dict[str, Any] = {"include_labels": True, "view_mode": "view_k", "view_k": 2}
    actual = make_datasets(*map(str, paths), **options)
    module = make_datamodule_blip2_aug70(**options)
    for part, wanted in zip(actual, (module.train_datasets, module.val_datasets), strict=False):
        assert_equal_groups(part, wanted)
    assert [len(part) for part in actual] == [11, 9, 9]
    assert list(actual[0]) == [frozenset(key) for key in TRAIN_KEYS]
    by_paths = make_datamodule(image_latents_path=paths[0], caption_embeddings_path=paths[1])
    assert domain_data(by_paths.train_datasets[frozenset({I})])[I].shape[1] == DIMS["blip2_image"]
    one = make_datasets(caption_embeddings_path=paths[1])[0][frozenset({I, C})].domain_data
    assert (one[I].shape[1], one[C].shape[1]) == (DIMS["clip_image"], DIMS["blip2_text"])
    with pytest.raises(ConfigError, match="does not name a feature"):
        make_datasets(folder / "rows.npy")
    with pytest.raises(ConfigError, match="of one folder"):
        make_datasets(paths[0], folders / "elsewhere" / paths[1].name)
    with pytest.raises(ConfigError, match="not both"):
        make_datamodule("clip", image_latents_path=paths[0])
    with pytest.raises(ConfigError, match="Pass batch_size by name"):
        make_datamodule(512)  # type: ignore[arg-type]


def test_a_feature_that_is_not_there_is_named(folders: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", views=1, chunk=16, stems=STEMS)
    with pytest.raises(InputError, match="holds clip_image, clip_text, and not blip2_image"):
        make_datamodule("blip2", embeddings=tmp_path / "store", data_root=folders)
    materialize(FeatureStore(tmp_path / "store"), tmp_path / "embeddings")
    with pytest.raises(InputError, match="and not blip2_image, blip2_text"):
        make_datamodule("blip2", embeddings=tmp_path / "embeddings", data_root=folders)


def test_the_modules_attributes_decide(surroundings: Path) -> None:
    module = make_datamodule_clip_aug70(batch_size=5, num_workers=0, pin_memory=False)
    assert (module.batch_size, module.num_workers, module.pin_memory) == (5, 0, False)
    assert make_datamodule_clip_aug70().num_workers == 9
    assert make_datamodule_clip_aug70().pin_memory is True
    loaders = module.setup_dataloaders(module.val_datasets, shuffle=False)
    assert list(loaders) == list(module.val_datasets)
    assert all(type(loader) is DataLoader for loader in loaders.values())
    assert [len(b[I0]) for b in loaders[frozenset({I0})]] == [3]
    module.batch_size = 2
    assert [len(b[frozenset({I0})][I0]) for b, _, _ in module.val_dataloader()] == [2, 1]


def test_the_class_takes_datasets_of_other_kinds(surroundings: Path) -> None:
    from lightning.pytorch import LightningDataModule

    from featurestore.datamodule import GWDataModule

    train, val, _ = make_datasets(view_mode="all")
    module = GWDataModule(val, train, None, 4, 0, False)
    assert isinstance(module, LightningDataModule)
    assert isinstance(make_datamodule_clip_aug70(), GWDataModule)
    assert module.test_datasets == {}
    held = {frozenset({I}): DomainDataset({I: torch.arange(6.0).reshape(6, 1)})}
    other: Any = {frozenset({"x"}): TensorDataset(torch.arange(6.0))}
    module = GWDataModule(
        train_datasets=other, val_datasets=held, test_datasets={}, batch_size=4, num_workers=0
    )
    assert [b[frozenset({I})][I].flatten().tolist() for b, _, _ in module.val_dataloader()] == [
        [0, 1, 2, 3],
        [4, 5],
    ]
    assert module.get_samples("val", 2)[frozenset({I})][I].tolist() == [[0], [1]]
    samples: Any = module.get_samples("train", 3)[frozenset({"x"})]
    assert samples[0].tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="batch_size is at least 1"):
        GWDataModule(held, held, None, 0)

    class Own(GWDataModule):
        def train_dataloader(self) -> str:
            return "mine"

    assert Own(held, held, None, 2).train_dataloader() == "mine"


def test_a_module_travels_to_other_processes(surroundings: Path) -> None:
    module = make_datamodule_clip_aug70(view_mode="all", num_workers=0, batch_size=3)
    again = pickle.loads(pickle.dumps(module))
    assert type(again) is ours.GWDataModule
    assert again.batch_size == 3
    assert_equal_groups(again.val_datasets, module.val_datasets)


def test_samples_of_a_small_split_are_all_it_has(surroundings: Path) -> None:
    module = make_datamodule_clip_aug70(batch_size=2)
    for amount, rows in ((2, 2), (3, 3), (32, 3)):
        actual = module.get_samples("val", amount)
        assert {value.shape[0] for group in actual.values() for value in group.values()} == {rows}


class InMemory(Dataset[dict[str, torch.Tensor]]):
    """One set of domains as tensors, as in the published code."""

    def __init__(self, domain_data: dict[str, torch.Tensor]) -> None:
        self.domain_data = domain_data

    def __len__(self) -> int:
        return len(next(iter(self.domain_data.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: data[index] for name, data in self.domain_data.items()}


def in_memory_train(folders: Path) -> dict[frozenset[str], InMemory]:
    """All views of the training samples, from the published files, in the published order."""
    actual = {}
    for kind, name, clean in (("image", I, I0), ("text", C, C0)):
        rows = torch.from_numpy(np.load(folders / "embeddings" / f"{PREFIX}_clip_{kind}.npy"))
        cube = rows.reshape(len(STEMS), VIEWS, -1)[list(PARTS["train"])]
        actual[name] = cube.flatten(0, 1)
        actual[clean] = cube[:, 0].repeat_interleave(VIEWS, dim=0)
    labels = torch.from_numpy(np.load(folders / "labels" / "labels_all_23.npy"))
    actual[L] = labels[list(PARTS["train"])].repeat_interleave(VIEWS, dim=0)
    return {frozenset(key): InMemory({name: actual[name] for name in key}) for key in TRAIN_KEYS}


def test_every_batch_of_every_step_is_the_published_one_to_the_last_bit(surroundings: Path) -> None:
    from lightning.pytorch.utilities.combined_loader import CombinedLoader

    datasets = in_memory_train(surroundings)
    torch.manual_seed(42)
    loaders = {key: DataLoader(data, batch_size=5, shuffle=True) for key, data in datasets.items()}
    wanted = [batch for batch, _, _ in CombinedLoader(loaders, mode="min_size")]
    module = make_datamodule_clip_aug70(
        batch_size=5, include_labels=True, view_mode="all", num_workers=0
    )
    torch.manual_seed(42)
    for expected, (batch, _, _) in itertools.zip_longest(wanted, module.train_dataloader()):
        assert list(batch) == list(expected)
        for key, domains in expected.items():
            assert set(batch[key]) == set(domains)
            for name, rows in domains.items():
                assert torch.equal(batch[key][name], rows), (key, name)


def test_the_mean_over_views_is_the_published_one_but_for_rounding(surroundings: Path) -> None:
    module = make_datamodule_clip_aug70(view_mode="mean")
    for kind, name in (("image", I), ("text", C)):
        rows = np.load(surroundings / "embeddings" / f"{PREFIX}_clip_{kind}.npy")
        cube = torch.from_numpy(rows).view(len(STEMS), VIEWS, -1)
        wanted = cube.index_select(0, torch.tensor(list(PARTS["train"]))).mean(dim=1)
        actual = domain_data(module.train_datasets[frozenset({I, C})])[name].contiguous()
        torch.testing.assert_close(actual, wanted, rtol=0, atol=8e-6)


def test_published_files_of_another_name_are_read(surroundings: Path, tmp_path: Path) -> None:
    for file in (surroundings / "embeddings").iterdir():
        shutil.copy(file, tmp_path / file.name.replace(PREFIX, "mine"))
    paths = [tmp_path / f"mine_clip_{kind}.npy" for kind in ("image", "text")]
    assert_equal_groups(make_datasets(*paths)[0], make_datamodule_clip_aug70().train_datasets)


@pytest.mark.filterwarnings("ignore")  # Lightning warns of few cores
def test_a_small_set_is_validated_when_steps_are_counted(surroundings: Path) -> None:
    """As docs/training.md says: otherwise after every epoch, and never with a partial batch."""
    from lightning.pytorch import LightningModule, Trainer

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 1)
            self.validated: list[tuple[int, int]] = []

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.layer(batch[frozenset({I})][I]).square().mean()
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.validated.append((self.global_step, len(batch[frozenset({I0})][I0])))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    def validated(**keywords: Any) -> list[tuple[int, int]]:
        model = Model()
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        quiet |= {"enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
        data = make_datamodule_clip_aug70(batch_size=16, num_workers=0)
        Trainer(max_steps=8, **quiet, **keywords).fit(model, data)
        return model.validated

    assert validated() == [(step, 3) for step in range(1, 9)]
    counted = {"check_val_every_n_epoch": None, "val_check_interval": 4}
    assert validated(**counted, limit_val_batches=1) == [(4, 3), (8, 3)]
    with pytest.raises(Exception, match="limit_val_batches"):
        validated(**counted, limit_val_batches=0.5)
