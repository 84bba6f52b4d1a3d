"""Resolves device and dtype options on this machine. Importing it does not load torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featurestore.errors import ConfigError
from featurestore.system.limits import usable_cpus
from featurestore.wording import first_line

DTYPES = ("float32", "bfloat16", "float16")


def resolve_devices(devices: Sequence[str]) -> list[str]:
    """The devices that ``--devices`` names on this machine; one may be named repeatedly.

    torch is loaded only if a CUDA device is named.

    Args:
        devices: ``all`` alone for every CUDA device, or ``cpu``, ``cuda`` and ``cuda:N``.

    Returns:
        ``cpu``, or ``cuda:N`` with its index, for each worker.

    Raises:
        ConfigError: a device does not exist, or its name is invalid.
    """
    if tuple(devices) == ("all",):
        count = _cuda_devices()
        if not count:
            raise ConfigError(
                "--devices all: this machine has no CUDA device that torch can use.\n"
                "Name its devices instead: --devices cpu,cpu starts two workers on the CPU."
            )
        return [f"cuda:{index}" for index in range(count)]
    for name in devices:
        if name == "auto" or not _is_device(name):
            raise ConfigError(
                f"--devices {','.join(devices)}: {name!r} is not a device. Give all, or a list of "
                "cpu and cuda:N, for example cuda:0,cuda:1."
            )
    return [resolve_device(name, "--devices") for name in devices]


def _is_device(device: str) -> bool:
    """Whether a name has the form of one."""
    kind, colon, index = device.partition(":")
    return device in ("auto", "cpu") or (kind == "cuda" and (not colon or index.isdecimal()))


def _cuda_devices() -> int:
    """Number of CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_device(device: str, option: str = "--device") -> str:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means on this machine.

    Args:
        device: its name.
        option: the option that named it, for messages.

    Returns:
        ``cpu``, or ``cuda:N`` with its index.

    Raises:
        ConfigError: the device does not exist, or its name is invalid.
    """
    if device == "cpu":
        return device
    if not _is_device(device):
        raise ConfigError(f"{option} {device} is not a device: give auto, cpu, cuda or cuda:N.")
    import torch

    index, count = device.partition(":")[2], _cuda_devices()
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if not count:
        raise ConfigError(
            f"{option} {device}: this torch ({torch.__version__}) finds no CUDA device.\n"
            f"Use {option} cpu, or install a CUDA build of torch and check nvidia-smi."
        )
    if int(index or 0) >= count:
        raise ConfigError(f"{option} {device}: there are {count}, cuda:0 to cuda:{count - 1}.")
    return f"cuda:{int(index or 0)}"


def device_kind(device: str) -> str:
    """What determines the kernels: the CPU's vector units and vendor, or the GPU and its libraries.

    cuBLAS and cuDNN are separate packages, whose versions may differ from those torch was built
    with.

    Raises:
        ConfigError: the GPU cannot be used.
    """
    import torch

    if device == "cpu":
        return f"cpu: {torch.backends.cpu.get_cpu_capability()} {_cpu_maker()}"
    try:
        name = torch.cuda.get_device_name(device)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        raise ConfigError(
            f"--device {device} cannot be used: {first_line(error)}\n"
            "If another process has the GPU to itself (see nvidia-smi), wait for it; or choose "
            "another --device."
        ) from error
    return f"cuda: {name}, cuBLAS {_cublas()}, cuDNN {cudnn or 'none'}"


def _cublas() -> str:
    """The installed version, or that of the CUDA that torch was built and is shipped with."""
    import torch

    for name in ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12"):
        with suppress(PackageNotFoundError):
            return version(name)
    return f"of CUDA {torch.version.cuda}"


def _cpu_maker() -> str:
    # MKL chooses its kernels by the vendor, not only by the CPU's features.
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    makers = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return makers[0] if makers else platform.machine()


def resolve_threads(threads: int, device: str) -> int:
    """Number of batches that are computed at the same time on ``device``.

    Args:
        threads: the configured number; 0 chooses the number of CPUs that this process may use.
        device: ``cpu`` or ``cuda:N``, which computes one batch at a time.

    Raises:
        ConfigError: ``threads`` is not 0 and the device is a GPU.
    """
    if device == "cpu":
        return threads or usable_cpus()
    if threads:
        raise ConfigError(
            f"--threads {threads} is for a CPU, and the device is {device}, which computes one "
            "batch at a time.\nLeave --threads out, or choose --device cpu."
        )
    return 1


def resolve_dtype(dtype: str, device: str, feature: str | None = None) -> str:
    """The dtype that ``auto`` or a dtype's name means for ``feature`` on ``device``.

    Returns:
        ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 on CUDA and float32 on a
        CPU; ``clip_text`` is always float32.

    Raises:
        ConfigError: the dtype is unknown, or the device does not support it.
    """
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"--dtype {dtype} is not one of: auto, {', '.join(DTYPES)}.")
    cuda = device.startswith("cuda")
    if dtype == "float16" and not cuda:
        raise ConfigError("--dtype float16 needs a GPU; on a CPU use float32 or bfloat16.")
    if feature == "clip_text":
        return "float32"
    if dtype == "auto":
        return "bfloat16" if cuda else "float32"
    return dtype


def make_reproducible() -> None:
    """Make GPUs compute in float32 without TF32, and in the same way in every run.

    By default, convolutions use TF32; matrix products use it if some code allowed it. No algorithm
    is chosen by timing (``cudnn.benchmark``), which would make the last bits random. Attention
    never uses cuDNN: whether torch prefers it depends on the version of cuDNN.

    cuBLAS gets a separate workspace per stream, allocated before its first use, and cuBLASLt, which
    adds biases, one of the same 32 MiB. Sizes set in the environment are overridden: they influence
    the choice of algorithms, and so the last bits, and are not part of the fingerprint.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["CUBLASLT_WORKSPACE_SIZE"] = "32768"  # KiB
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    if hasattr(torch.backends.cudnn, "conv"):  # from torch 2.9 on; the older switch is deprecated
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:
        torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
