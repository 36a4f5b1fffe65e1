"""Experiments: one file a study, each with get_config()."""
