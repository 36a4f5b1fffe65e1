"""One multimodal encoder-decoder Transformer with a VAE generator head."""
