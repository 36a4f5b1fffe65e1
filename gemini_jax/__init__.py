"""One multimodal encoder-decoder Transformer with a VAE generator head."""

from gemini_jax import host

# Here, so that it comes before jax starts whoever starts it: a command, a test
# or a notebook.
host.avoid_faulty_fusions()
