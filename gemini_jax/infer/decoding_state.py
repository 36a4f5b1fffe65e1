"""The rows that are being written: tokens, cache, and what each row needs.

B rows, T slots of the decoder's cache, Z numbers in z.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax.layers import attention
from gemini_jax.models import transformer
from gemini_jax.parallel import sharding


@flax.struct.dataclass
class State:
  """Rows that are being written. A row without tokens is free.

  Attributes:
    tokens: int32[B, T], prompt, generated tokens, then padding.
    logprobs: float32[B, T], log-probability of each generated token under
      the model, before temperature and filters; 0 elsewhere.
    starts: int32[B], length of the prompt.
    lengths: int32[B], length of prompt and generated tokens.
    limits: int32[B], the length at which a row is done.
    done: bool[B], rows to which nothing is added.
    keys: key[B], folded with a position to draw the token there.
    cache: keys and values of all tokens but perhaps the last.
    memory: the sequence that the encoder has read, or None.
    latent: float32[B, Z], z of each row, or None.
    media_latents: float32[B, T, Z], z of the medium that each row writes, at
      its placeholders; None where rows are text.
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
  media_latents: jax.Array | None = None

  def append(
    self, token_B: jax.Array, logprob_B: jax.Array, end_B: jax.Array
  ) -> 'State':
    """The state with one more token in every row that is not done.

    Args:
      token_B: the tokens.
      logprob_B: their log-probabilities.
      end_B: rows that this token ends; rows at their limit end as well.
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

  def take(self, rows_R: jax.Array) -> 'State':
    """The state of some rows, one of them perhaps several times."""
    rows = lambda leaf: leaf[rows_R]
    return dataclasses.replace(
      jax.tree.map(rows, dataclasses.replace(self, cache=None)),
      cache=jax.tree.map(lambda leaf: leaf[:, rows_R], self.cache),
    )

  def follow(self, parent_B: jax.Array) -> 'State':
    """Each row continues another row of the same prompt: `parent_B`.

    What the rows of a prompt share, such as the encoder's keys and values, is
    not copied.
    """
    take = lambda leaf: leaf[:, parent_B]
    return dataclasses.replace(
      self,
      tokens=self.tokens[parent_B],
      logprobs=self.logprobs[parent_B],
      lengths=self.lengths[parent_B],
      cache=dataclasses.replace(
        self.cache,
        self_attention=jax.tree.map(take, self.cache.self_attention),
      ),
    )


def constrain(state: State) -> State:
  """The state laid out on the mesh by the rules: rows over data, heads."""
  rows = lambda tree: jax.tree.map(
    lambda leaf: sharding.constrain(leaf, ('batch',)), tree
  )
  cache = jax.tree.map(
    lambda leaf: sharding.constrain(leaf, attention.CACHE_AXES), state.cache
  )
  return dataclasses.replace(
    rows(dataclasses.replace(state, cache=None)), cache=cache
  )


@functools.partial(jax.jit, donate_argnums=0)
def insert(state: State, row_state: State, row: Any) -> State:
  """The state with a state of one row as its row `row`; `state` is used up.

  No other row changes. One compilation serves all rows.
  """
  put = lambda leaf, new: leaf.at[row].set(new[0])
  put_layers = lambda leaf, new: leaf.at[:, row].set(new[:, 0])
  cache = jax.tree.map(put_layers, state.cache, row_state.cache)
  rest = jax.tree.map(
    put,
    dataclasses.replace(state, cache=None),
    dataclasses.replace(row_state, cache=None),
  )
  return constrain(dataclasses.replace(rest, cache=cache))


@functools.partial(jax.jit, donate_argnums=0)
def release(state: State, row: Any) -> State:
  """The state with row `row` free: without tokens; `state` is used up."""
  empty = lambda leaf: leaf.at[row].set(0)
  return dataclasses.replace(
    state,
    starts=empty(state.starts),
    lengths=empty(state.lengths),
    limits=empty(state.limits),
    done=state.done.at[row].set(True),
  )


@functools.partial(jax.jit, static_argnums=2)
def window(values_BT: jax.Array, starts_B: Any, num: int) -> jax.Array:
  """`num` values of each row from its start on, [B, num]."""
  slots_BN = jnp.asarray(starts_B)[:, None] + jnp.arange(num)[None]
  return jnp.take_along_axis(
    values_BT, jnp.minimum(slots_BN, values_BT.shape[1] - 1), axis=1
  )
