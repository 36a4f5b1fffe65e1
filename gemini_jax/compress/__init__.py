"""Compression of a finished model, layer by layer."""
