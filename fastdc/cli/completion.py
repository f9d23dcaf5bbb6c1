"""``fastdc completion``: click's script for a shell."""

import click
from click.shell_completion import get_completion_class


def run(shell: str, quiet: bool) -> None:
    """Prints the script; unlike click, without starting the shell to see its version."""
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(click.Group("fastdc"), {}, "fastdc", "_FASTDC_COMPLETE")
    click.echo(made.source_template % made.source_vars())
