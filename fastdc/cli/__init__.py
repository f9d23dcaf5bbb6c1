"""The command line. Commands read options, call the library and print; they compute nothing.

``commands`` has the options and the help of each command, and a module of the command's name does it. The first import
click only, so that --help, completion and typing errors are quick.
"""

__all__: list[str] = []  # no other wing imports the command line; the entry point is fastdc.cli.main:main
