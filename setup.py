"""The compiled kernels; everything else is in ``pyproject.toml``."""

from __future__ import annotations

import os
import sysconfig

from setuptools import Extension, setup

# Without a compiler the extension is not built, and the producers use Pillow and numpy instead.
# Published wheels must contain it: MANYVIEWS_REQUIRE_KERNELS=1 makes a failed build an error.
REQUIRED = os.environ.get("MANYVIEWS_REQUIRE_KERNELS", "0")
if REQUIRED not in ("0", "1"):
    raise SystemExit(f"MANYVIEWS_REQUIRE_KERNELS is 0 or 1, found {REQUIRED!r}.")

# No contraction: the recipe defines where a product and a sum are rounded once. The other two flags
# only disable the reporting of floating-point errors, which nothing reads.
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
NAMES = ("blur", "colour", "hue", "layout", "module", "resize")

# One file for CPython 3.11 and all later versions; free-threaded builds have no stable ABI.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "producers.kernels.compiled",
            sources=[f"producers/kernels/{name}.c" for name in NAMES],
            depends=["producers/kernels/kernels.h"],
            extra_compile_args=FLAGS,
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else [],
            py_limited_api=STABLE_ABI,
            optional=REQUIRED == "0",
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
