"""``completion``: the script by which a shell completes commands, options and features."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from commands.options import common_options

PROGRAM = "manyviews"
_VARIABLE = "_MANYVIEWS_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the script that completes commands, options and features in a SHELL.

    Needs the installed command, manyviews.

    \b
    Example:
      python cli.py completion bash >> ~/.bashrc
    """
    made = get_completion_class(shell)
    assert made is not None  # click knows these three
    click.echo(made(ctx.find_root().command, {}, PROGRAM, _VARIABLE).source())
    return 0
