"""Checks and measurements of fastdc on a GPU; gpu.sh runs all of them (docs/gpu.md)."""
