"""Pytest plugin: runs the tests of reading as on another system, see ``sitecustomize``.

As on Windows, nothing can be written: the stores and files to read come from a process that was
forked before, and still sees Linux.
"""

import importlib
import os
import sys
import warnings
from multiprocessing.connection import Connection, Pipe

import hypothesis.internal.conjecture.engine  # noqa: F401
import sitecustomize
import xdist  # noqa: F401

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
            module, name, arguments, named = calls.recv()
        except EOFError:
            os._exit(0)
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


def _elsewhere(calls: Connection, module: str, name: str):
    def call(*arguments, **named):
        calls.send((module, name, arguments, named))
        result, error = calls.recv()
        if error is not None:
            raise error
        return result

    return call


def _replace_writers(calls: Connection) -> None:
    for module, names in _WRITERS.items():
        for name in names:
            setattr(importlib.import_module(module), name, _elsewhere(calls, module, name))


_calls = _fork_writer()
importlib.import_module("featurestore")  # switches Linux off
assert sys.platform == sitecustomize.SYSTEMS[SYSTEM]
if SYSTEM == "Windows":
    _replace_writers(_calls)
