"""The probe on a store with one feature that contains the labels and one that does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from featurestore.errors import ConfigError, CorruptStoreError, InputError
from featurestore.imdb.materialize import materialize
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from featurestore.training.dataset import FeatureDataset
from manyviews import main
from manyviews.operations.probe import probe as module
from manyviews.operations.probe.logistic import Part, fit_probe
from manyviews.operations.probe.probe import ProbeTable, probe
from manyviews.operations.probe.request import ProbeRequest
from manyviews.operations.probe.scores import Scores
from manyviews.operations.probe.targets import AnyScores
from tests.featurestore.stores import make_store


def several(scores: AnyScores) -> Scores:
    """The scores of several labels a sample."""
    assert isinstance(scores, Scores)
    return scores


SAMPLES, VIEWS, CLASSES = 160, 8, 3
BAD = {2: [BadInput(2, "image", "truncated", "")], 150: [BadInput(150, "text", "empty", "")] * 2}
SHAPES = {"clear": 16, "noisy": 16}


@pytest.fixture(scope="module")
def request_of_probe(tmp_path_factory: pytest.TempPathFactory) -> ProbeRequest:
    """A store with one feature that separates three classes, and one with strong noise."""
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    labels = np.zeros((SAMPLES, 23), np.float32)
    labels[:, :CLASSES] = rng.random((SAMPLES, CLASSES)) < 0.4
    rows = {}
    for name, noise in (("clear", 0.2), ("noisy", 2.0)):
        x = rng.normal(size=(SAMPLES, VIEWS, SHAPES[name])) * noise
        x[..., :CLASSES] += labels[:, None, :CLASSES]
        rows[name] = (x * 3 + 100).astype(np.float32)
    stems = [f"{i:04d}" for i in range(SAMPLES)]
    make_store(
        folder / "store", stems=stems, rows=rows, dims=SHAPES, views=VIEWS, chunk=16, bad=BAD
    )
    (folder / "labels").mkdir()
    np.save(folder / "labels/labels_all_23.npy", labels)
    (folder / "labels/ids_all.txt").write_text("\n".join(stems))
    split = {"train": stems[:80], "dev": stems[80:100], "test": stems[100:]}
    (folder / "split.json").write_text(json.dumps(split))
    return ProbeRequest(
        store=folder / "store", labels_dir=folder / "labels", split_json=folder / "split.json"
    )


@pytest.fixture(scope="module")
def table(request_of_probe: ProbeRequest) -> ProbeTable:
    return probe(request_of_probe)


def test_the_table(table: ProbeTable) -> None:
    rows = [(r.features, r.dim, r.views) for r in table.rows]
    together = ("clear", "noisy")
    assert rows == [
        *((("clear",), 16, 1), (("noisy",), 16, 1), (together, 32, 1)),
        *((("clear",), 16, 8), (("noisy",), 16, 8), (together, 32, 8)),
    ]
    assert table.samples == {"train": 79, "dev": 20, "test": 59}
    assert table.left_out == {"train": 1, "dev": 0, "test": 1}
    assert table.classes == CLASSES


def test_labels_in_the_features_score_above_chance(table: ProbeTable) -> None:
    by = {
        (r.features[0] if len(r.features) == 1 else "both", r.views): several(r.scores)
        for r in table.rows
    }
    assert by["clear", 1].micro_f1 > 0.9
    assert by["clear", 1].micro_f1 > by["noisy", 1].micro_f1 > several(table.chance).micro_f1
    assert by["both", 1].mean_ap > by["noisy", 1].mean_ap > several(table.chance).mean_ap
    # The noise differs between views, so their mean predicts better.
    assert by["noisy", 8].mean_ap > by["noisy", 1].mean_ap


def test_every_number_equals_an_independent_computation(
    request_of_probe: ProbeRequest, table: ProbeTable
) -> None:
    """Reads the arrays with zarr, averages with NumPy, and scores with scikit-learn."""
    import zarr

    row = next(r for r in table.rows if r.features == ("noisy",) and r.views == VIEWS)
    group = zarr.open_group(request_of_probe.store, mode="r")
    noisy = group["noisy"]
    assert isinstance(noisy, zarr.Array)
    x = torch.from_numpy(np.asarray(noisy[:]))
    y = torch.from_numpy(np.load(request_of_probe.store.parent / "labels/labels_all_23.npy"))
    train, test = np.setdiff1d(np.arange(80), [2]), np.setdiff1d(np.arange(100, 160), [150])
    fitted = fit_probe(Part(x[train, 0], y[train]), Part(x[80:100, 0], y[80:100]))
    assert fitted.weight_decay == row.weight_decay
    views = [fitted.predict(x[test, v]).numpy() for v in range(VIEWS)]
    mean, truth = np.mean(views, axis=0), y[test].numpy() > 0.5
    predicted, known = mean > row.threshold, range(CLASSES)
    found = asdict(row.scores)
    for average in ("micro", "macro", "weighted", "samples"):
        labels = None if average in ("micro", "samples") else known
        expected = f1_score(truth, predicted, average=average, labels=labels, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    expected = average_precision_score(truth[:, known], mean[:, known], average="macro")
    assert found["mean_ap"] == pytest.approx(expected)


def test_the_block_size_does_not_change_the_table(
    request_of_probe: ProbeRequest, table: ProbeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # one sample at a time
    other = probe(replace(request_of_probe, features=("noisy",)))
    expected = [row for row in table.rows if row.features == ("noisy",)]
    for first, second in zip(expected, other.rows, strict=True):
        assert asdict(first.scores) == pytest.approx(asdict(second.scores))


def test_a_given_threshold_is_used(request_of_probe: ProbeRequest, table: ProbeTable) -> None:
    found = probe(replace(request_of_probe, threshold=0.5, features=("clear",)))
    assert [(r.features, r.views, r.threshold) for r in found.rows] == [
        (("clear",), 1, 0.5),
        (("clear",), VIEWS, 0.5),
    ]
    assert several(found.rows[0].scores).mean_ap == several(table.rows[0].scores).mean_ap
    with pytest.raises(ConfigError, match=r"between 0 and 1, found 1\.5"):
        replace(request_of_probe, threshold=1.5)


def test_memory_does_not_hold_all_views(
    request_of_probe: ProbeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    read = FeatureDataset.batch

    def batch(self: Any, items: Any) -> Any:
        found = read(self, items)
        sizes.append(sum(found[name].nbytes for name in self.features))
        return found

    monkeypatch.setattr(FeatureDataset, "batch", batch)
    monkeypatch.setattr(module, "BLOCK_BYTES", 4096)
    probe(request_of_probe)
    assert max(sizes) <= 4096
    assert len(sizes) > 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ("other",)}, "but not 'other'"),
        ({"features": ("clear", "clear")}, "each feature once"),
        ({"device": "tpu"}, "is not a device"),
    ],
)
def test_unavailable_features_and_devices_are_refused(
    request_of_probe: ProbeRequest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        probe(replace(request_of_probe, **changes))


@pytest.mark.parametrize("zscore", ["all", "none"])
def test_materialized_files_give_the_same_table(
    request_of_probe: ProbeRequest, table: ProbeTable, tmp_path: Path, zscore: str
) -> None:
    """Whatever their scaling is: the probe standardises its inputs."""
    materialize(FeatureStore(request_of_probe.store), tmp_path, zscore=zscore)
    found = probe(replace(request_of_probe, store=tmp_path, features=("noisy",)))
    assert found.samples == table.samples
    noisy = [row for row in table.rows if row.features == ("noisy",)]
    for row, expected in zip(found.rows, noisy, strict=True):
        assert (row.features, row.views) == (expected.features, expected.views)
        assert several(row.scores).mean_ap == pytest.approx(
            several(expected.scores).mean_ap, abs=0.02
        )


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"dev": []}, "No sample .* is left for split 'val'"),
        ({"test": ["0150"]}, "No sample .* is left for split 'test'"),
        ({"test": ["9999"]}, "name no sample"),
    ],
)
def test_splits_with_an_empty_part_are_refused(
    request_of_probe: ProbeRequest, tmp_path: Path, split: dict[str, Any], message: str
) -> None:
    whole = json.loads((request_of_probe.store.parent / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps(whole | split))
    with pytest.raises(InputError, match=message):
        probe(replace(request_of_probe, split_json=tmp_path / "split.json"))


def test_the_command(
    request_of_probe: ProbeRequest, table: ProbeTable, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["probe", "--store", request_of_probe.store]
    arguments += ["--labels-dir", request_of_probe.labels_dir, "--device", "cpu"]
    arguments += ["--split-json", request_of_probe.split_json]

    def run(*more: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main.main([str(a) for a in (*arguments, *more)])
        output, errors = capfd.readouterr()
        assert (ended.value.code, errors) == (0, "")
        return output

    facts = json.loads(run("--json"))
    assert facts.pop("threshold_from") == "dev"
    assert facts == json.loads(json.dumps(asdict(table)))
    text = run("--threshold", "0.5")
    assert "79 train, 20 dev, 59 test samples; 2 with a bad input left out" in text
    assert "3 of 23 classes occur in test; thresholds given" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[4:-1]}) == 1  # the columns are aligned
    assert lines[-1].split()[0] == "chance"
    for line, row in zip(lines[5:-1], table.rows, strict=True):
        assert f"{several(row.scores).mean_ap:.3f}" in line
        assert " 0.50 " in line


@pytest.mark.parametrize("kind", ["store", "npy"])
def test_a_flipped_bit_of_the_rows_gives_no_scores(
    request_of_probe: ProbeRequest, tmp_path: Path, kind: str
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(request_of_probe.store, copy)
    if kind == "npy":
        copy = materialize(FeatureStore(copy), tmp_path / "npy", prefix="p", zscore="none").out_dir
    path = copy / ("noisy/c.0.0.0" if kind == "store" else "p_noisy.npy")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises((CorruptStoreError, InputError), match=r"is not what was written|checksum"):
        probe(replace(request_of_probe, store=copy))
