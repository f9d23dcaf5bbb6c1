"""Random and damaged inputs for everything that reads: see ``tools/fuzz.py``."""
