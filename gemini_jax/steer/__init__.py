"""Steering what is written: attributes in z, and guided decoding."""
