"""The options and the help of every command. Importing one imports click and no library, so that --help is quick."""

__all__: list[str] = []
