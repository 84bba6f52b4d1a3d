"""The compiled kernels; everything else is in ``pyproject.toml``."""

from setuptools import Extension, setup

# Without a compiler it is left out, and the producers use Pillow and numpy instead. No contraction:
# the recipe says where a product and a sum are rounded once. What else is given up is only the
# report of floating point errors, in flags that nothing reads.
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
NAMES = ("blur", "colour", "hue", "layout", "module", "resize")

setup(
    ext_modules=[
        Extension(
            "producers.kernels.compiled",
            sources=[f"producers/kernels/{name}.c" for name in NAMES],
            depends=["producers/kernels/kernels.h"],
            extra_compile_args=FLAGS,
            optional=True,
        )
    ]
)
