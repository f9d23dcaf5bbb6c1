"""``python -m fastdc`` is the command ``fastdc``."""

from importlib import import_module

if __name__ == "__main__":
    import_module("fastdc.cli.main").main()
