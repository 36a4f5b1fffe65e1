"""The state of rows that are being written.

B rows, T slots of the decoder's cache, Z numbers in z.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax.models import transformer


@flax.struct.dataclass
class State:
  """Rows that are being written.

  Attributes:
    tokens: int32[B, T], the prompt, what was generated, then padding.
    logprobs: float32[B, T], log-probability of each generated token under
      the model itself, before temperature and filters; 0 elsewhere.
    starts: int32[B], tokens of the prompt.
    lengths: int32[B], tokens so far.
    limits: int32[B], the length at which a row is done.
    done: bool[B], rows that are written no further.
    keys: key[B], folded with a position to draw the token there.
    cache: keys and values of all but perhaps the last token.
    memory: the sequence that the encoder read, or None.
    latent: float32[B, Z], z of each row, or None.
    written: float32[B, T, Z], z of the medium that each row writes, at its
      placeholders; None: rows are text.
  """

  tokens: jax.Array
  logprobs: jax.Array
  starts: jax.Array
  lengths: jax.Array
  limits: jax.Array
  done: jax.Array
  keys: jax.Array
  cache: transformer.Cache
  memory: batch_lib.Sequence | None = None
  latent: jax.Array | None = None
  written: jax.Array | None = None

  def append(
    self, token_B: jax.Array, logprob_B: jax.Array, end_B: jax.Array
  ) -> 'State':
    """The state with one token more in every row that is not done.

    Args:
      token_B: the tokens.
      logprob_B: their log-probabilities.
      end_B: rows that are done with this token, beside those at their limit.
    """
    rows_B = jnp.arange(self.tokens.shape[0])
    slots_B = jnp.where(self.done, self.tokens.shape[1], self.lengths)
    lengths_B = self.lengths + ~self.done
    return dataclasses.replace(
      self,
      tokens=self.tokens.at[rows_B, slots_B].set(token_B, mode='drop'),
      logprobs=self.logprobs.at[rows_B, slots_B].set(logprob_B, mode='drop'),
      lengths=lengths_B,
      done=self.done | end_B | (lengths_B >= self.limits),
    )
