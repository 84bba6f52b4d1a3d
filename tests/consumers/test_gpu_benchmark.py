"""``benchmarks/gpu.py`` on a CPU and tiny checkpoints: it counts and compares what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import full_size
from benchmarks.ceiling import GPUS, emptied, flops_per_view, least_seconds
from benchmarks.flops import forward_flops, makers_peak, text_flops
from benchmarks.full_size import VIEWS
from benchmarks.gpu import HEAD, measure, require_equal
from benchmarks.gpu_work import Work
from consumers.backbones import registry
from featurestore.records import FEATURES
from tests.consumers.conftest import KINDS

BATCH = 16


@pytest.mark.parametrize(
    "feature",
    [
        *("clip_text", "blip2_image"),
        *(pytest.param(each, marks=pytest.mark.nightly) for each in ("clip_image", "blip2_text")),
    ],
)
def test_a_line_of_the_table(
    backbone: Callable[[str], Any], feature: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Work(backbone(feature), BATCH, samples=1)
    row, minutes = measure(work, BATCH, peak=1e9, seconds=0.001, rounds=1)
    printed = capsys.readouterr().out
    assert f"{feature}: as in a build / model alone" in printed
    assert f"minutes for MM-IMDb: {minutes:,.1f}" in printed  # a run may be ended before the next
    assert (len(row), row[0]) == (len(HEAD), feature)
    assert minutes > 0
    # 80 images are computed for 70; texts are padded to the longest of their batch.
    filled = -(-VIEWS // BATCH) * BATCH / VIEWS
    assert work.spent / work.useful == pytest.approx(filled) or feature.endswith("text")
    assert work.spent > work.useful > 0


def test_a_lap_counts_the_chunks_after_the_first(backbone: Callable[[str], Any]) -> None:
    work = Work(backbone("clip_text"), BATCH, samples=2)
    lap = work.build(chunks=3)
    assert lap.units == 3 * 2 * VIEWS
    assert lap.seconds > 0


@pytest.mark.parametrize("feature", ["clip_text", "blip2_text"])
def test_flops_of_a_text_are_those_that_are_counted(
    backbone: Callable[[str], Any], feature: str
) -> None:
    model = backbone(feature)
    for length in (2, 11, 47):
        ids = torch.full((3, length), 5)
        counted = forward_flops(model, ids, torch.ones_like(ids))
        assert text_flops(model)(length) * 3 == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize("feature", FEATURES)
def test_the_attention_of_cpus_is_counted(backbone: Callable[[str], Any], feature: str) -> None:
    model = backbone(feature)
    if feature.endswith("image"):
        batch: tuple[torch.Tensor, ...] = (torch.zeros(2, 224, 224, 3, dtype=torch.uint8),)
    else:
        batch = (torch.full((2, 20), 5), torch.ones(2, 20, dtype=torch.int64))
    found = forward_flops(model, *batch)
    with sdpa_kernel(SDPBackend.MATH):  # products that the counter knows by themselves
        assert found == forward_flops(model, *batch)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA GeForce RTX 4090", 165e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("Tesla T4", None, None),
    ],
)
def test_a_name_means_one_gpu(name: str, half: float | None, single: float | None) -> None:
    assert makers_peak(name, torch.bfloat16) == makers_peak(name, torch.float16) == half
    assert makers_peak(name, torch.float32) == single


@pytest.mark.parametrize("feature", FEATURES)
def test_weights_without_values_count_as_many_flops(
    backbone: Callable[[str], Any], tiny_folders: dict[str, Path], feature: str
) -> None:
    own = registry.load(feature, str(tiny_folders[KINDS[feature]]), "cpu", "float32")
    assert flops_per_view(emptied(own)) == pytest.approx(flops_per_view(backbone(feature)))


def test_the_least_time_of_the_whole_set() -> None:
    views = full_size.SAMPLES_OF_MMIMDB * VIEWS
    for gpu in GPUS:
        for dtype in (torch.float32, torch.bfloat16):
            seconds = least_seconds(1e12, gpu, dtype)
            assert views * 1e12 / seconds == pytest.approx(makers_peak(gpu, dtype))


def test_images_that_differ_have_features_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size but for its widths and depths."""
    whole = full_size._blip2_config

    def small() -> Any:
        config = whole()
        vision, queries = config.vision_config, config.qformer_config
        vision.hidden_size, vision.intermediate_size, vision.num_attention_heads = 64, 128, 4
        queries.hidden_size, queries.intermediate_size, queries.num_attention_heads = 64, 128, 4
        queries.encoder_hidden_size = 64
        vision.num_hidden_layers = queries.num_hidden_layers = 2
        return config

    monkeypatch.setattr(full_size, "_blip2_config", small)
    folder = full_size.make_full_size("blip2_image", tmp_path, torch.device("cpu"))
    require_equal(Work(registry.load("blip2_image", str(folder), "cpu", "float32"), BATCH, 1))


def test_equal_features_of_all_rows_are_refused(backbone: Callable[[str], Any]) -> None:
    real = backbone("clip_image")
    constant: Any = SimpleNamespace(
        feature=real.feature,
        image=real.image,
        dim=2,
        device=real.device,
        dtype=real.dtype,
        embed=lambda pixels: torch.ones(len(pixels), 2),
    )
    with pytest.raises(SystemExit, match="different rows have the same features"):
        require_equal(Work(constant, BATCH, 1))
