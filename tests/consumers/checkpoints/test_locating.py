"""Where checkpoints are found: folders, the hub's cache, and the hub."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consumers.backbones import registry
from consumers.checkpoints.checkpoints import resolve
from consumers.checkpoints.locating import count_parameters, locate
from featurestore.errors import ConfigError


def test_a_model_in_the_hubs_cache(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as huggingface_hub lays it out: refs/main names a snapshot."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("some/clip", "clip_image").where == "missing"
    home = tmp_path / "models--some--clip"
    commit = "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    shutil.copytree(checkpoints["clip_image"], home / "snapshots" / commit)
    found = locate("some/clip", "clip_image")
    assert (found.where, found.problem) == ("cache", "")
    assert found.checkpoint is not None
    (home / "snapshots" / commit / "model.safetensors").unlink()
    assert locate("some/clip", "clip_image").where == "missing"


def test_a_link_of_the_hubs_cache_that_leads_nowhere(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshots link to blobs, which a clean-up or another user may have removed."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home, commit = tmp_path / "models--some--clip", "0" * 40
    snapshot = home / "snapshots" / commit
    for folder in (home / "refs", home / "blobs", snapshot):
        folder.mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    for number, path in enumerate(sorted(Path(checkpoints["clip_image"]).iterdir())):
        shutil.copy(path, home / f"blobs/{number}")
        (snapshot / path.name).symlink_to(home / f"blobs/{number}")
    assert locate("some/clip", "clip_image").where == "cache"
    for name in ("config.json", "model.safetensors"):
        blob = (snapshot / name).readlink()
        content = blob.read_bytes()
        blob.unlink()
        for model in ("some/clip", str(snapshot)):
            found = locate(model, "clip_image")
            assert found.where == "missing"
            assert f"lacks {name}: a link to a file that is gone" in found.problem
            assert "hf download some/clip" in found.problem
            with pytest.raises(ConfigError, match=f"(?s)lacks {name}: .*hf download some/clip"):
                registry.load("clip_image", model, "cpu", "float32")
        blob.write_bytes(content)


def test_a_model_that_would_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's answer is the library's own class; only the call over the network is replaced."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    sizes = {"config.json": 100, "model.safetensors": 5000, "pytorch_model.bin": 6000, "x.md": 9}
    answer = ModelInfo(  # type: ignore[no-untyped-call]
        id="some/clip", siblings=[{"rfilename": n, "size": s} for n, s in sizes.items()]
    )
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: answer)
    found = locate("some/never-cached", "clip_image")
    assert (found.where, found.bytes, found.checkpoint) == ("hub", 5100, None)


def test_weights_in_another_format_are_counted_when_they_are_loaded(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    import torch

    shutil.copytree(checkpoints["clip_image"], tmp_path / "clip")
    (tmp_path / "clip/model.safetensors").unlink()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "clip/pytorch_model.bin")
    found = locate(str(tmp_path / "clip"), "clip_image")
    assert found.where == "folder"
    assert found.checkpoint is not None
    assert count_parameters(found.checkpoint) is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A local port in place of the hub: refuses connections, and answers nothing if it listens."""
    from huggingface_hub import constants

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        yield bound


@pytest.mark.parametrize("listens", [False, True])
def test_a_hub_that_cannot_be_reached_is_one_error_at_once(
    hub: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    listens: bool,
) -> None:
    """Without retries, which huggingface_hub would log for half a minute; or with a timeout."""
    from huggingface_hub import constants

    if listens:
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        hub.listen()
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    calls: list[Callable[[], object]] = [
        lambda: registry.load("clip_image", "some/clip", "cpu", "float32"),
        lambda: resolve("some/clip", "clip_image"),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="neither fetched from the hub nor found in its"):
            call()
    found = locate("some/clip", "clip_image")
    assert (found.where, "neither in the hub's cache nor" in found.problem) == ("missing", True)
    assert pauses == []
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr() == ("", "")
