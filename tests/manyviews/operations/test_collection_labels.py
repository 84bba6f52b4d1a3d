"""Labels of real folders through the command line and the API: files, probe, report and check."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, r2_score, top_k_accuracy_score

import manyviews
from featurestore.errors import ConfigError, InputError
from manyviews import main
from manyviews.operations.check.labels import labels_group
from manyviews.operations.probe.kinds import score_classes, score_values
from producers.sources.collection import CollectionConfig
from producers.sources.kinds import scan_collection
from tests.conftest import ROOT
from tests.featurestore.stores import make_store
from tests.test_docs import blocks

CLASSES = ["a, b", 'say "hi"', "猫 🐈", "$x_1$", "_hidden", "<b>Ärger</b>", "مرحبا"]
COUNT, VIEWS, DIM = 140, 4, 16
UNLABELLED = (3, 77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in train, val and test folders, with labels of each kind in ``.json`` files."""
    root = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        part = "train" if i < 100 else "val" if i < 120 else "test"
        (root / "photos" / part).mkdir(parents=True, exist_ok=True)
        path = root / "photos" / part / f"{i:04d}.png"
        Image.new("RGB", (8, 8), (i, 0, 0)).save(path)
        facts: dict[str, Any] = {"text": f"photo {i}"}
        if i not in UNLABELLED:
            facts["kind"] = CLASSES[i % len(CLASSES)]
            facts["tags"] = [CLASSES[k] for k in np.flatnonzero(rng.random(7) < 0.4)]
            facts["rating"] = float(rng.normal())
        path.with_suffix(".json").write_text(json.dumps(facts), "utf-8")
    for key in ("kind", "tags", "rating"):
        lines = ["[collection]", 'kind = "folder"', 'path = "photos"', "recursive = true"]
        (root / f"{key}.toml").write_text("\n".join([*lines, f'labels = "{key}"']))
    return root


def stored(folder: Path) -> list[dict[str, Any]]:
    """The content of the samples' files, in the order of the ids."""
    paths = sorted((folder / "photos").rglob("*.json"), key=lambda p: p.parent.name + p.name)
    return [json.loads(path.read_text("utf-8")) for path in paths]


def ids_of(folder: Path) -> list[str]:
    photos = folder / "photos"
    return sorted(p.relative_to(photos).with_suffix("").as_posix() for p in photos.rglob("*.json"))


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """A store whose features contain class, tags and rating with noise that differs by view."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(COUNT, VIEWS, DIM)) * 0.7
    for i, facts in enumerate(stored(folder)):
        if "kind" in facts:
            rows[i, :, CLASSES.index(facts["kind"])] += 1.5
            for tag in facts["tags"]:
                rows[i, :, 7 + CLASSES.index(tag)] += 1.5
            rows[i, :, 14] += 1.5 * facts["rating"]
    path = folder / "store"
    cube = (rows * 2 + 30).astype(np.float32)
    make_store(
        path, stems=ids_of(folder), rows={"mine": cube}, dims={"mine": DIM}, views=VIEWS, chunk=64
    )
    return path


def run(*arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main.main([str(argument) for argument in arguments])
    assert ended.value.code == code
    return ""


def labels(folder: Path, key: str, out: Path, *more: object, code: int = 0) -> None:
    run("labels", "--config", folder / f"{key}.toml", "--out-dir", out, *more, code=code)


@pytest.mark.parametrize("key", ["kind", "tags", "rating"])
def test_the_command_writes_each_kind(
    folder: Path, store: Path, tmp_path: Path, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    labels(folder, key, tmp_path, "--json")
    output, shown = capfd.readouterr()
    facts = json.loads(output)
    assert (tmp_path / "ids.txt").read_text("utf-8").splitlines() == ids_of(folder)
    rows = np.load(tmp_path / "labels.npy")
    names = json.loads((tmp_path / "class_names.json").read_text("utf-8"))
    values = [document.get(key) for document in stored(folder)]
    assert facts["unlabelled"] == [
        i for i, v in zip(ids_of(folder), values, strict=True) if v is None
    ]
    if key == "rating":
        assert names == ["rating"]
        expected = np.array([[np.nan if v is None else v] for v in values], np.float32)
    else:
        assert names == sorted(CLASSES)
        listed = [v if v is None or isinstance(v, list) else [v] for v in values]
        expected = np.array(
            [[np.nan] * 7 if v is None else [float(n in v) for n in names] for v in listed],
            np.float32,
        )
        assert facts["classes"] == {
            n: int(np.nansum(c)) for n, c in zip(names, expected.T, strict=True)
        }
    np.testing.assert_array_equal(rows, expected)
    assert facts["split"] == {"train": 100, "dev": 20, "test": 20}
    split = json.loads((tmp_path / "split.json").read_text())
    by_name = {"train": "train", "dev": "val", "test": "test"}
    for part, top in by_name.items():
        assert split[part] == [i for i in ids_of(folder) if i.startswith(f"{top}/")]
    assert "140 samples" in shown
    assert "split, of the collection: train 100, dev 20, test 20" in shown
    run("verify", "--store", store, "--materialized", tmp_path)
    (tmp_path / "split.json").write_text("{}")
    run("verify", "--store", store, "--materialized", tmp_path, code=1)
    output, errors = capfd.readouterr()
    assert "split.json" in output + errors


def test_the_api_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    labels(folder, "tags", tmp_path / "a", "--split", "0.5,0.25,0.25", "--split-seed", "3")
    photos = CollectionConfig(
        kind="folder", path=str(folder / "photos"), recursive=True, labels="tags"
    )
    found = manyviews.labels(
        out_dir=tmp_path / "b", collection=photos, split=(0.5, 0.25, 0.25), split_seed=3
    )
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sum(asdict(found)["split"].values()) == COUNT
    record = json.loads((tmp_path / "a/labels.digests.json").read_text())
    assert record["split"] == {"from": "fractions", "fractions": [0.5, 0.25, 0.25], "seed": 3}


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("kind", ["--split", "0.8,0.1,0.2"], "whose sum is 1.1"),
        ("kind", ["--split-seed", "1"], "--split-seed requires --split"),
        ("kind", ["--prefix", "x"], "--prefix requires --augment"),
        ("kind", ["--classes", "few.json"], "is 'say \"hi\"', which is not among the 1 --classes"),
        ("rating", ["--classes", "few.json"], "they have no --classes"),
        ("kind", ["--augment", "--embeddings-dir", "."], "Noisy labels are multi-label"),
        ("rating", ["--augment", "--embeddings-dir", "."], "Noisy labels are multi-label"),
        ("kind", ["--data", "photos"], "--data and --config both name the inputs"),
    ],
)
def test_mistakes(
    folder: Path,
    tmp_path: Path,
    key: str,
    options: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.json").write_text('["a, b"]')
    labels(folder, key, tmp_path / "out", *options, code=2)
    errors = capfd.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) <= 4
    assert not (tmp_path / "out/labels.npy").exists()


def test_collections_without_labels_are_refused_with_advice(
    folder: Path, tmp_path: Path, demo_data: Path
) -> None:
    photos = CollectionConfig(kind="folder", path=str(folder / "photos"), recursive=True)
    with pytest.raises(ConfigError, match="has no labels"):
        manyviews.labels(out_dir=tmp_path, collection=photos)
    with pytest.raises(ConfigError, match="The inputs are missing"):
        manyviews.labels(out_dir=tmp_path)
    (tmp_path / "c.json").write_text('["Drama"]')
    with pytest.raises(ConfigError, match="the paper's 23 classes") as caught:
        manyviews.labels(demo_data / "dataset", tmp_path / "out", classes=tmp_path / "c.json")
    assert 'kind = "folder"' in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_row_of_another_kind_is_named(tmp_path: Path) -> None:
    for i, label in enumerate(["a", "b", 3]):
        (tmp_path / f"{i}.json").write_text(json.dumps({"text": "x", "label": label}))
    notes = CollectionConfig(kind="folder", path=str(tmp_path), labels="label")
    with pytest.raises(InputError, match=r"row 0 \('0'\) is a string, .* row 2 \('2'\) is an int"):
        manyviews.labels(out_dir=tmp_path / "out", collection=notes)


def test_mm_imdb_keeps_its_files_and_may_have_a_drawn_split(
    demo_data: Path, tmp_path: Path
) -> None:
    for name, options in (("plain", []), ("split", ["--split", "0.6,0.2,0.2"])):
        run("labels", "--data-dir", demo_data / "dataset", "--out-dir", tmp_path / name, *options)
    plain = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    other = {path.name: path.read_bytes() for path in (tmp_path / "split").iterdir()}
    assert set(plain) == {
        *("labels_all_23.npy", "ids_all.txt", "class_names_23.json", "labels_all_23.digests.json")
    }
    split = json.loads(other.pop("split.json"))
    assert other == plain
    ids = plain["ids_all.txt"].decode("utf-8", "surrogateescape").split("\n")
    assert sorted(i for part in split.values() for i in part) == sorted(ids)


def test_a_class_called_test_is_no_split(tmp_path: Path) -> None:
    for name in ("test", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x")
    found = scan_collection(CollectionConfig(kind="folder", path=str(tmp_path), recursive=True))
    assert found.splits is None
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.txt").write_text("x")
    found = scan_collection(CollectionConfig(kind="folder", path=str(tmp_path), recursive=True))
    assert found.splits is not None
    assert list(found.splits()) == [None, "test", "train"]


def probed(folder: Path, store: Path, key: str, *more: object) -> Any:
    request = ["probe", "--store", store, "--config", folder / f"{key}.toml", "--device", "cpu"]
    run(*request, *more)


def parts(folder: Path) -> dict[str, np.ndarray]:
    """The labelled samples of each part."""
    tops = {"train": "train", "dev": "val", "test": "test"}
    ids, documents = ids_of(folder), stored(folder)
    return {
        part: np.array(
            [i for i, id_ in enumerate(ids) if id_.startswith(f"{top}/") and "kind" in documents[i]]
        )
        for part, top in tops.items()
    }


def rows_of(store: Path) -> np.ndarray:
    import zarr

    array = zarr.open_group(store, mode="r")["mine"]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:]).astype(np.float64)


def test_a_probe_of_one_class(folder: Path, store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """scikit-learn's multinomial regression with the decay that was chosen gives the scores."""
    probed(folder, store, "kind", "--json")
    facts = json.loads(capfd.readouterr().out)
    assert facts["kind"] == "class"
    assert facts["samples"] == {"train": 98, "dev": 20, "test": 20}
    assert sum(facts["unlabelled"].values()) == 2
    assert (facts["classes"], facts["all_classes"]) == (7, 7)
    assert facts["split_from"] == "the collection"
    used, cube = parts(folder), rows_of(store)
    y = np.array([CLASSES.index(d.get("kind", CLASSES[0])) for d in stored(folder)])
    order = np.argsort(CLASSES)
    y = np.argsort(order)[y]  # columns are sorted by name
    train = cube[used["train"], 0]
    mean, deviation = train.mean(0), train.std(0)
    row = facts["rows"][0]
    # Its penalty is on the sum of losses, ours on their mean.
    reference = LogisticRegression(
        C=1 / (row["weight_decay"] * len(train)), max_iter=5000, tol=1e-8
    ).fit((train - mean) / deviation, y[used["train"]])
    truth = y[used["test"]]
    for scored, views in ((row, 1), (facts["rows"][1], VIEWS)):
        assert scored["views"] == views
        probability = np.mean(
            [
                reference.predict_proba((cube[used["test"], v] - mean) / deviation)
                for v in range(views)
            ],
            axis=0,
        )
        found = scored["scores"]
        # Ours stops early where dev gets no better, so a single sample may be predicted otherwise.
        accuracy = accuracy_score(truth, probability.argmax(1))
        assert found["accuracy"] == pytest.approx(accuracy, abs=0.051)
        top = top_k_accuracy_score(truth, probability, k=5, labels=range(7))
        assert found["top5"] == pytest.approx(top, abs=0.051)
        assert found["accuracy"] > 2 * facts["chance"]["accuracy"]
    counts = np.bincount(y[used["train"]], minlength=7)
    assert facts["chance"]["accuracy"] == pytest.approx((truth == counts.argmax()).mean())


def test_a_probe_of_values(folder: Path, store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ridge regression of scikit-learn with the decay that was chosen gives the scores."""
    probed(folder, store, "rating", "--json")
    facts = json.loads(capfd.readouterr().out)
    assert (facts["kind"], facts["all_classes"]) == ("value", 0)
    used, cube = parts(folder), rows_of(store)
    y = np.array([d.get("rating", np.nan) for d in stored(folder)])
    train = cube[used["train"], 0]
    mean, deviation = train.mean(0), train.std(0)
    for row, views in zip(facts["rows"], (1, VIEWS), strict=True):
        penalty = row["weight_decay"] * len(train)
        model = Ridge(alpha=penalty).fit((train - mean) / deviation, y[used["train"]])
        tested = [model.predict((cube[used["test"], v] - mean) / deviation) for v in range(views)]
        predicted, truth = np.mean(tested, axis=0), y[used["test"]]
        assert row["threshold"] is None
        assert row["scores"]["r2"] == pytest.approx(r2_score(truth, predicted), abs=0.03)
        assert row["scores"]["spearman"] == pytest.approx(
            spearmanr(truth, predicted).statistic, abs=0.03
        )
        assert row["scores"]["r2"] > 0.5
    train_mean = np.full(20, y[used["train"]].mean())
    assert facts["chance"]["r2"] == pytest.approx(r2_score(y[used["test"]], train_mean), abs=1e-5)
    assert facts["chance"]["spearman"] is None


def test_a_probe_without_a_split_draws_one_and_says_so(
    folder: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels(folder, "tags", tmp_path / "a")
    (tmp_path / "a/split.json").unlink()
    run("probe", "--store", store, "--labels-dir", tmp_path / "a", "--device", "cpu")
    text = capfd.readouterr().out
    assert "split: drawn, as by --split 0.8,0.1,0.1 --split-seed 0" in text
    assert "micro F1" in text
    labels(folder, "tags", tmp_path / "b", "--split", "0.8,0.1,0.1", "--split-seed", "0")
    for folder_ in ("a", "b"):
        run("probe", "--store", store, "--labels-dir", tmp_path / folder_, "--json")
    drawn, written = map(json.loads, capfd.readouterr().out.splitlines())
    assert drawn.pop("split_from") != written.pop("split_from")
    assert drawn == written


def test_a_collection_with_train_and_test_alone_gets_dev_from_train(
    folder: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels(folder, "kind", tmp_path)
    split = json.loads((tmp_path / "split.json").read_text())
    split["train"], split["dev"] = split["train"] + split["dev"], []
    (tmp_path / "split.json").write_text(json.dumps(split))
    run("probe", "--store", store, "--labels-dir", tmp_path, "--device", "cpu")
    text = capfd.readouterr().out
    assert "dev is 10% of its train, drawn with seed 0" in text
    assert re.search(r"10[5-8] train, 1[0-3] dev, 20 test samples", text)


def test_what_a_probe_refuses(
    folder: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = ["probe", "--store", store, "--device", "cpu"]
    run(*request, code=2)
    assert "Name the labels once" in capfd.readouterr().err
    config = folder / "kind.toml"
    run(*request, "--config", config, "--labels-dir", tmp_path, code=2)
    assert "Name the labels once" in capfd.readouterr().err
    run(*request, "--config", config, "--threshold", "0.5", code=2)
    assert "each has one class" in capfd.readouterr().err
    (tmp_path / "0.txt").write_text("x")
    run(*request, "--data", tmp_path, code=2)
    assert "is for other samples: row 0 is '0'" in capfd.readouterr().err


def test_scores_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(9), size=200)
    truth = rng.integers(0, 8, 200)  # class 8 does not occur
    found = score_classes(probability, truth)
    predicted = probability.argmax(1)
    assert found.accuracy == accuracy_score(truth, predicted)
    assert found.top5 == top_k_accuracy_score(truth, probability, k=5, labels=range(9))
    assert found.macro_f1 == f1_score(truth, predicted, average="macro", labels=range(8))
    assert score_classes(probability[:, :5], truth % 5).top5 is None
    values = rng.integers(0, 6, 50).astype(float)  # with ties
    noisy = np.round(values + rng.normal(size=50), 1)
    scores = score_values(noisy, values)
    assert scores.r2 == pytest.approx(r2_score(values, noisy))
    assert scores.spearman == pytest.approx(spearmanr(values, noisy).statistic)
    assert score_values(noisy[:1], values[:1]).r2 is None


@pytest.mark.parametrize("key", ["kind", "tags", "rating"])
def test_a_report_of_each_kind(folder: Path, store: Path, tmp_path: Path, key: str) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fonts without a glyph
        run("report", "--store", store, "--config", folder / f"{key}.toml", "--out", tmp_path / "a")
    page = (tmp_path / "a").read_text("utf-8")
    assert "Give --labels-dir" not in page
    assert "train" in page
    if key == "rating":
        assert "138 samples with a value each, rating" in page
        assert "Quarters of the values have colours" in page
        return
    for name in CLASSES[:2]:
        assert name.replace('"', "&#34;") in page
    assert "&lt;b&gt;Ärger&lt;/b&gt;" in page
    assert "<b>Ärger" not in page
    assert "The 7 most frequent classes have colours" in page
    counts = [document.get(key) or [] for document in stored(folder)]
    total = sum(CLASSES[0] in ([c] if isinstance(c, str) else c) for c in counts)
    assert re.search(rf"{re.escape(CLASSES[0])}</\w+>\s*<td[^>]*>{total}<", page)
    assert ("Most frequent pairs" in page) == (key == "tags")
    labels(folder, key, tmp_path / "labels")
    run("report", "--store", store, "--labels-dir", tmp_path / "labels", "--out", tmp_path / "b")
    assert (tmp_path / "b").read_text("utf-8") == page


@pytest.mark.parametrize("key", ["kind", "tags", "rating"])
def test_check_counts_labels_and_parts(folder: Path, key: str) -> None:
    config = CollectionConfig(
        kind="folder", path=str(folder / "photos"), recursive=True, labels=key
    )
    group = labels_group(scan_collection(config))
    values = [document.get(key) for document in stored(folder)]
    assert group.facts["split"] == {"train": 100, "dev": 20, "test": 20}
    assert [x for x, v in zip(ids_of(folder), values, strict=True) if v is None] == group.facts[
        "unlabelled"
    ]
    assert [line.label for line in group.lines if line.level == "warning"] == ["without a label"]
    known = [v for v in values if v is not None]
    if key == "rating":
        assert group.facts["values"]["mean"] == pytest.approx(np.mean(known), rel=1e-6)
        return
    flat = [name for v in known for name in ([v] if isinstance(v, str) else v)]
    assert group.facts["classes"] == {name: flat.count(name) for name in sorted(CLASSES)}
    test = group.facts["by_part"]["test"]
    used = [v for x, v in zip(ids_of(folder), values, strict=True) if x.startswith("test/") and v]
    assert sum(test.values()) == sum(1 if isinstance(v, str) else len(v) for v in used)
    json.dumps(group.facts)


def test_check_warns_about_labels_that_training_cannot_use(tmp_path: Path) -> None:
    for part, label in (("train", "a"), ("train", "a"), ("test", "b")):
        (tmp_path / part).mkdir(exist_ok=True)
        name = f"{len(list(tmp_path.rglob('*.json')))}.json"
        (tmp_path / part / name).write_text(json.dumps({"text": "x", "label": label}))
    config = CollectionConfig(kind="folder", path=str(tmp_path), recursive=True, labels="label")
    group = labels_group(scan_collection(config))
    warned = {line.label: line.text for line in group.lines if line.level == "warning"}
    assert warned == {"of one sample": "1: 'b'", "not in train": "1: 'b'"}
    (tmp_path / "train/9.json").write_text(json.dumps({"text": "x", "label": 5}))
    group = labels_group(scan_collection(config))
    assert "several kinds" in group.lines[0].text
    assert group.facts["kind"] is None


def test_every_example_of_the_page_runs(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs/labels.md"
    shutil.copytree(folder / "photos", tmp_path / "photos")
    for path in (tmp_path / "photos").rglob("*.json"):
        facts = json.loads(path.read_text("utf-8"))
        facts["species"] = facts.pop("kind", "unknown")
        path.write_text(json.dumps(facts), "utf-8")
    make_store(
        tmp_path / "features", stems=ids_of(tmp_path), dims={"clip_image": 64}, views=2, chunk=0
    )
    monkeypatch.chdir(tmp_path)
    (toml,) = blocks(page, "toml")
    Path("species.toml").write_text(toml)
    (typed,) = blocks(page, "bash")
    for line in typed.splitlines():
        run(*shlex.split(line)[2:])
    capfd.readouterr()
    (code,) = blocks(page, "python")
    exec(compile(code, str(page), "exec"), {})  # the page's own code
    shown = capfd.readouterr().out.splitlines()
    assert shown[0].startswith("tensor([")
    assert 0 < float(shown[1]) < 100  # the loss
    assert shown[2] == "torch.Size([8])"


def test_an_export_has_the_labels_and_their_names(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    pytest.importorskip("webdataset")
    labels(folder, "kind", tmp_path / "labels")
    rows = np.load(tmp_path / "labels/labels.npy")
    for form in ("npy", "webdataset"):
        manyviews.export(store, tmp_path / form, form, labels_dir=tmp_path / "labels")
        described = json.loads(next((tmp_path / form).glob("*.json")).read_text("utf-8"))
        assert described["labels"] == sorted(CLASSES)
    (written,) = (tmp_path / "npy").glob("*labels*.npy")
    np.testing.assert_array_equal(np.load(written), rows.repeat(VIEWS, axis=0))
    with tarfile.open(next((tmp_path / "webdataset").glob("*.tar"))) as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".json")]
        found = [json.loads(tar.extractfile(m).read())["labels"] for m in members]  # type: ignore[union-attr]
    expected = [None if np.isnan(row).any() else row.tolist() for row in rows]
    assert found == expected
