"""Linen modules with keyword arguments; no config, no mesh."""
