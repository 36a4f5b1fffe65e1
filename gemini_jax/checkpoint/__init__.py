"""Checkpoints: whole trees of arrays with a manifest."""
