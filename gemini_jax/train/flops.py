"""FLOPs of a training step, and the share of the devices' peak it reaches."""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import media_reader
from gemini_jax.data import task as task_lib
from gemini_jax.models import media_embeddings
from gemini_jax.parallel import chip


def peak_flops(device: Any, dtype: str) -> float | None:
  """Peak FLOP/s of a device in a dtype; None where it is not known."""
  if dtype != 'bfloat16':
    return None
  known = chip.find(device)
  return known.flops if known else None


def forward_flops(
  config: config_lib.Model,
  length: int,
  memory_length: int = 0,
  media: Mapping[str, int] | None = None,
) -> float:
  """FLOPs of the matrix products of a forward pass over one sequence.

  In causal attention only the pairs that are not masked count.

  Args:
    config: the model, `vocab_size` set.
    length: tokens of the decoder.
    memory_length: tokens of the encoder.
    media: how many media of each kind the sequence has room for, in its inputs
      and targets together.
  """
  width, hidden = config.width, config.mlp_width
  heads = config.num_heads * config.head_width
  kv_heads = config.kv_heads * config.head_width
  projections = 2 * width * (heads + kv_heads)
  if config.num_experts:
    # Of the experts that a token is sent to.
    hidden = config.experts_per_token * config.expert_width
    hidden += config.shared_expert_dim
  feedforward = (3 if config.gated else 2) * width * hidden
  feedforward += width * config.num_experts

  def pairs(length: int, kind: str, causal: bool) -> float:
    """Query-key pairs that are not masked."""
    reach = min(config.window, length) if kind == 'local' else length
    past = reach * length - reach * (reach - 1) / 2
    return past if causal else 2 * past - length

  def stack(num_layers: int, length: int, causal: bool = False) -> float:
    pattern = config.attention_pattern
    attended = sum(
      pairs(length, pattern[i % len(pattern)], causal)
      for i in range(num_layers)
    )
    return 4 * heads * attended + 2 * num_layers * length * (
      projections + feedforward
    )

  flops = stack(config.num_layers, length, True)
  flops += 2 * length * width * (config.vocab_size or 0)
  if config.encodes:
    flops += stack(config.encoder_layers, memory_length)
  if config.cross:
    flops += config.num_layers * (
      4 * width * (heads * length + kv_heads * memory_length)
      + 4 * heads * length * memory_length
    )
  if config.contrast_dim:
    # The encoder reads the targets as well.
    flops += stack(config.encoder_layers, length)
    flops += 2 * 2 * width * config.contrast_dim
  if config.latent.dim:
    flops += _latent_flops(config, length, memory_length)
  for kind in media_embeddings.written(config):
    head = media_embeddings.part(config, kind).autoencoder
    flops += 2 * length * width * head.num_components * (1 + 2 * head.dim)
  if media:
    flops += media_flops(config, tuple(media.items()))
  return flops


def _latent_flops(
  config: config_lib.Model, length: int, memory_length: int
) -> float:
  """FLOPs of pooling the encoder's outputs to z, and of z in the decoder."""
  width, dim, slots = config.width, config.latent.dim, config.latent.memory
  pool = width // config.num_heads * config.num_heads
  flops = 4 * width * pool * (1 + memory_length) + 4 * pool * memory_length
  flops += 2 * width * 2 * dim
  if config.latent.embedding:
    flops += 2 * dim * width
  kv_heads, heads = (
    count * config.head_width for count in (config.kv_heads, config.num_heads)
  )
  return flops + config.num_layers * slots * (
    4 * dim * kv_heads + 4 * heads * length
  )


@functools.lru_cache(maxsize=16)
def media_flops(
  config: config_lib.Model, media: tuple[tuple[str, int], ...]
) -> float:
  """FLOPs of the encoders and autoencoders of media, counted in their trace.

  Args:
    config: the model.
    media: how many of each kind.
  """
  config = dataclasses.replace(
    config, attention_kernel='chunked', scan_layers=True, remat=False
  )
  reader = media_embeddings.MediaEmbedder(config)
  # Traced for one device, so that no operand is sharded.
  one = Mesh(
    np.array(jax.local_devices()[:1]).reshape([1] * len(config_lib.AXES)),
    config_lib.AXES,
  )
  with jax.set_mesh(one):
    shapes = jax.eval_shape(
      lambda: {
        kind: jax.tree.map(
          jnp.asarray, batch_lib.blank_media(kind, config, 1, count)
        )
        for kind, count in media
      }
    )
    variables = jax.eval_shape(reader.init, jax.random.key(0), shapes)
    traced = jax.make_jaxpr(reader.apply)(nn.meta.unbox(variables), shapes)
  return product_flops(traced.jaxpr)


def product_flops(jaxpr: Any) -> float:
  """FLOPs of the matrix products of a traced function.

  Of a condition, such as on the platform, the cheapest branch counts.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    inner = [
      product_flops(getattr(part, 'jaxpr', part))
      for value in equation.params.values()
      for part in (value if isinstance(value, tuple | list) else (value,))
      if hasattr(getattr(part, 'jaxpr', part), 'eqns')
    ]
    match equation.primitive.name:
      case 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        sizes = math.prod(shape[dim] for dim in contracted)
        total += 2 * sizes * equation.outvars[0].aval.size
      case 'ragged_dot_general':
        # Each row is multiplied by the matrix of its group.
        sizes = equation.invars[0].aval.shape[-1]
        total += 2 * sizes * equation.outvars[0].aval.size
      case 'scan':
        total += equation.params['length'] * sum(inner)
      case 'cond':
        total += min(inner)
      case _:
        total += sum(inner)
  return total


def step_flops(config: config_lib.Config) -> float:
  """FLOPs of one training step, without recomputation.

  Three forward passes: the gradient by the inputs of a product costs as much as
  the product, and so does that by its matrix, which a base that is tuned lacks.
  What is added to it is left out. Below a head that is tuned there is none.
  With preferences a row has two sequences, and the reference reads both, too.
  """
  data, memory = config.data, 0
  if config.model.encodes:
    reads_inputs = data.objective == 'seq2seq'
    # Without inputs the encoder of a latent reads the targets.
    memory = data.inputs_length if reads_inputs else data.sequence_length
  media = collections.Counter()
  if config.model.kinds and data.tasks:
    tasks = task_lib.from_config(data)
    for parts in media_reader.sequence_parts(data).values():
      media.update(task_lib.max_media(tasks, parts))
  sequence = forward_flops(config.model, data.sequence_length, memory, media)
  passes = {'full': 3, 'head': 1}.get(config.tune.method, 2)
  if data.rejected_field:
    passes = 2 * (passes + 1)
  return passes * data.batch_size * sequence


def mfu(config: config_lib.Config, seconds: float) -> float | None:
  """Model FLOPs utilisation: the share of the peak that a step reaches.

  None where the peak of the devices is not known.
  """
  peak = peak_flops(jax.devices()[0], config.model.dtype)
  if peak is None:
    return None
  return step_flops(config) / seconds / peak / jax.device_count()
