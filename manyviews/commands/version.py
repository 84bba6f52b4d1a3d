"""``--version``: this program, the libraries that decide numbers, and the kernels.

No library is imported for it, which would take seconds; ``check`` names the device.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from featurestore import __version__

_LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "pillow",
    "zarr",
)


def print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Prints them and ends; what is not installed is said so."""
    if not value:
        return
    click.echo(f"manyviews {__version__}, Python {platform.python_version()}")
    for name in _LIBRARIES:
        click.echo(f"{name} {_version_of(name)}")
    click.echo(f"kernels {_kernels()}")
    ctx.exit(0)


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _kernels() -> str:
    from producers.kernels.implementations import has_compiled

    return "compiled" if has_compiled() else "of libraries; no compiler built faster ones"
