"""The report: numbers compared with other libraries; a safe, complete, reproducible page."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from featurestore.errors import ConfigError, CorruptStoreError, InputError
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.imdb.labels import write_labels
from featurestore.records import BadInput
from featurestore.storage.store import FeatureStore
from manyviews.operations.report.content import Figure, Part, Picture, Plot, Section, Table
from manyviews.operations.report.features import FeatureFacts, measure
from manyviews.operations.report.inputs import bad_rows
from manyviews.operations.report.page import Sources, page, write
from manyviews.operations.report.page import render as render_page
from manyviews.operations.report.pairs import pairs
from manyviews.operations.report.projection import groups, plane
from manyviews.operations.report.runs import throughput
from manyviews.operations.report.sampling import choose
from producers.sources.collection import CollectionConfig
from tests.conftest import ROOT
from tests.featurestore.stores import make_store
from tests.manyviews.operations.stores import store_of

mm_imdb = CollectionConfig.mm_imdb

DIMS = {"clip_image": 32, "clip_text": 32, "blip2_text": 64}
ONE = {"clip_image": 64}
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
SAMPLES, VIEWS, CHUNK = 48, 6, 16
HOSTILE = "<script>alert(1)</script>"
STEMS = [f"{i:07d}" for i in range(SAMPLES - 2)] + [HOSTILE, "\u202eevil\udcff\x1b[31m"]
BAD = {
    3: [BadInput(3, "text", "not-json", "line 1")],
    SAMPLES - 2: [BadInput(SAMPLES - 2, "image", "truncated", f"at {HOSTILE}")],
}


def made_rows(within: float = 0.5) -> dict[str, np.ndarray]:
    """Rows whose samples differ more than their views, with slightly similar CLIP features."""
    rng = np.random.default_rng(5)
    rows = {}
    shared = rng.normal(size=(SAMPLES, 1, 32))
    for name, dim in DIMS.items():
        base = rng.normal(size=(SAMPLES, 1, dim)) + (shared if dim == 32 else 0)
        noise = within * rng.normal(size=(SAMPLES, VIEWS, dim))
        rows[name] = (base + noise + 3).astype(np.float32)
    rows["blip2_text"][..., 7] = 2.5  # constant
    rows["blip2_text"][..., 9] += 1000
    return rows


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    return made_rows()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, rows: Mapping[str, np.ndarray]) -> FeatureStore:
    """A store with hostile names, bad samples and run logs, for reading only."""
    path = tmp_path_factory.mktemp("report") / "a <b>store"
    shape: dict[str, Any] = {"samples": SAMPLES, "views": VIEWS, "chunk": CHUNK, "dims": DIMS}
    make_store(path, **shape, rows=rows, stems=STEMS, bad=BAD)
    (path / "records/runs").mkdir(exist_ok=True)
    chunks = [
        {"event": "started", "samples": 48},
        {"event": "chunk", "built": 16, "seconds": 10.0, "waited_s": 8.0},
        {"event": "chunk", "built": 32, "seconds": 14.0, "waited_s": 8.0},
    ]
    log = "\n".join(map(json.dumps, chunks)) + '\n{"event": "chu'
    (path / "records/runs/20260101T000000.000000Z-1.log").write_text(log)
    return FeatureStore(path)


@pytest.fixture(scope="module")
def labels_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    names = [["Drama"] + (["Comedy"] if i % 2 else []) for i in range(SAMPLES)]
    names[5] = []
    write_labels(STEMS, [{"genres": n} for n in names], folder)
    return folder


@pytest.fixture(scope="module")
def split_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("split") / "split.json"
    split = {"train": STEMS[:30], "dev": STEMS[30:36], "test": STEMS[36:46]}
    path.write_text(json.dumps(split))
    return path


@pytest.fixture(scope="module")
def sources(
    store: FeatureStore,
    labels_dir: Path,
    split_json: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sources:
    data = tmp_path_factory.mktemp("data")
    Image.new("RGB", (30, 40), "teal").save(data / "0000003.jpg")
    return Sources(store.path, mm_imdb(data), labels_dir, split_json)


@pytest.fixture(scope="module")
def text(store: FeatureStore, sources: Sources) -> str:
    return page(store, sources, choose(store))


# Numbers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(store: FeatureStore) -> dict[str, FeatureFacts]:
    return {name: measure(store, name, choose(store)) for name in store.features}


def sound(rows: np.ndarray) -> np.ndarray:
    return np.delete(rows, list(BAD), axis=0)


def test_rows_of_bad_samples_are_left_out(
    facts: dict[str, FeatureFacts], rows: Mapping[str, np.ndarray]
) -> None:
    found = facts["clip_text"]
    np.testing.assert_array_equal(found.clean, sound(rows["clip_text"])[:, 0])
    assert len(found.samples) == SAMPLES - len(BAD)
    norms = np.sqrt((sound(rows["clip_text"]).astype(np.float64) ** 2).sum(axis=2))
    np.testing.assert_allclose(found.clean_norms, norms[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.view_norms, norms[:, 1:].ravel(), rtol=1e-5)


def test_the_spread_is_a_one_way_analysis_of_variance(
    facts: dict[str, FeatureFacts], rows: Mapping[str, np.ndarray]
) -> None:
    values = sound(rows["clip_image"]).astype(np.float64)
    n, views, dim = values.shape
    within = between = 0.0
    for d in range(dim):
        grand = values[:, :, d].mean()
        for sample in values[:, :, d]:
            between += views * (sample.mean() - grand) ** 2 / (n - 1)
            within += sum((value - sample.mean()) ** 2 for value in sample) / (n * (views - 1))
    found = facts["clip_image"]
    assert found.intraclass == pytest.approx((between - within) / (between + (views - 1) * within))
    assert found.variance_ratio == pytest.approx(within / ((between - within) / views))
    assert found.variance_ratio == pytest.approx(0.25 / 2, rel=0.25)  # as the rows were made


def test_cosines_are_of_centred_rows(
    facts: dict[str, FeatureFacts], rows: Mapping[str, np.ndarray]
) -> None:
    centred = sound(rows["clip_text"]) - rows["clip_text"].reshape(-1, 32).mean(axis=0)
    expected = [cosine_similarity(s[1:], s[:1]).ravel() for s in centred]
    np.testing.assert_allclose(facts["clip_text"].to_clean, np.concatenate(expected), atol=1e-5)
    others = cosine_similarity(centred[:, 0])
    at = np.arange(len(others))
    expected = others[at, (at + 1) % len(others)]
    np.testing.assert_allclose(facts["clip_text"].to_other, expected, atol=1e-5)


def test_near_constant_dimensions_are_listed(facts: dict[str, FeatureFacts]) -> None:
    assert facts["blip2_text"].near_constant.tolist() == [7]
    assert facts["blip2_text"].far_from_zero.tolist() == [7, 9]
    assert facts["clip_image"].near_constant.tolist() == []


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_the_plane_is_the_principal_one(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=shape) * np.linspace(1, 4, shape[1]) + 5).astype(np.float32)
    found = plane(rows)
    assert found is not None
    reference = PCA(2, svd_solver="full").fit(rows.astype(np.float64))
    np.testing.assert_allclose(found.shares, reference.explained_variance_ratio_, rtol=1e-6)
    expected = reference.transform(rows.astype(np.float64))
    signs = np.sign((expected * found.points).sum(axis=0))
    np.testing.assert_allclose(found.points, expected * signs, atol=1e-6)


@pytest.mark.parametrize("rows", [np.ones((5, 4), np.float32), np.eye(2, dtype=np.float32)])
def test_a_plane_needs_three_different_rows(rows: np.ndarray) -> None:
    assert plane(rows) is None


def test_pair_statistics_equal_the_reference(facts: dict[str, FeatureFacts]) -> None:
    [found] = pairs(list(facts.values()))  # blip2_text has another length
    assert (found.image, found.text) == ("clip_image", "clip_text")
    cosines = cosine_similarity(facts["clip_image"].clean, facts["clip_text"].clean)
    own = np.eye(len(cosines))
    areas = [roc_auc_score(o, c) for o, c in zip(own, cosines, strict=True)]
    assert found.separation == pytest.approx(np.mean(areas))
    assert 0.6 < found.separation < 1
    best = np.argsort(-cosines, axis=1)
    for k in (1, 10):
        hits = [i in row[:k] for i, row in enumerate(best)]
        assert found.recall[k] == pytest.approx(np.mean(hits))
    np.testing.assert_allclose(found.matched, np.diag(cosines), atol=1e-6)


def test_a_sample_has_the_colour_of_its_rarest_genre() -> None:
    labels = np.zeros((6, 23), np.float32)
    drama, comedy = CLASS_NAMES.index("Drama"), CLASS_NAMES.index("Comedy")
    labels[:5, drama] = 1
    labels[3:5, comedy] = 1
    names, group = groups(labels)
    assert names == ["Drama", "Comedy", "other"]
    assert group.tolist() == [0, 0, 0, 1, 1, 2]


def test_throughput_is_read_from_logs(store: FeatureStore) -> None:
    found = throughput(store.path)
    assert found.samples_per_s == [1.6, 4.0]
    assert found.waiting == [0.8, 0.0]
    assert found.hours == [10 / 3600, 14 / 3600]
    assert (found.runs, found.skipped) == (1, 1)


def log_of(path: Path, name: str, start_s: float, ends: Mapping[float, int]) -> None:
    """Writes the log of a run that has built so many samples at each of some moments."""
    (path / "records/runs").mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "time": datetime.fromtimestamp(start_s + end, UTC).isoformat(timespec="milliseconds"),
            "event": "chunk",
            "built": built,
            "seconds": end,
            "waited_s": end / 2,
        }
        for end, built in ends.items()
    ]
    (path / f"records/runs/{name}.log").write_text("\n".join(map(json.dumps, lines)))


def test_the_rates_of_workers_at_the_same_time_are_added_up(tmp_path: Path) -> None:
    """And a pause, after which one of them is started again, does not count."""
    log_of(tmp_path, "a", 1000, {10: 20, 20: 40})  # 2 samples/s
    log_of(tmp_path, "b", 1005, {10: 10, 25: 55})  # 1 sample/s, then 3
    log_of(tmp_path, "c", 5000, {10: 10})
    found = throughput(tmp_path)
    assert [round(hours * 3600) for hours in found.hours] == [5, 10, 15, 20, 30, 40]
    assert found.samples_per_s == pytest.approx([2, 3, 3, 5, 3, 1])
    assert found.waiting == pytest.approx([0.5] * 6)
    assert [round(hours * 3600) for hours in found.starts] == [0, 30]
    assert (found.chunks, found.runs) == (5, 3)


def test_runs_without_a_time_are_one_after_the_other(tmp_path: Path) -> None:
    for name in "ab":
        log_of(tmp_path, name, 1000, {10: 20})
        log = tmp_path / f"records/runs/{name}.log"
        log.write_text(log.read_text().replace('"time"', '"when"'))
    found = throughput(tmp_path)
    assert found.hours == [10 / 3600, 20 / 3600]
    assert found.starts == [0.0, 10 / 3600]
    assert found.samples_per_s == [2.0, 2.0]


def test_hostile_logs_are_ignored(tmp_path: Path) -> None:
    runs = tmp_path / "records/runs"
    runs.mkdir(parents=True)
    lines = [
        b"\xff\xfe",
        b"[" * 100_000,
        b"17",
        b'{"event": "chunk", "built": "x", "seconds": 1, "waited_s": 0}',
        b'{"event": "chunk", "built": NaN, "seconds": 1, "waited_s": 0}',
        b'{"event": "chunk", "built": 5, "seconds": 0, "waited_s": 0}',
        b'{"time": 1e999, "event": "chunk", "built": 8, "seconds": 2, "waited_s": 99}',
        b'{"event": "chunk", "built": 3, "seconds": 4, "waited_s": 99}',
    ]
    (runs / "a.log").write_bytes(b"\n".join(lines))
    (runs / "b.log").mkdir()
    found = throughput(tmp_path)
    assert (found.samples_per_s, found.waiting) == ([4.0], [1.0])
    assert throughput(tmp_path / "nowhere").hours == []


def test_a_large_store_is_measured_on_a_part_of_it(store: FeatureStore, text: str) -> None:
    part = choose(store, most=20)
    assert part.chunks == (0,)
    assert choose(store, most=40).chunks == (0, 1)
    assert part.samples.tolist() == [0, 1, 2, *range(4, 16)]
    assert part.left_out == 1
    assert "Measured on all 46 samples" in text


def test_normalised_rows_are_reported_without_a_histogram(tmp_path: Path) -> None:
    """Rows of length 1, exactly or up to rounding to bfloat16, have no histogram of norms."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, VIEWS, 64))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    unit = rows.astype(np.float32)
    rounded = (rows * (1 + 0.003 * rng.uniform(-1, 1, size=(40, VIEWS, 1)))).astype(np.float32)
    plain = (3 * rows * rng.uniform(0.5, 1.5, size=(40, VIEWS, 1))).astype(np.float32)
    for name, second, is_said in (("one", plain, True), ("both", rounded, False)):
        dims = {"unit": 64, "other": 64}
        stored = {"unit": unit, "other": second}
        shape: dict[str, Any] = {"samples": 40, "views": VIEWS, "chunk": 16, "dims": dims}
        make_store(tmp_path / name, **shape, rows=stored)
        store = FeatureStore(tmp_path / name)
        found = page(store, Sources(store.path), choose(store))
        norms = found.split('id="norms"')[1].split("</section>")[0]
        assert ("Normalised: unit." in norms) is is_said
        assert ("Normalised: unit, other." in norms) is not is_said
        assert ("spike" in norms) is is_said
        assert norms.count("<figure>") == int(is_said)


def test_the_page_says_how_many_samples_were_measured(tmp_path: Path) -> None:
    make_store(tmp_path / "s", samples=40, chunk=16, dims=ONE)
    store = FeatureStore(tmp_path / "s")
    found = page(store, Sources(store.path), choose(store, most=20))
    assert "measured on 16 of them, chunks spread evenly over the store: 1" in found
    assert cells(found, "The store")[1] == ["samples", "40 of 40"]


# The page ---------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "img", "br", "link", "input", "source"}


class Reader(HTMLParser):
    """Parses a page strictly: tags must be closed in order. Keeps names, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawings(text: str) -> list[str]:
    """The plots of a page, each in its light and dark version."""
    found = re.findall(r'"data:image/svg\+xml;base64,([^"]*)"', text)
    return [base64.b64decode(data, validate=True).decode() for data in found]


def coordinates(svg: str) -> list[str]:
    """The coordinates of the shapes of a plot."""
    shapes = ElementTree.fromstring(svg).iter()
    return [shape.get(name, "").lower() for shape in shapes for name in ("d", "x", "y")]


def words(svg: str) -> list[str]:
    """The texts of a plot."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_plot_is_drawn_for_a_light_page_and_for_a_dark_one(text: str) -> None:
    plots = drawings(text)
    assert len(plots) == 2 * (3 + 3 + 3 + 3 + 1 + 2 + 1)
    for dark, light in zip(plots[::2], plots[1::2], strict=True):  # in the order of the page
        assert "#e4e7eb" in dark
        assert "#1d2126" in light
        assert dark.replace("#e4e7eb", "#1d2126") == light
        assert words(light)
    assert "first principal component" in [word for plot in plots for word in words(plot)]


def test_a_plot_refers_to_no_other_resource(text: str) -> None:
    for plot in drawings(text):
        elements = list(ElementTree.fromstring(plot).iter())
        ids = {element.get("id") for element in elements}
        assert not {f"{SVG}script", f"{SVG}foreignObject"} & {e.tag for e in elements}
        used = [v for e in elements for k, v in e.items() if k.rpartition("}")[2] == "href"]
        used += re.findall(r"url\(([^)]*)\)", plot)
        for target in used:
            assert target.startswith("data:image/png;base64,") or target[1:] in ids, target


def test_the_page_is_well_formed_and_self_contained(text: str) -> None:
    read = Reader(text)
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = [v for _, name, v in read.attributes if name in ("href", "src", "srcset")]
    used += re.findall(r"url\(([^)]*)\)", text)
    assert len(used) > 40
    for target in used:
        assert target.startswith(("#", "data:image/jpeg;base64,", "data:image/svg+xml;base64,"))
        assert not target.startswith("#") or target[1:] in ids
    assert "http://" not in text
    assert "https://" not in text
    assert read.tags["script"] == read.tags["link"] == read.tags["iframe"] == 0
    assert "default-src 'none'" in text
    assert read.tags["picture"] == 3 + 3 + 3 + 3 + 1 + 2 + 1
    assert read.tags["table"] >= 10
    assert len([v for _, name, v in read.attributes if name == "alt" and v]) == read.tags["img"]


def test_untrusted_text_is_escaped(text: str, store: FeatureStore) -> None:
    assert "<script" not in text
    assert "a &lt;b&gt;store" in text
    assert "at &lt;script&gt;alert(1)&lt;/script&gt;" in text
    read = Reader(text)
    assert HOSTILE in read.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", text)


def test_control_characters_are_shown_as_escapes() -> None:
    hostile = "<b>\u202ea\udcff\x1b&\"'"
    plot = Plot(hostile, hostile, hostile)
    table = Table(hostile, [hostile], [[hostile, hostile, Picture(hostile, hostile)]])
    parts: tuple[Part | list[Part], ...]
    parts = (hostile, Figure(plot, hostile), table, [Figure(plot, hostile), table])
    text = render_page(hostile, hostile, [Section(hostile, hostile, *parts)])
    shown = "&lt;b&gt;\\u202ea\\udcff\\x1b&amp;&#34;&#39;"
    # Title, heading and scope; the link, the section and its heading; then the parts.
    assert text.count(shown) == 3 + 2 + 2 + 1 + 2 * (4 + 7)
    assert text.count("evil") == text.count("<b>") == 0
    assert text.isascii()
    Reader(text)


def test_the_text_of_the_page(text: str) -> None:
    read = Reader(text)
    for expected in (
        "complete",
        "48 of 48",
        "models/clip_image",
        "text not-json",
        "image truncated",
        "the poster has changed since the build",
        "Comedy and Drama",
        "in no part",
        "near-constant",
        "samples/s, median",
    ):
        assert expected in read.text, expected
    for name in ("norms", "dimensions", "plane", "spread", "matching", "genres", "split", "bad"):
        assert f'<section id="{name}">' in text


def cells(text: str, caption: str) -> list[list[str]]:
    """The body cells of the table with this caption."""
    body = text.split(f"<caption>{caption}</caption>")[1].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body.split("<tbody>")[1], re.DOTALL)
    return [[re.sub("<.*?>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for r in rows]


def test_genres_and_split_are_counted(text: str) -> None:
    assert cells(text, "Genres") == [
        ["Drama", "47", "97.9%", "96.7%", "100.0%", "100.0%"],
        ["Comedy", "23", "47.9%", "46.7%", "50.0%", "50.0%"],
    ]
    assert cells(text, "Most frequent pairs") == [["Comedy and Drama", "23"]]
    assert cells(text, "The split")[0] == ["train", "30", "62.5%", "1"]
    assert cells(text, "The split")[3] == ["in no part", "2", "4.2%", "–"]
    assert ["text not-json", "1"] in cells(text, "Reasons")
    # The expected table, computed by other code.
    ratio = cells(text, "Spread")
    assert [row[0] for row in ratio] == list(DIMS)
    assert cells(text, "Dimensions, numbered from 0")[2][4:] == ["1: 7", "2: 7, 9"]


def test_pictures_of_bad_samples(store: FeatureStore, sources: Sources) -> None:
    text_bad, image_bad = bad_rows(store, sources.collection)
    assert (text_bad.picture, text_bad.note) == ("", "the poster has changed since the build")
    assert image_bad.note == "black placeholder"
    assert image_bad.picture.startswith("data:image/jpeg;base64,")
    assert not any(row.picture or row.note for row in bad_rows(store, None))


def test_a_poster_that_is_the_recorded_one_is_shown(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (300, 400), "teal").save(data / "a.jpg")
    (data / "a.json").write_text("[]")
    bad = {0: (BadInput(0, "text", "not-an-object", ""),)}
    [row] = bad_rows(store_of(tmp_path / "s", data, chunks=[0], bad=bad), mm_imdb(data))
    assert row.note == "poster"
    assert 300 < len(row.picture) < 4000


def test_the_same_store_gives_the_same_bytes(sources: Sources, text: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.grid: True\nsvg.fonttype: path\n")
    assert sources.collection is not None
    options = ["--store", str(sources.store), "--data-dir", sources.collection.path]
    options += ["--labels-dir", str(sources.labels_dir), "--out", "b.html"]
    options += ["--split-json", str(sources.split_json)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "report", "--json", *options],
        cwd=tmp_path,  # where matplotlib looks for its settings first
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"} | THREADS,
        capture_output=True,
        text=True,
        check=True,
    )
    made = (tmp_path / "b.html").read_bytes()
    facts = {"out": "b.html", "bytes": len(made), "samples": SAMPLES, "measured": 46}
    assert json.loads(done.stdout) == facts
    assert made == text.encode()


# Incomplete, empty and damaged stores -----------------------------------------------------------


def render(path: Path) -> str:
    store = FeatureStore(path)
    return page(store, Sources(path), choose(store))


def test_a_store_that_is_being_built(tmp_path: Path) -> None:
    make_store(tmp_path / "s", samples=11, chunk=4, chunks=[0, 2], dims=ONE)
    text = render(tmp_path / "s")
    assert "not complete; build --resume continues" in text
    assert "7 of 11" in text
    Reader(text)


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s", chunks=[])
    with pytest.raises(InputError, match="is still empty"):
        write(Sources(tmp_path / "s"), tmp_path / "report.html")


@pytest.mark.parametrize(("samples", "views"), [(1, 1), (1, 4), (2, 2), (5, 1)])
def test_a_tiny_store(tmp_path: Path, samples: int, views: int) -> None:
    make_store(tmp_path / "s", samples=samples, views=views, chunk=16, dims=ONE)
    Reader(render(tmp_path / "s"))


def test_a_store_of_bad_samples_alone(tmp_path: Path) -> None:
    bad = {i: [BadInput(i, "image", "empty", "0 bytes")] for i in range(3)}
    make_store(tmp_path / "s", samples=3, bad=bad, dims=ONE)
    text = render(tmp_path / "s")
    Reader(text)
    assert "Norms" not in text
    assert "image empty" in text


def test_identical_rows(tmp_path: Path) -> None:
    make_store(
        tmp_path / "s", samples=5, dims=ONE, rows={"clip_image": np.zeros((5, 4, 64), np.float32)}
    )
    text = render(tmp_path / "s")
    Reader(text)
    said = [Reader(text).text, *(word for plot in drawings(text) for word in words(plot))]
    assert "nan" not in re.split(r"\W+", " ".join(said).lower())
    assert not any("nan" in numbers for plot in drawings(text) for numbers in coordinates(plot))
    assert cells(text, "Dimensions, numbered from 0")[0][4].startswith("64: 0, 1, 2")


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    make_store(tmp_path / "s")
    file = next((tmp_path / "s/clip_text").glob("c.1.*"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="checksum"):
        render(tmp_path / "s")


def test_labels_of_other_samples_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    write_labels(STEMS[:5], [{"genres": ["Drama"]}] * 5, tmp_path)
    with pytest.raises(InputError, match="lists 5 samples, expected 48"):
        page(store, Sources(store.path, labels_dir=tmp_path), choose(store))


def test_a_missing_matplotlib_is_named_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, store: FeatureStore
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=re.escape('pip install -e ".[report]"')):
        write(Sources(store.path), Path("never.html"))
    assert not Path("never.html").exists()


# In a browser -----------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
MEASURE = """<!DOCTYPE html><body><script>
const widths = [];
const jobs = JSON_OF_JOBS;
const next = () => {
  if (!jobs.length) { document.body.dataset.widths = JSON.stringify(widths); return; }
  const [page, width] = jobs.shift();
  const frame = document.createElement("iframe");
  frame.style = `border:0;height:900px;width:${width}px`;
  frame.srcdoc = page;
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    widths.push([root.clientWidth, root.scrollWidth]);
    next();
  };
  document.body.append(frame);
};
next();
</script></body>
"""


def browse(url: Path, profile: Path, *options: str) -> str:
    """The standard output of a new headless Chromium."""
    quiet: tuple[str, ...]
    quiet = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    quiet += ("disable-component-update", "disable-sync", "hide-scrollbars", "no-sandbox")
    command = [str(CHROMIUM), "--headless", *(f"--{name}" for name in quiet)]
    command += [f"--user-data-dir={profile}", *options, url.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@in_browser
def test_the_page_is_no_wider_than_a_phone(text: str, tmp_path: Path) -> None:
    too_wide = text.replace("<main>", '<main><p style="min-width:2000px">wide</p>', 1)
    jobs = json.dumps([(text, 360), (text, 1280), (too_wide, 360)]).replace("</", "<\\/")
    (tmp_path / "measure.html").write_text(MEASURE.replace("JSON_OF_JOBS", jobs))
    options = ("--dump-dom", "--virtual-time-budget=20000")
    dom = browse(tmp_path / "measure.html", tmp_path / "profile", *options)
    [widths] = re.findall(r'data-widths="([^"]*)"', dom)
    phone, screen, control = json.loads(widths)
    assert (phone, screen) == ([360, 360], [1280, 1280])
    assert control[1] > 2000  # anything wider is visible in the picture


@in_browser
def test_the_page_is_legible_in_light_and_dark_mode(
    sources: Sources, tmp_path: Path, text: str
) -> None:
    (tmp_path / "page.html").write_text(text)
    pictures = {}
    for name, scheme in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{name}.png"
        options = [f"--screenshot={shot}", "--window-size=800,3000"]
        options += [f"--blink-settings=preferredColorScheme={scheme}"]
        browse(tmp_path / "page.html", tmp_path / name, *options)
        pictures[name] = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    light, dark = pictures["light"], pictures["dark"]
    assert light.shape == dark.shape == (3000, 800, 3)
    assert np.median(light) > 230 > 60 > np.median(dark)  # the backgrounds
    # Text, axes and plots: pixels unlike the background in every fifth of the page.
    for page_pixels in (light, dark):
        far = np.abs(page_pixels - np.median(page_pixels)).max(axis=2) > 110
        assert all(part.mean() > 0.004 for part in np.array_split(far, 5))
    # Tick labels have the text colour of the page, which is legible on both backgrounds.
    assert (light.max(axis=2) < 60).any(axis=1).mean() > 0.2
    assert (dark.min(axis=2) > 200).any(axis=1).mean() > 0.2
