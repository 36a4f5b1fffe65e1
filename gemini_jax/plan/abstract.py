"""Shapes and shardings of all inputs of the compiled steps.

B rows, T decoder length, S encoder length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import media_reader
from gemini_jax.infer import decoding, decoding_state
from gemini_jax.layers import attention
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import pipeline, sharding
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib


def layout(config: config_lib.Config, devices: Sequence[Any]) -> Any:
  """The mesh; and on it the model, the optimizer and the abstract state.

  Raises:
    ConfigError: the config does not match the devices.
  """
  mesh = mesh_lib.make_mesh(config.parallel, devices)
  sharding.check_batch(mesh, config.data.batch_size, 'data.batch_size')
  pipeline.check(config, mesh)
  parts = session_lib.abstract_parts(config, mesh)
  state_lib.check_patterns(config, parts[2].params)
  return mesh, parts


def batch(config: config_lib.Config, mesh: Mesh) -> batch_lib.Batch:
  """Shapes and shardings of a batch."""
  data = config.data
  media = media_reader.blank(data, config.model, data.batch_size)

  def place(shape, dtype):
    placement = sharding.batch_sharding(mesh, len(shape))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placement)

  def array(length, dtype=jnp.int32):
    return place((data.batch_size, length), dtype)

  def sequence(length, name='decoder'):
    return batch_lib.Sequence(
      array(length),
      array(length),
      array(length),
      jax.tree.map(lambda x: place(x.shape, x.dtype), media.get(name, {})),
    )

  length = data.sequence_length
  made = batch_lib.Batch(
    decoder=sequence(length),
    targets=array(length),
    weights=array(length, jnp.float32),
    prefix=array(length, jnp.bool_) if data.objective == 'prefix' else None,
    encoder=sequence(data.inputs_length, 'encoder')
    if config.model.encoder_layers
    else None,
  )
  rejected = made if data.rejected_field else None
  values = None
  if config.model.output != 'classes':
    shape = (data.batch_size, 1, config.model.num_classes)
    values = place(shape, jnp.float32)
  return dataclasses.replace(made, rejected=rejected, values=values)


def decoding_rows(
  config: config_lib.Config, model: gemini.Gemini, mesh: Mesh, num_rows: int
) -> tuple[decoding.Decoder, decoding_state.State]:
  """A decoder, and the shapes and shardings of its state."""
  encodes = config.model.cross
  decoder = decoding.Decoder(
    model,
    num_rows,
    pad_id=0,
    eos_id=1,
    memory_length=config.data.inputs_length if encodes else 0,
  )
  sharding.check_batch(mesh, num_rows, 'plan.decode_batch_size')

  def place(names, leaf) -> Any:
    spec = sharding.spec(mesh, names, leaf.shape, 'the cache')
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
    )

  cache = jax.eval_shape(
    lambda: gemini.init_cache(
      config.model, num_rows, decoder.length, decoder.memory_length
    )
  )

  def row(dtype, *dims) -> Any:
    return place(
      ('batch', *(None for _ in dims)),
      jax.ShapeDtypeStruct((num_rows, *dims), dtype),
    )

  def sequence(length):
    return batch_lib.Sequence(*(row(jnp.int32, length) for _ in range(3)))

  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_rows))
  return decoder, decoding_state.State(
    tokens=row(jnp.int32, decoder.length),
    logprobs=row(jnp.float32, decoder.length),
    starts=row(jnp.int32),
    lengths=row(jnp.int32),
    limits=row(jnp.int32),
    done=row(jnp.bool_),
    keys=place(('batch',), keys),
    cache=jax.tree.map(lambda leaf: place(attention.CACHE_AXES, leaf), cache),
    memory=sequence(decoder.memory_length) if encodes else None,
    latent=row(jnp.float32, config.model.latent.dim)
    if config.model.latent.dim
    else None,
  )


def local_bytes(tree: Any) -> int:
  """Bytes on one device of a tree of shapes with shardings."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
