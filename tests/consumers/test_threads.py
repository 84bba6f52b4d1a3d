"""The number of CPU threads changes last bits, so a store goes on with the number it began with."""

import os
import subprocess
import sys

import pytest
import torch

from consumers import devices
from tests.conftest import ROOT


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_is_what_was_asked_for():
    assert devices.use_cpu_threads(3) == torch.get_num_threads() == 3
    assert devices.use_cpu_threads(0) == 3


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("feature", ["clip_image", "blip2_image", "clip_text", "blip2_text"])
def test_the_same_number_gives_the_same_bytes_on_any_number_of_cores(feature, backbone):
    """Three threads on one core compute what three threads on all cores do."""
    loaded = backbone(feature)
    torch.manual_seed(7)
    pixels = torch.randint(0, 256, (32, 224, 224, 3), dtype=torch.uint8)
    ids = torch.randint(5, 50, (32, 100))
    mask = (torch.arange(100) < torch.randint(1, 101, (32, 1))).long()
    inputs = (pixels,) if feature.endswith("image") else (ids, mask)
    devices.use_cpu_threads(3)
    everywhere = [loaded.embed(*inputs) for _ in range(3)]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        alone = loaded.embed(*inputs)
    finally:
        os.sched_setaffinity(0, cores)
    assert all(torch.equal(alone, other) for other in everywhere)


def test_the_device_kind_names_what_chooses_the_kernels():
    kind = devices.device_kind("cpu")
    assert kind.startswith(f"cpu: {torch.backends.cpu.get_cpu_capability()} ")
    code = "from consumers.devices import device_kind; print(device_kind('cpu'))"
    older = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
    )
    assert older.stdout.strip().split()[1] in ("DEFAULT", "NO")
