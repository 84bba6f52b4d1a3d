"""``demo``: the whole pipeline on a small data set."""

from __future__ import annotations

from pathlib import Path

import click

from manyviews.commands.options import FOLDER, common_options, say


@click.command()
@click.option(
    "--out-dir", type=FOLDER, default=Path("demo"), show_default=True, help="Working folder."
)
@common_options
def demo(out_dir: Path) -> int:
    """Run the whole pipeline on a small data set with tiny checkpoints of the real model classes.

    Creates the data and the checkpoints, kills a build with SIGKILL and resumes it, writes the
    published pipeline's files, and trains a linear probe from the store.

    \b
    Example:
      python cli.py demo --out-dir demo
    """
    from manyviews.operations.demo.demo import run

    run(out_dir, say=say)
    return 0
