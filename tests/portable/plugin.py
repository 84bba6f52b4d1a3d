"""Pytest plugin: runs the tests of reading as on another system, see ``sitecustomize``.

As on Windows, nothing can be written: the stores and files to read come from a process that was
forked before, and still sees Linux.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import hypothesis.internal.conjecture.engine  # noqa: F401
import sitecustomize

SYSTEM = os.environ[sitecustomize.VARIABLE]
_WRITERS = {
    "featurestore.imdb.materialize": ("materialize",),
    "featurestore.imdb.labels": ("write_labels", "write_augmented_labels"),
    "tests.featurestore.stores": ("make_store", "remake"),
}


def _serve(calls: Connection) -> None:
    """Calls the requested functions in this process until the other one has ended."""
    while True:
        try:
            folder, module, name, arguments, named = calls.recv()
        except EOFError:
            os._exit(0)
        os.chdir(folder)
        try:
            calls.send((getattr(importlib.import_module(module), name)(*arguments, **named), None))
        except Exception as e:  # noqa: BLE001  raised again in the other process
            calls.send((None, e))


def _fork_writer() -> Connection:
    here, there = Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
        if os.fork() == 0:
            here.close()
            sys.meta_path[:] = [f for f in sys.meta_path if "sitecustomize" not in repr(f)]
            _serve(there)
    there.close()
    return here


def _elsewhere(calls: Connection, module: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        calls.send((Path.cwd(), module, name, arguments, named))
        result, error = calls.recv()
        if error is not None:
            raise error
        return result

    return call


def _replace_writers(calls: Connection) -> None:
    for module, names in _WRITERS.items():
        for name in names:
            setattr(importlib.import_module(module), name, _elsewhere(calls, module, name))


def _import_lightning() -> None:
    """Imports Lightning beside a CPU build of torch, before this project is imported."""
    path = Path(__file__).parents[2] / "featurestore/system/torchvision_ops.py"
    spec = spec_from_file_location("torchvision_ops", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ensure_importable()
    importlib.import_module("lightning.pytorch")


_calls = _fork_writer()
_import_lightning()
importlib.import_module("featurestore")  # switches Linux off
assert sys.platform == sitecustomize.SYSTEMS[SYSTEM]
if SYSTEM == "Windows":
    _replace_writers(_calls)
