"""The table of export formats, which needs none of their libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from featurestore.errors import ConfigError
from manyviews.operations.installing import extra

if TYPE_CHECKING:
    from manyviews.operations.export.folder import OutFolder
    from manyviews.operations.export.plan import Export

    Writer = Callable[[Export, OutFolder], None]

FLOATS = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        writer: the function that writes it, as ``module:function``; imported when it is used.
        dtypes: the dtypes of features that it supports.
        libraries: the distributions that it needs beside those that are always installed.
        overhead_bytes: upper bound of its bytes per file in a sample, beside the values.
    """

    writer: str
    dtypes: tuple[str, ...] = FLOATS
    libraries: tuple[str, ...] = ()
    overhead_bytes: int = 0


FORMATS: Mapping[str, Format] = {
    "npy": Format("manyviews.operations.export.npy:write"),
    "parquet": Format("manyviews.operations.export.parquet:write", libraries=("pyarrow",)),
    "safetensors": Format(
        "manyviews.operations.export.safetensors:write", (*FLOATS, "bfloat16"), ("safetensors",)
    ),
    "hf": Format("manyviews.operations.export.hf:write", libraries=("pyarrow", "datasets")),
    # A member of a tar file has a header of 512 bytes and is padded to a multiple of 512.
    "webdataset": Format(
        "manyviews.operations.export.webdataset:write",
        libraries=("webdataset",),
        overhead_bytes=2048,
    ),
}
DTYPES = (*FLOATS, "bfloat16")


def check(name: str, dtype: str) -> Format:
    """The format of that name.

    Raises:
        ConfigError: the format is unknown or does not support the dtype, or a library is missing.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, found {name!r}.")
    form = FORMATS[name]
    if dtype not in form.dtypes:
        able = [other for other, known in FORMATS.items() if dtype in known.dtypes]
        advice = f"{dtype} is available with --format {', '.join(able)}." if able else ""
        raise ConfigError(
            f"--format {name} supports {' or '.join(form.dtypes)}, found --dtype {dtype}.\n{advice}"
        )
    for library in form.libraries:
        try:
            version(library)
        except PackageNotFoundError:
            raise ConfigError(
                f"--format {name} needs {library}, which is not installed.\n"
                f"Install it: {extra('export')}"
            ) from None
    return form


def load_writer(form: Format) -> Writer:
    """The function that writes a format."""
    module, _, function = form.writer.partition(":")
    return cast("Writer", getattr(importlib.import_module(module), function))
