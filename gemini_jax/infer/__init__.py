"""Generating from a trained model."""
