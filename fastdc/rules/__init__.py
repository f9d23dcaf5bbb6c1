"""Stopping rules; one module each. ``base`` states the protocol."""
