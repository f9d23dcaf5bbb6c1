"""The options and the help of ``fastdc completion``; :mod:`fastdc.cli.completion` does it."""

from typing import Any

import click

from fastdc.cli.options import QUIET

_EPILOG = """\b
Put one line where your shell starts, and open a new shell:
  bash, ~/.bashrc:     eval "$(fastdc completion bash)"
  zsh, ~/.zshrc:       eval "$(fastdc completion zsh)"
  fish, once:
    fastdc completion fish > ~/.config/fish/completions/fastdc.fish

\b
Examples:
  fastdc completion bash          print the script
  fastdc classify --ru<TAB>       then completes to --rule
"""


@click.command(name="completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")), metavar="bash|zsh|fish")
@QUIET
def command(**options: Any) -> None:
    """Print the script that lets your shell complete fastdc's commands, options, choices, models and files on TAB."""
    from fastdc.cli.completion import run

    run(**options)
