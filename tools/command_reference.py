"""Print the help of every command as ``docs/command-line.md``.

    python tools/command_reference.py > docs/command-line.md

A test compares the page with this output, so that no option is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from manyviews import main

_SETTINGS = {**main.cli.context_settings, "terminal_width": 100}
_HEAD = """# The command line

`python cli.py COMMAND` in the repository, `manyviews COMMAND` where it is installed. Results
are printed on standard output, everything else on standard error; progress displays and colours are
for terminals only (`NO_COLOR` turns colours off). This page is the output of
`python tools/command_reference.py`.

The installed command completes commands, options and features in bash, zsh and fish. This line
installs the script for bash; for the other shells, use `zsh_source` and `~/.zshrc`, or
`fish_source` and `~/.config/fish/completions/manyviews.fish`:

```
_MANYVIEWS_COMPLETE=bash_source manyviews >> ~/.bashrc
```

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; `--resume` continues |
| 2 | usage, configuration or changed inputs; nothing that was committed was changed |
| 3 | done, with bad samples: listed, each with a placeholder |
| 129, 130, 143 | interrupted; `--resume` continues |
"""


def page() -> str:
    """The Markdown page with the help text of every command and the exit codes."""
    root = click.Context(main.cli, info_name="manyviews", **_SETTINGS)
    parts = [_HEAD, _block(root)]
    for name, command in sorted(main.cli.commands.items()):
        context = click.Context(command, parent=root, info_name=name, **_SETTINGS)
        parts.append(f"## {name}\n\n{_block(context)}")
    return "\n".join(parts)


def _block(context: click.Context) -> str:
    return f"```\n{context.get_help()}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
