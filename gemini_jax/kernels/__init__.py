"""Hot operations: a reference and fast paths behind one function."""
