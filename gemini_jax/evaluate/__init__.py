"""Evaluators and their metrics, on parameters."""
