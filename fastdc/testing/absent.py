"""Programs that run as if some packages were not installed, to test the messages that name them."""

WITHOUT = """
import sys

class _Hiding:
    hidden = set(sys.argv.pop(1).split(","))

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(_Hiding, sys.meta_path)
"""
"""Lines to put before a program for ``python -c``, whose first argument lists the packages to hide, with commas."""
