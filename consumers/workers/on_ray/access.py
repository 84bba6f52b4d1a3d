"""Who may use a Ray cluster, and the folder of one that a build starts on this machine."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.errors import ConfigError
from featurestore.wording import first_line

# The address that starts a cluster on this machine.
LOCAL = "local"
# Variables of the environment that are set while the driver runs.
_VARIABLES = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_NUM_REDIS_GET_RETRIES",
    "RAY_USAGE_STATS_ENABLED",
)
# Time in which a cluster has to accept a connection, in seconds.
_ANSWER_S = 10.0
# Longest path of the folder for temporary files that Ray's folder may be in, in characters: the
# paths of sockets are limited.
_LONGEST = 20
# Variable of the environment that marks the processes of a local cluster, by its folder.
_MARK = "MANYVIEWS_RAY_FOLDER"
# Ends the processes of a local cluster when the driver has ended, in whatever way, and removes its
# folder. Some of Ray's processes may otherwise stay for minutes on a busy machine.
_JANITOR = (
    'cat; for i in 1 2 3 4 5; do left=$(grep -lzxF "$2=$1" /proc/[0-9]*/environ 2>/dev/null | '
    'cut -d/ -f3); [ -z "$left" ] || kill -9 $left; rm -rf -- "$1"; '
    '[ -n "$left" ] || [ -e "$1" ] || exit; sleep 1; done'
)


@contextmanager
def authentication(address: str) -> Iterator[None]:
    """Sets how this process and a cluster that it starts prove who they are.

    Without a token, everybody who can reach the cluster could run programs on it. Ray itself would
    write a token to the home folder.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not ({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    else:
        # Ray would try 20 times, for 40 s each.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def require_answer(address: str) -> None:
    """Refuses an address ``HOST:PORT`` at which nothing accepts a connection.

    Ray would try again for several minutes.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as e:
        raise no_cluster(address, e) from e


def no_cluster(address: str, error: Exception) -> ConfigError:
    """The error that no cluster can be used at an address."""
    return ConfigError(
        f"No Ray cluster could be used at {address}: {first_line(error)}\n"
        "`ray status` on one of its machines shows whether it runs. A cluster with a token needs "
        "it\nin RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH here too."
    )


def require_private(host: str) -> None:
    """Refuses a cluster without authentication that other machines can reach."""
    is_private = host.startswith("127.") or host in ("localhost", "::1", "[::1]")
    if os.environ["RAY_AUTH_MODE"].lower() == "disabled" and not is_private:
        raise ConfigError(
            f"RAY_AUTH_MODE=disabled lets everybody who reaches {host} run programs on the "
            "cluster.\nUnset it: --ray local then uses a random token. Start another cluster with "
            "RAY_AUTH_MODE=token\nand RAY_AUTH_TOKEN on each machine, and set both here."
        )


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for the files of a local cluster, which is removed even if this process is killed.

    Raises:
        ConfigError: it cannot be created.
    """
    base = tempfile.gettempdir()
    if len(base) > _LONGEST:
        base = "/tmp"  # noqa: S108  its folder has a random name, and belongs to this user alone
    try:
        folder = tempfile.mkdtemp(prefix="mv-ray-", dir=base)
    except OSError as e:
        raise ConfigError(f"No folder for Ray's files could be created: {e.strerror}.") from e
    janitor = subprocess.Popen(
        ["sh", "-c", _JANITOR, "sh", folder, _MARK],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.environ[_MARK] = folder
    try:
        yield Path(folder)
    finally:
        del os.environ[_MARK]
        shutil.rmtree(folder, ignore_errors=True)
        janitor.kill()
        janitor.communicate()
