"""The formats that there are, as far as they are known without their libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from manyviews.operations.export.folder import OutFolder
    from manyviews.operations.export.plan import Export

    Writer = Callable[[Export, OutFolder], None]

FLOATS = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        writer: ``module:function``, imported when it is used.
        dtypes: the dtypes of features that it can hold.
        libraries: the distributions that it needs beyond those that are always installed.
        overhead_bytes: what it spends on a sample beyond the values, at most.
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
    # A member of a tar file has a header of 512 bytes and is filled up to a multiple of that.
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
        ConfigError: there is none, it cannot hold the dtype, or a library is not installed.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format is one of {', '.join(FORMATS)}, found {name!r}.")
    found = FORMATS[name]
    if dtype not in found.dtypes:
        able = [other for other, known in FORMATS.items() if dtype in known.dtypes]
        advice = f"{dtype} can be had with --format {', '.join(able)}." if able else ""
        raise ConfigError(
            f"{name} holds {' or '.join(found.dtypes)}, --dtype {dtype} was asked for.\n{advice}"
        )
    for library in found.libraries:
        try:
            version(library)
        except PackageNotFoundError:
            raise ConfigError(
                f"--format {name} needs {library}, which is not installed.\n"
                'Install it: pip install "manyviews[export]"'
            ) from None
    return found


def load_writer(form: Format) -> Writer:
    """The function that writes a format."""
    module, _, function = form.writer.partition(":")
    return cast("Writer", getattr(importlib.import_module(module), function))
