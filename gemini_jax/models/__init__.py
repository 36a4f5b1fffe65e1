"""Models made of layers, from a config."""
