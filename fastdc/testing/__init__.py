"""Worlds with known answers, the float64 reference, and replays of error tables: for users' tests, too."""
