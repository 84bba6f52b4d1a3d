"""Error messages of the commands that write files from a store.

They describe the error, and do not mention resuming or committed chunks, which are true of builds
only: a user would look for something to resume.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from featurestore.imdb.labels import write_labels
from featurestore.system import durable
from featurestore.system.durable import PartialFile
from manyviews import main
from tests.featurestore.stores import make_store

STEMS = [f"{i:07d}" for i in range(11)]
Run = Callable[..., tuple[int, str]]
# Words that are true of builds only.
_OF_BUILDS = ("committed", "resume", "lost")
COMMANDS: dict[str, tuple[str, ...]] = {
    "materialize": ("materialize", "--store", "store", "--out-dir"),
    "labels": ("labels", "--data-dir", "data", "--out-dir"),
    "export": ("export", "--store", "store", "--format", "npy", "--out-dir"),
    "report": ("report", "--store", "store", "--out"),
    "views": ("views", "--data-dir", "data", "--stem", STEMS[0], "--views", "2", "--sheet"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refusals")
    make_store(root / "store", stems=STEMS, dims={"clip_image": 64})
    (root / "data").mkdir()
    for stem in STEMS[:2]:
        Image.effect_noise((40, 60), 30).convert("RGB").save(root / "data" / f"{stem}.jpg")
        document = {"plot": "a robot learns to laugh", "genres": ["Drama"]}
        (root / "data" / f"{stem}.json").write_text(json.dumps(document))
    write_labels(STEMS, [{"genres": ["Drama"]}] * 11, root / "labels")
    (root / "split.json").write_text(
        json.dumps({"train": STEMS[:5], "dev": STEMS[5:8], "test": STEMS[8:]})
    )
    (root / "file").write_bytes(b"x")
    return root


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder, as a shell would; returns exit code and message."""
    monkeypatch.chdir(place)

    def call(*arguments: object) -> tuple[int, str]:
        code = main.run_command([str(argument) for argument in arguments])
        message = capsys.readouterr().err
        assert message.startswith("Error: "), message
        assert len(message.splitlines()) <= 4, message
        assert "defect" not in message
        return code, message

    return call


def says_nothing_of_builds(message: str) -> bool:
    return not any(word in message for word in _OF_BUILDS)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Limits the file size of this process: a larger write fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_size_limit_is_reported(run: Run, place: Path, command: str) -> None:
    with largest_file(100):
        code, message = run(*COMMANDS[command], "too-large")
    assert code == 1
    assert "File too large" in message
    assert "ulimit -f" in message
    assert says_nothing_of_builds(message)
    left = [p.name for p in place.rglob("*too-large*") if p.is_file()]
    assert left == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(operation: str, path: Path, size: int) -> int:
        if operation == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return size

    monkeypatch.setattr(durable, "hook", full)
    code, message = run(*COMMANDS[command], "full")
    assert code == 1
    assert "Could not write " in message
    assert "no space left" in message
    assert "Free some space, then run the same command again." in message
    assert says_nothing_of_builds(message)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_below_a_file_is_refused(run: Run, command: str) -> None:
    code, message = run(*COMMANDS[command], "file/inside")
    assert code == 1
    if command in ("report", "views"):
        assert "Could not use file/inside: Not a directory (file is not a folder)." in message
    else:
        assert "file: a file of this name exists, and a folder is needed." in message
    assert message.splitlines()[1]  # the advice
    assert ".partial" not in message
    assert says_nothing_of_builds(message)


@pytest.mark.parametrize("command", ["report", "views"])
def test_a_missing_parent_or_a_folder_of_the_files_name_is_refused(
    run: Run, place: Path, command: str
) -> None:
    code, message = run(*COMMANDS[command], "nowhere/page")
    assert (code, (place / "nowhere").exists()) == (1, False)
    assert "No such file or directory (nowhere is not a folder)." in message
    assert "Create that folder, or choose another place." in message
    code, message = run(*COMMANDS[command], "labels")
    assert code == 1
    assert "A folder has its name: move it away, or choose another name." in message
    assert says_nothing_of_builds(message)


@pytest.mark.parametrize("command", ["materialize", "labels", "report", "views"])
def test_a_file_locked_by_another_process_is_refused(run: Run, place: Path, command: str) -> None:
    """Two descriptors in one process: ``flock`` treats them as it treats two processes."""
    prefix = "mm_imdb1_globals_aug70"
    name = {"materialize": f"busy/{prefix}_manifest.json", "labels": "busy/ids_all.txt"}
    target = place / name.get(command, "busy-file")
    target.parent.mkdir(exist_ok=True)
    held = PartialFile(target)
    try:
        code, message = run(*COMMANDS[command], name.get(command, "busy-file").partition("/")[0])
    finally:
        held.discard()
    assert code == 1
    assert "is being written by another process" in message
    assert "Wait for it to finish or stop it, then run the same command again." in message
    assert says_nothing_of_builds(message)


@pytest.mark.parametrize("file", ["labels_all_23.npy", "ids_all.txt", "class_names_23.json"])
@pytest.mark.parametrize("command", ["export", "report", "probe"])
def test_a_damaged_label_file(
    run: Run, place: Path, tmp_path: Path, command: str, file: str
) -> None:
    folder = Path(shutil.copytree(place / "labels", tmp_path / "labels"))
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)
    arguments: dict[str, list[Any]] = {
        "export": [*COMMANDS["export"], tmp_path / "out"],
        "report": [*COMMANDS["report"], tmp_path / "out.html"],
        "probe": ["probe", "--store", "store", "--split-json", "split.json"],
    }
    code, message = run(*arguments[command], "--labels-dir", folder)
    assert code == 2
    assert str(folder / file) in message
    assert "manyviews labels" in message
    assert says_nothing_of_builds(message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels"]


def test_missing_files_and_folders_are_named(run: Run, place: Path) -> None:
    for name in ("materialize", "export", "report"):
        arguments = ["absent" if word == "store" else word for word in COMMANDS[name]]
        code, message = run(*arguments, "out")
        assert code == 2
        assert message.splitlines() == [
            "Error: There is no feature store at absent.",
            "Expected a folder that `build --store` created.",
        ]
    for command in ("labels", "views"):
        arguments = ["absent" if word == "data" else word for word in COMMANDS[command]]
        code, message = run(*arguments, "out")
        assert (code, "The data folder absent does not exist." in message) == (2, True)
    probe = ("probe", "--store", "store", "--labels-dir", "labels", "--split-json")
    (place / "broken.json").write_text("{")
    for split, what in (("absent", "Could not read absent"), ("broken.json", "is not valid JSON")):
        code, message = run(*probe, split)
        assert code == 2
        assert what in message
        assert "Expected a JSON file with lists of stems under train" in message
    augment = (*COMMANDS["labels"], "out", "--augment", "--embeddings-dir")
    for folder in ("absent", "file"):
        code, message = run(*augment, folder)
        assert code == 2
        assert (
            f"{folder}, the folder for augmented labels and embeddings, is not a folder" in message
        )
        assert "--embeddings-dir" in message
    assert not (place / "out").exists()
