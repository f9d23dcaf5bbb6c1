"""What several test files share: worlds, doubles, cases and runs. Imported as ``helpers.<module>``."""
