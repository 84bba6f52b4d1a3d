"""The command line: call a command, and turn errors into messages and exit codes.

Each command imports its heavy libraries itself, so that ``--help`` and option errors are immediate.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from typing import Any, TextIO

import click

from featurestore.errors import InterruptedBuildError, ManyViewsError, ManyViewsWarning
from featurestore.system.refusals import explained
from manyviews.commands.build import build
from manyviews.commands.check import check
from manyviews.commands.demo import demo
from manyviews.commands.export import export
from manyviews.commands.files import labels, materialize
from manyviews.commands.options import say
from manyviews.commands.probe import probe
from manyviews.commands.report import report
from manyviews.commands.status import status
from manyviews.commands.verify import verify
from manyviews.commands.version import print_version
from manyviews.commands.views import views


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Show the versions of this program and its libraries, and which kernels it has.",
)
def cli() -> None:
    """Frozen-backbone features with many views of every sample.

    build makes a store from posters and synopses, materialize and labels write the files of the
    published MM-IMDb pipeline, and FeatureDataset reads the store while training.

    Exit codes: 0 done, 1 failed (--resume continues), 2 usage or configuration, 3 done with bad
    samples (listed), 129, 130 or 143 interrupted (--resume continues).
    """


for command in (
    *(check, build, status, verify),
    *(materialize, labels, export, probe),
    *(views, report, demo),
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    _open_closed_streams()
    try:
        code = run_command(arguments)
    except KeyboardInterrupt:  # a second one, while the first was being reported
        code = 130
    if arguments is None:
        # The process is about to exit: one more Ctrl-C must not print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run_command(arguments: list[str] | None) -> int:
    """Runs a command and returns its exit code; every error becomes a message."""
    root: dict[str, Any] = {}
    show, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        return cli.main(arguments, prog_name="manyviews", standalone_mode=False, obj=root) or 0
    except ManyViewsError as e:
        message = "\n".join([str(e), *getattr(e, "__notes__", ())])
        label = "" if isinstance(e, InterruptedBuildError) else "Error: "
        return fail(message, e.exit_code, debug=root.get("debug", False), label=label)
    except click.ClickException as e:
        e.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        is_build = root.get("command") == "build"
        how = "`build --resume` continues" if is_build else "run the same command again"
        return fail(f"Interrupted: {how}.", 130, debug=False, label="")
    except BrokenPipeError:
        # The reader of stdout has closed the pipe: print nothing more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as e:
        return fail(_missing_package(e), 2, debug=root.get("debug", False))
    except Exception as e:  # noqa: BLE001  the top level of the process
        refused = explained(e)
        if isinstance(e, OSError) and _was_printing(e):
            message = f"Could not write to standard output: {e.strerror}."
        elif refused is not None:
            message = str(refused)
        else:
            message = _defect(e)
        return fail(message, 1, debug=root.get("debug", False))
    finally:
        warnings.showwarning = show


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001  the signature of warnings.showwarning
    line: str | None = None,
) -> None:
    """Prints a warning of this project as one line, and any other warning as Python does."""
    if issubclass(category, ManyViewsWarning):
        say(f"Warning: {message}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def _defect(error: Exception) -> str:
    return f"{type(error).__name__}: {error}\nThis is a defect; --debug shows where it happened."


def _missing_package(error: ModuleNotFoundError) -> str:
    """Names the package that a partial installation lacks; one of ours missing is a defect."""
    name = (error.name or "").partition(".")[0]
    if name in ("", "consumers", "featurestore", "manyviews", "producers"):
        return _defect(error)
    package = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(name, name)
    return (
        f"This command needs the package {package}, which is not installed.\n"
        "Install manyviews with its dependencies, or this package alone."
    )


def _was_printing(e: OSError) -> bool:
    """Whether the error was raised by a write to standard output."""
    frames = traceback.walk_tb(e.__traceback__)
    return any(frame.f_globals.get("__name__") == "click.utils" for frame, _ in frames)


def _open_closed_streams() -> None:
    """Reopens a closed stdout or stderr on /dev/null.

    Otherwise the next open() would get descriptor 1 or 2.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w"))


def fail(message: str, code: int, *, debug: bool, label: str = "Error: ") -> int:
    """Prints an error, even with ``--quiet``; returns the exit code."""
    if debug:
        traceback.print_exc()
    say(f"{label}{message}", error=True)
    return code
