"""Optimizing: losses, steps, metrics and the loop."""
