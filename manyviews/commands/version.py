"""``--version``: versions of this program and of the libraries that affect numbers; the kernels.

No library is imported, because that would take seconds; ``check`` names the device.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from featurestore import __version__
from manyviews.operations.check import libraries

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
    """Prints the versions and exits; a library may be ``not installed``."""
    if not value:
        return
    click.echo(f"manyviews {__version__}, Python {platform.python_version()}")
    for name in _LIBRARIES:
        click.echo(f"{name} {_version_of(name)}")
    click.echo(f"kernels {_kernels()}")
    if not libraries.torchvision_fits():
        click.echo(f"{libraries.TORCHVISION}: {libraries.REMEDY}")
    ctx.exit(0)


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _kernels() -> str:
    from producers.kernels.implementations import has_compiled

    return "compiled" if has_compiled() else "of libraries; the faster compiled ones were not built"
