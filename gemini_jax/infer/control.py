"""What steers generated texts, as generation calls it.

N samples, Z numbers in z.
"""

from typing import Any, Protocol

import numpy as np

from gemini_jax.infer import decoding


class Controller(Protocol):
  """Steers samples towards what `generate.steer` asks for."""

  @property
  def num_candidates(self) -> int:
    """Draws of z that one sample is chosen from."""
    ...

  def steer(self, z_NZ: np.ndarray) -> np.ndarray:
    """Z of each sample from `num_candidates` consecutive draws for each."""
    ...

  def decoder(
    self, decoder: decoding.Decoder, params: Any
  ) -> tuple[decoding.Decoder, Any]:
    """The decoder that writes steered texts, and its parameters."""
    ...
