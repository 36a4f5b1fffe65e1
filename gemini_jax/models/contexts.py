"""What all layers of a stack read beside the residual stream, made once.

B batch, T length, S key length, D width, Z numbers in z, F rotary frequencies.
"""

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.layers import embedding
from gemini_jax.models import transformer


def encoder(
  config: config_lib.Model, sequence: batch_lib.Sequence
) -> transformer.Context:
  """Of an encoder, whose tokens see all of their segment."""
  return transformer.Context(
    views=views(config, sequence, sequence, causal=False),
    positions_BT=sequence.positions,
    real_BT=sequence.segments > 0,
  )


def decoder(
  config: config_lib.Model,
  sequence: batch_lib.Sequence,
  *,
  num_slots: int | None = None,
  memory_BSD: jax.Array | None = None,
  memory: batch_lib.Sequence | None = None,
  prefix_BT: jax.Array | None = None,
  latent_BZ: jax.Array | None = None,
) -> transformer.Context:
  """Of a decoder, whose tokens see those before them.

  Args:
    config: of the model.
    sequence: tokens to read.
    num_slots: of the cache, if there is one: slot s holds position s.
    memory_BSD: see `Gemini.decode_hidden`, as the rest.
    memory: the sequence that the encoder read.
    prefix_BT: what may be attended to from before it.
    latent_BZ: z of each row.
  """
  keys, positions_BT = sequence, sequence.positions
  if num_slots is not None:
    # Slots that are not yet written lie in the future.
    shape = (sequence.tokens.shape[0], num_slots)
    slots_BS = jnp.broadcast_to(jnp.arange(num_slots), shape)
    keys = batch_lib.Sequence(slots_BS, slots_BS, jnp.ones(shape, jnp.int32))
    positions_BT = jnp.where(sequence.segments > 0, positions_BT, num_slots)
  cross_mask = None
  if memory is not None:
    cross_mask = masking.visible(sequence, memory)
  return transformer.Context(
    views=views(config, sequence, keys, causal=True, prefix_BS=prefix_BT),
    positions_BT=positions_BT,
    cross_mask=cross_mask,
    memory_BSD=memory_BSD,
    real_BT=sequence.segments > 0,
    latent_BZ=latent_BZ,
  )


def views(
  config: config_lib.Model,
  queries: batch_lib.Sequence,
  keys: batch_lib.Sequence,
  *,
  causal: bool,
  prefix_BS: jax.Array | None = None,
) -> dict[str, transformer.View]:
  """The masks and rotary angles of each kind of layer in the pattern.

  Args:
    config: of the model.
    queries: the sequence that attends.
    keys: the sequence that is attended to.
    causal: to no later positions.
    prefix_BS: keys that all queries of their segment may attend to.
  """
  rotary = {
    'global': {
      'base': config.rope_base,
      'scale': config.rope_scale,
      'llama3_context': config.rope_llama3_context,
      'llama3_factors': config.rope_llama3_factors,
    },
    'local': {'base': config.rope_base_local or config.rope_base},
  }
  windows = {'global': None, 'local': config.window}
  views = {}
  for kind in sorted(set(config.attention_pattern)):
    angles = None
    if config.position == 'rotary':
      frequencies_F = embedding.rotary_frequencies(
        config.head_width, **rotary[kind]
      )
      angles = embedding.rotary_angles(queries.positions, frequencies_F)
    mask = masking.visible(
      queries,
      keys,
      causal=causal,
      window=windows[kind],
      prefix_BS=prefix_BS,
    )
    views[kind] = transformer.View(mask, angles)
  return views
