"""The command line: one module per command, nothing here computes."""

__all__: list[str] = []  # nobody imports a window: the command is fastdc.cli.main:main
