"""Data sets of symbolic links, as DVC, git-annex and the hub's cache create them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from consumers.config import BuildConfig
from featurestore.errors import InputError
from featurestore.imdb.label_files import read_labels
from featurestore.storage.store import FeatureStore
from manyviews import main
from producers.sources.pairs import scan
from tests.conftest import tree_digest

STEM = "0107922"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main([str(a) for a in arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def data(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen samples as files, one of them bad."""
    folder = tmp_path_factory.mktemp("real") / "data"
    folder.mkdir()
    for sample in scan(demo_data / "dataset").samples[:16]:
        for name in (sample.image_name, sample.text_name):
            shutil.copy(demo_data / "dataset" / str(name), folder)
    (folder / f"{scan(folder).samples[3].stem}.json").write_text("{")
    return folder


def linked(data: Path, folder: Path, layout: str) -> Path:
    """The same data set as links into a folder of files that are named by their content."""
    blobs = folder / ".git" / "annex" / "objects" if layout == "annex" else folder / "blobs"
    snapshot = folder / "data" if layout == "annex" else folder / "snapshots" / "0a1b" / "data"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(data.iterdir())):
        shutil.copy2(path, blobs / f"blob-{i}")
        target = blobs / f"blob-{i}"
        # git-annex and the hub use relative links, DVC absolute ones.
        place = target if layout == "dvc" else os.path.relpath(target, snapshot)
        (snapshot / path.name).symlink_to(place)
    return snapshot


def options(store: Path, data: Path, checkpoints: dict[str, str]) -> list[object]:
    model = checkpoints["clip_image"]
    found: list[object] = ["build", "--data-dir", data, "--store", store, "--views", 2]
    found += ["--features", "clip_image,clip_text", "--model", f"clip_image={model}"]
    found += ["--model", f"clip_text={checkpoints['clip_text']}", "--chunk", 16]
    return [*found, "--producers", 1, "--device", "cpu"]


@pytest.fixture(scope="module")
def store(
    data: Path, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store built from the files."""
    from consumers.build import build
    from manyviews.commands.build import build_config

    path = tmp_path_factory.mktemp("built") / "store"
    models = {name: checkpoints[name] for name in ("clip_image", "clip_text")}
    values = {"data_dir": data, "store": path, "models": tuple(models.items()), "views": 2}
    values |= {"features": ",".join(models), "chunk": 16, "producers": 1, "device": "cpu"}
    build(build_config(None, values))
    return path


@pytest.mark.parametrize("layout", ["annex", "hub", "dvc"])
def test_a_store_of_links_is_that_of_the_files(
    run: Any, data: Path, store: Path, checkpoints: dict[str, str], tmp_path: Path, layout: str
) -> None:
    links = linked(data, tmp_path / "links", layout)
    made = tmp_path / "store"
    asked = options(made, links, checkpoints)
    code, _, errors = run(*asked)
    assert code == 2
    assert "32 links out of the folder" in errors
    assert "32 links lead out of the folder: --follow-links (follow_links = true" in errors
    assert not made.exists()
    if layout == "dvc":  # also as an option in a TOML file
        (tmp_path / "b.toml").write_text("follow_links = true\n")
        asked += ["--config", tmp_path / "b.toml"]
    else:
        asked += ["--follow-links"]
    assert run(*asked)[0] == 3, "one is bad"
    assert tree_digest(made) == tree_digest(store)
    # The store does not record whether links were followed.
    code, _, errors = run(*options(made, data, checkpoints), "--resume")
    assert code == 3
    assert "nothing to do" in errors


def test_every_command_that_reads_inputs_follows_links(
    run: Any, data: Path, store: Path, tmp_path: Path
) -> None:
    links, out = linked(data, tmp_path / "links", "hub"), tmp_path / "out"
    stem = FeatureStore(store).stems[1]
    follow = ("--data-dir", links, "--follow-links")
    commands: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
        "labels": (("labels", "--out-dir", out), (2, "--follow-links")),
        "views": (("views", "--stem", stem), (2, "--follow-links")),
        "views of a store": (("views", "--stem", stem, "--store", store), (2, "--follow-links")),
        "verify": (("verify", "--verify-inputs", "--store", store), (1, "--follow-links")),
        "check": (("check", "--no-calibration"), (2, "--follow-links")),
    }
    for name, (arguments, (refused, said)) in commands.items():
        code, _, errors = run(*arguments, "--data-dir", links)
        assert code == refused, name
        assert str(said) in errors, name
        code, output, errors = run(*arguments, *follow)
        assert code in (0, 1 if name == "check" else 0), (name, errors)
        of_files = run(*arguments, "--data-dir", data)
        if name != "check":
            assert (code, output) == of_files[:2], name
        elif code:
            assert "16 posters with a synopsis" in output
    assert (out / "labels_all_23.npy").exists()


def test_samples_that_are_links_are_missed_with_advice(
    run: Any, data: Path, store: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """Two of sixteen samples are links out of the folder, which nobody asked to follow."""
    links, mixed, out = linked(data, tmp_path / "links", "hub"), tmp_path / "mixed", tmp_path / "l"
    shutil.copytree(data, mixed)
    stems = FeatureStore(store).stems
    for stem in (stems[2], stems[5]):
        for name in [path.name for path in mixed.glob(f"{stem}.*")]:
            (mixed / name).unlink()
            (mixed / name).symlink_to((links / name).resolve())
    code, _, errors = run("labels", "--data-dir", mixed, "--out-dir", out)
    assert code == 0
    assert "left out: 4 links out of the folder, such as " in errors
    assert "4 links lead out of the folder: --follow-links" in errors
    with pytest.raises(InputError, match="is for other samples") as caught:
        read_labels(out, stems)
    assert "built with --follow-links, give it to `labels`" in str(caught.value)
    code, _, errors = run(*options(store, mixed, checkpoints), "--resume")
    assert code == 2
    assert "another sample list" in errors
    assert "are links out of the data folder: give --follow-links" in errors
    assert "restore the missing" not in errors
    (mixed / f"{stems[2]}.json").unlink()
    (links / f"{stems[2]}.json").unlink()
    for path in mixed.glob(f"{stems[2]}.jp*"):
        path.unlink()
    code, _, errors = run(*options(store, mixed, checkpoints), "--resume")
    assert code == 2
    assert "restore the missing samples" in errors


def test_the_report_shows_the_poster_behind_a_link(
    run: Any, data: Path, store: Path, tmp_path: Path
) -> None:
    links = linked(data, tmp_path / "links", "annex")
    page = tmp_path / "page.html"
    assert run("report", "--store", store, "--out", page, "--data-dir", links)[0] == 0
    assert "a link that leaves the folder" in page.read_text()
    assert (
        run("report", "--store", store, "--out", page, "--data-dir", links, "--follow-links")[0]
        == 0
    )
    followed = page.read_bytes()
    assert run("report", "--store", store, "--out", page, "--data-dir", data)[0] == 0
    assert page.read_bytes() == followed


def test_follow_links_without_inputs_is_refused(run: Any, store: Path, tmp_path: Path) -> None:
    commands: dict[tuple[object, ...], str] = {
        ("verify",): "Inputs are read with --verify-inputs only",
        ("verify", "--verify-inputs"): "--follow-links applies to inputs",
        ("report", "--out", tmp_path / "page.html"): "--follow-links applies to inputs",
    }
    for command, said in commands.items():
        code, _, errors = run(*command, "--store", store, "--follow-links")
        assert code == 2
        assert said in errors


def test_an_input_replaced_by_a_link_is_a_change(
    run: Any, data: Path, store: Path, tmp_path: Path
) -> None:
    """A link may lead to a private file of another user."""
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    victim = min(copy.glob("*.json"))
    outside = Path(shutil.move(victim, tmp_path / "outside.json"))
    victim.symlink_to(outside)
    asked = ("verify", "--store", store, "--verify-inputs", "--data-dir", copy)
    code, output, errors = run(*asked, "--json")
    assert code == 1
    assert [name for name, _ in json.loads(output)["changed_inputs"]] == [victim.name]
    assert "a link that leaves the folder" in errors
    assert run(*asked, "--follow-links")[0] == 0
    victim.unlink()
    victim.symlink_to(copy / "inside.json")
    shutil.copy(outside, copy / "inside.json")
    assert run(*asked)[0] == 0, "a link inside the folder is a file"


def test_links_that_lead_to_no_file_are_listed_with_their_reason(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside"
    folder.mkdir()
    (outside / "sub").mkdir(parents=True)
    os.mkfifo(outside / "pipe")
    for name in ("a.jpg", "a.json"):
        (outside / name).write_bytes(b"")
        (folder / name).symlink_to(outside / name)
    targets: dict[str, str | Path] = {
        "gone.jpg": outside / "none",
        "loop.jpg": "loop.jpg",
        "ping.json": "pong.json",
        "pong.json": "ping.json",
        "folder.jpg": outside / "sub",
        "pipe.json": outside / "pipe",
        "zero.jpg": "/dev/zero",
        "sub": outside / "sub",
        "notes.txt": outside / "a.jpg",
        ".hidden.jpg": outside / "a.jpg",
    }
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(outside / "socket"))
        (folder / "socket.jpg").symlink_to(outside / "socket")
        found = scan(folder, follow_links=True)
    assert [sample.stem for sample in found.samples] == ["a"]
    assert dict(found.left_out) == {
        "gone.jpg": "dangling",
        "loop.jpg": "dangling",
        "ping.json": "dangling",
        "pong.json": "dangling",
        "folder.jpg": "directory",
        "sub": "directory",
        "pipe.json": "not-a-file",
        "zero.jpg": "not-a-file",
        "socket.jpg": "not-a-file",
        "notes.txt": "suffix",
        ".hidden.jpg": "dotfile",
    }


def test_following_links_is_not_the_default() -> None:
    assert not BuildConfig(data_dir=Path("d"), store=Path("s")).follow_links
