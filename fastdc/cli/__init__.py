"""The command line: one module per command. Commands read options, call the library and print; they compute nothing."""

__all__: list[str] = []  # no other wing imports the command line; the entry point is fastdc.cli.main:main
