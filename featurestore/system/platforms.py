"""Systems other than Linux: they read stores, but write none."""

from __future__ import annotations

import sys

from featurestore.errors import ConfigError

# The mapper of chunks, advice to the kernel and the processes of a build are written for Linux.
ON_LINUX = sys.platform == "linux"
_NAMES = {"darwin": "macOS", "win32": "Windows"}


def require_linux(what: str) -> None:
    """Refuses other systems.

    Args:
        what: the first words of the message, for example ``A build``.

    Raises:
        ConfigError: this is not Linux.
    """
    if not ON_LINUX:
        raise needs_linux(what)


def needs_linux(what: str) -> ConfigError:
    """The error for something that this system does not have."""
    return ConfigError(
        f"{what} needs Linux, and this is {_NAMES.get(sys.platform, sys.platform)}, which only "
        "reads stores.\nUse a Linux machine, a container or WSL, and copy the result here."
    )
