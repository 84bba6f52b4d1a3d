"""Checks whether a file of torch.save before torch 1.6 is complete, without unpickling it.

The file consists of five pickles: a magic number, a version, facts of the machine, the object, and
the keys of its storages. They are followed by the storages, each with its length and its values.
Only the opcodes of the pickles are read: nothing that they name is imported or called.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import IO, Any

_MAGIC = 0x1950A86A20F9469CFC6C
# Size of a value in bytes, by the last part of its storage class's name.
_ITEM_BYTES = {
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
    "Short": 2,
    "Half": 2,
    "BFloat16": 2,
    "Int": 4,
    "Float": 4,
    "Long": 8,
    "Double": 8,
}


def legacy_problem(path: Path) -> str:
    """The problem of a weight file in this format, or ``""``.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            if not any(value == _MAGIC for _, value in _operations(file)):
                return "is truncated, or no archive made by torch.save"
            for _ in range(2):
                _operations(file)
            storages = _storages(_operations(file))
            _operations(file)
        except (IndexError, ValueError):
            return f"is truncated, or no archive made by torch.save ({size:,} bytes)"
        expected = file.tell() + sum(8 + values for values in storages.values())
    return "" if size >= expected else f"has {size:,} bytes, expected {expected:,}"


def _operations(file: IO[bytes]) -> list[tuple[str, Any]]:
    """The opcodes of the next pickle with their arguments; raises ValueError if there is none."""
    return [(opcode.name, value) for opcode, value, _ in pickletools.genops(file)]


def _storages(operations: list[tuple[str, Any]]) -> dict[str, int]:
    """The size in bytes of each storage, by key; 0 if its kind is unknown.

    A storage is named by the tuple ("storage", class, key, device, number of values, view).
    """
    sizes: dict[str, int] = {}
    remembered: dict[int, Any] = {}
    values: list[Any] = []
    for name, value in operations:
        if name in ("MARK", "POP_MARK"):
            values = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            remembered[value] = values[-1] if values else None
        elif name in ("BINGET", "LONG_BINGET"):
            values.append(remembered.get(value))
        elif name == "BINPERSID":
            _, kind, key, _, count = values[:5]
            item = _ITEM_BYTES.get(str(kind).rpartition(" ")[2].removesuffix("Storage"), 0)
            sizes[str(key)] = int(count) * item
        else:
            values.append(name if value is None else value)
    return sizes
