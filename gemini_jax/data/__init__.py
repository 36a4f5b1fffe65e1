"""Text and pairs: tokenizers, sources, packing and the batch loader."""
