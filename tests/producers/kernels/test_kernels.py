"""The C kernels and those of the libraries return equal values, and refuse invalid arguments."""

from __future__ import annotations

import random
import shutil
import subprocess
import sysconfig
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from producers.kernels import draws, library
from producers.kernels.exponential import _fma, exp, log, uniform
from producers.kernels.implementations import has_compiled, implementation
from producers.recipes.images.geometry import ImageSpec, Poster, clean_view
from tests.conftest import NIGHTLY, ROOT
from tests.producers.kernels.fuzz_kernels import load
from tests.producers.reference import (
    RATIOS,
    avx512_exp_and_log,
    digest,
    recipes_exp,
    require_torchvisions,
)
from tests.producers.views import augmented_views

needs_compiler = pytest.mark.skipif(not has_compiled(), reason="no compiler built the kernels")
SHAPES = [(1, 1), (1, 40), (40, 1), (2, 300), (40, 60), (60, 40), (224, 224), (333, 517), (700, 31)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [31, 224])
def test_both_implementations_make_the_same_views(shape: tuple[int, int], size: int) -> None:
    poster = noise(*shape)
    made = []
    for kernels in (implementation(compiled_code=True), library):
        out = np.empty((9, size, size, 3), np.uint8)
        augmented_views(
            poster, size=size, base_seed=5, index=shape[0], views=10, out=out, kernels=kernels
        )
        clean = [
            clean_view(Poster(poster, kernels), ImageSpec(size, edge)) for edge in (size, None)
        ]
        made.append((out, *clean))
    for compiled, by_library in zip(*made, strict=True):
        np.testing.assert_array_equal(compiled, by_library)


@needs_compiler
@pytest.mark.parametrize("lanes", [0, 32])
def test_processors_with_narrower_vectors_make_the_same(tmp_path: Path, lanes: int) -> None:
    if shutil.which("gcc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("gcc or Python's headers are not installed")
    built = tmp_path / "compiled.so"
    sources = sorted((ROOT / "producers/kernels").glob("*.c"))
    flags = ["-std=c11", "-O1", "-fPIC", "-ffp-contract=off", "-DMANYVIEWS_ONE_VERSION"]
    flags += [f"-DMANYVIEWS_LANES={lanes}", f"-I{sysconfig.get_path('include')}"]
    subprocess.run(["gcc", "-shared", *flags, *sources, "-lm", "-o", built], check=True)
    narrow, kernels = load(str(built)), implementation(compiled_code=True)
    rng = np.random.default_rng(lanes)
    for height, width in ((1, 1), (31, 33), (700, 64), (90, 1100), (1030, 97)):
        poster = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for box in ((0, 0, width, height), (width // 3, height // 2, (width + 1) // 2, 1)):
            for side in (1, 31, 97, 224):
                found, expected = np.zeros((2, 3, side, side), np.uint8)
                narrow.resize(narrow.prepare(poster), box, 3, side % 2 == 0, found)
                kernels.resize(kernels.prepare(poster), box, 3, side % 2 == 0, expected)
                np.testing.assert_array_equal(found, expected)


@needs_compiler
@pytest.mark.parametrize("factor", [0.1, -0.1, 0.0371, 0.0, 0.5] if NIGHTLY else [0.0371])
def test_every_colour_turns_as_pillow_turns_it(factor: float) -> None:
    levels = np.arange(256, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels)).reshape(3, 4096, 4096)
    expected = colours.copy()
    library.hue(expected, factor)
    implementation(compiled_code=True).hue(colours, factor)
    assert np.array_equal(colours, expected)


# Arguments of the published recipe: the logarithms of crops' ratios, and exponents of weights.
DRAWN = uniform(np.arange(0, 1 << 24, 9973), *map(log, RATIOS))
EXPONENTS = -np.arange(0x3E000000, 0x42D00000, 97, dtype=np.uint32).view(np.float32)
# Of the values that torch computed on a CPU with AVX-512: a digest, and how many are not correctly
# rounded.
AVX512 = (
    ("8842f8f41ad332ce083fb6d022793ee4", 18),
    ("82835f9053c145aa81c1156b2a9d838a", 9072),
)


def test_the_exponentials_are_those_of_avx512() -> None:
    for arguments, recorded in zip((DRAWN, EXPONENTS), AVX512, strict=True):
        found = exp(arguments)
        others = found != np.exp(arguments.astype(np.float64)).astype(np.float32)
        assert (digest(found), int(others.sum())) == recorded


@recipes_exp
def test_torchs_own_exp_and_log_are_the_recipes_with_avx512() -> None:
    assert torch.log(torch.tensor(RATIOS)).tolist() == [float(log(ratio)) for ratio in RATIOS]
    for arguments in (DRAWN, EXPONENTS):
        np.testing.assert_array_equal(
            torch.exp(torch.from_numpy(arguments)).numpy(), exp(arguments)
        )


# Arguments of any recipe: the logarithms of ratios up to 50, and exponents of weights.
OTHERS = np.array(
    [
        *(0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 3e-8, -3e-8, 87.336, -87.336),
        *np.random.default_rng(0).uniform(-87.336, 4, 150),
        *(-(np.random.default_rng(1).uniform(0, 1, 150) ** 8) * 87),
        *(np.arange(-400, 181, 4) / 32 * np.log(2)),  # where the number of steps changes
    ],
    np.float32,
)


def test_other_exponentials_follow_mkls_instructions() -> None:
    """What MKL's function for AVX-512 does in libtorch_cpu.so, with exact numbers in between."""
    for argument, found in zip(OTHERS.tolist(), exp(OTHERS).tolist(), strict=True):
        assert found == by_instructions(argument), argument


def by_instructions(argument: float) -> float:
    """The exponential: each variable is the result of one instruction of mkl_vml_kernel_sExp."""
    shift = Fraction(3 << 17)
    moved = Fraction(argument) * Fraction(float.fromhex("0x1.715476p+0")) + shift
    steps = Fraction(int(moved * 32), 32) - shift  # rounded towards zero, to 24 bits
    whole, entry = divmod(int(steps * 32), 32)
    rest = rounded(Fraction(argument) - steps * Fraction(float.fromhex("0x1.62e43p-1")))
    rest = rounded(rest + steps * Fraction(float.fromhex("0x1.05c61p-29")))
    with localcontext(prec=40):
        exact = (Decimal(2).ln() * entry / 32).exp()
        high = float(np.float32(exact))
        low = rounded(Fraction((exact - Decimal(high)) / Decimal(high)))
    square = rounded(rest * rest)
    low = rounded(low + rest)
    cube = Fraction(float.fromhex("0x1.5557e6p-3")) * rest
    more = rounded(square * rounded(cube + Fraction(float.fromhex("0x1.0001ecp-1"))) + low)
    power = Fraction(high) * Fraction(2) ** whole
    return float(rounded(more * power + power))


def rounded(value: Fraction) -> Fraction:
    """The float32 value that is the nearest, of two as near the even one."""
    if value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    unit = Fraction(2) ** max(exponent - 23, -149)
    return round(value / unit) * unit


def test_exponentials_far_below_are_correctly_rounded() -> None:
    far = -np.geomspace(87.34, 3e38, 3000).astype(np.float32)
    found = exp(np.array([*far, -np.inf], np.float32))
    exact = [Decimal(each).exp() if each > -200 else Decimal(0) for each in far.tolist()]
    unit = Decimal(2) ** -149
    expected = [int((each / unit).to_integral_value()) for each in (*exact, Decimal(0))]
    assert found.view(np.uint32).tolist() == expected
    assert 0 < sum(each > 0 for each in expected) < len(expected)


def test_uniform_draws_are_torchs_whatever_the_bounds() -> None:
    rng = np.random.default_rng(0)
    for seed in range(150):
        low, high = np.sort(rng.choice((-1, 1), 2) * 10.0 ** rng.uniform(-9, 9, 2)).tolist()
        if seed % 10 == 0:
            high = low
        torch.manual_seed(seed)
        expected = torch.empty(5).uniform_(low, high).numpy()
        generator = np.random.RandomState(seed)
        words = np.frombuffer(generator.bytes(20), "<u4")
        found = uniform(words, np.float32(low), np.float32(high))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("taps", [1, 3, 5, 7, 9, 11, 15, 17, 23, 31, 33, 39, 63, 65, 103, 129])
def test_weights_of_any_number_and_width_are_torchvisions(taps: int) -> None:
    """torch's exp replaced by that of AVX-512 where the CPU has another."""
    from featurestore.system.torchvision_ops import ensure_importable

    ensure_importable()
    from torchvision.transforms._functional_tensor import _get_gaussian_kernel1d

    exponents = np.random.default_rng(taps).uniform(-3, 3, 60)
    drawn = [0.001, 1000.0, *(10.0**exponents).astype(np.float32).tolist()]
    with avx512_exp_and_log():
        kind = torch.float32, torch.device("cpu")
        expected = [_get_gaussian_kernel1d(taps, sigma, *kind).numpy() for sigma in drawn]
    np.testing.assert_array_equal(draws.blur_weights(drawn, taps), np.stack(expected))


def test_the_bounds_of_the_ratio_are_correctly_rounded() -> None:
    for bound, ratio in zip(map(log, RATIOS), RATIOS, strict=True):
        exact = Decimal(float(np.float32(ratio))).ln()
        others = (np.nextafter(bound, np.float32(towards)) for towards in (-1, 1))
        error = abs(Decimal(float(bound)) - exact)
        assert all(error < abs(Decimal(float(other)) - exact) for other in others)


def test_a_product_and_a_sum_are_rounded_once() -> None:
    """Beside a tie of float32, where a first rounding to double would decide the second."""
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(1, 2, 3000).astype(np.float32) for _ in range(2))
    c = (2.0 ** rng.integers(-60, 60, 3000) * rng.choice((-1, 1), 3000)).astype(np.float32)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    for found, true in zip(_fma(a, b, c), exact, strict=True):
        error = abs(Fraction(float(found)) - true)
        for towards in (-np.inf, np.inf):
            other = Fraction(float(np.nextafter(found, np.float32(towards))))
            assert error <= abs(other - true)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.9999])
def test_blur_weights_are_torchvisions(sigma: float) -> None:
    from featurestore.system.torchvision_ops import ensure_importable

    ensure_importable()
    from torchvision.transforms._functional_tensor import _get_gaussian_kernel1d

    rng = random.Random(sigma)
    drawn = [float(np.float32(rng.uniform(max(0.1, sigma - 0.4), sigma))) for _ in range(500)]

    def torchvisions() -> np.ndarray:
        kind = torch.float32, torch.device("cpu")
        return np.stack([_get_gaussian_kernel1d(23, value, *kind).numpy() for value in drawn])

    made = draws.blur_weights(drawn, 23)
    require_torchvisions(f"weights {sigma}", made, [np.array(drawn)], torchvisions)


@needs_compiler
def test_buffers_that_do_not_fit_are_refused() -> None:
    kernels = implementation(compiled_code=True)
    planes = np.zeros((3, 8, 9), np.uint8)
    pixels = np.zeros((5, 6, 3), np.uint8)
    poster = kernels.prepare(pixels)
    weights = np.full(3, 1 / 3, np.float32)
    read_only = planes.copy()
    read_only.flags.writeable = False
    for call in (
        lambda: kernels.gray(planes.astype(np.float32)),
        lambda: kernels.gray(planes[:2]),
        lambda: kernels.gray(planes[:, ::2]),
        lambda: kernels.gray(read_only),
        lambda: kernels.resize(poster, (0, 0, 7, 5), 3, False, planes),
        lambda: kernels.resize(poster, (-1, 0, 5, 5), 3, False, planes),
        lambda: kernels.resize(poster, (0, 0, 0, 5), 3, False, planes),
        lambda: kernels.resize(poster, (0, 1, 5, 5), 3, False, planes),
        lambda: kernels.resize(pixels, (0, 0, 5, 5), 3, False, planes),
        lambda: kernels.resize(None, (0, 0, 5, 5), 3, False, planes),
        lambda: kernels.prepare(pixels[..., :2]),
        lambda: kernels.prepare(pixels[:0]),
        lambda: kernels.prepare(pixels[:, ::2]),
        lambda: kernels.blur(planes, weights.astype(np.float64)),
        lambda: kernels.blur(planes, weights[:2]),
        lambda: kernels.interleave(planes, np.zeros((8, 8, 3), np.uint8)),
    ):
        with pytest.raises((ValueError, TypeError, BufferError)):
            call()
    assert not planes.any()
