"""The choice of kernels, and the number of batches that run at once."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from consumers.device import devices
from featurestore.errors import ConfigError
from tests.conftest import ROOT

BUSY = "CUDA-capable device(s) is/are busy or unavailable"


def test_a_cpu_computes_as_many_batches_at_once_as_it_may_use_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "usable_cpus", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun and many clusters set it
    assert devices.resolve_threads(0, "cpu") == 5
    assert devices.resolve_threads(3, "cpu") == 3
    assert devices.resolve_threads(0, "cuda:1") == 1
    with pytest.raises(ConfigError, match=r"--threads 3 is for a CPU.*cuda:1"):
        devices.resolve_threads(3, "cuda:1")


def test_the_device_kind_names_what_chooses_the_kernels() -> None:
    kind = devices.device_kind("cpu")
    assert kind.startswith(f"cpu: {torch.backends.cpu.get_cpu_capability()} ")
    code = "from consumers.device.devices import device_kind; print(device_kind('cpu'))"
    older = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
    )
    assert older.stdout.strip().split()[1] in ("DEFAULT", "NO")


@pytest.mark.parametrize("installed", [True, False])
def test_a_gpu_is_known_by_its_name_and_by_its_libraries(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    def version(name: str) -> str:
        if installed and name == "nvidia-cublas-cu12":
            return "12.8.4.1"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(devices, "version", version)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA L4")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    cublas = "12.8.4.1" if installed else "of CUDA 12.6"
    assert devices.device_kind("cuda:0") == f"cuda: NVIDIA L4, cuBLAS {cublas}, cuDNN 91002"


def test_a_gpu_that_another_process_has_to_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_device: str) -> None:
        raise torch.AcceleratorError(f"CUDA error: {BUSY}\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch.cuda, "get_device_name", busy)
    with pytest.raises(ConfigError) as error:
        devices.device_kind("cuda:1")
    first, advice = str(error.value).splitlines()
    assert first == f"--device cuda:1 cannot be used: CUDA error: {BUSY}"
    assert "nvidia-smi" in advice
    assert "another --device" in advice


def cudnn_sdp_enabled() -> bool:
    return bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]


def test_switches_that_decide_last_bits_are_set_whatever_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("CUBLASLT_WORKSPACE_SIZE", "1")
    before = torch.get_float32_matmul_precision(), cudnn_sdp_enabled()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cuda.enable_cudnn_sdp(True)
        devices.make_reproducible()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert os.environ["CUBLASLT_WORKSPACE_SIZE"] == "32768"
        assert torch.get_float32_matmul_precision() == "highest"
        assert not cudnn_sdp_enabled()
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])
