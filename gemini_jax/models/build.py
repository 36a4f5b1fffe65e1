"""The network of a config as it runs on a mesh, and what its parameters are."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax.kernels import dot_product_attention
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import pipeline, sharding

# The token table gets a multiple of this many rows: it then divides evenly.
VOCAB_MULTIPLE = 64
# Rows of the token table while the tokenizer is not known yet.
_ANY_VOCAB = 1 << 20


def with_vocab(config: config_lib.Config, size: int) -> config_lib.Config:
  """The config with a token table for a tokenizer of `size` tokens."""
  rows = config.model.vocab_size
  if rows is None:
    least = size + config.model.num_placeholders
    rows = -(-least // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
  text = config.model.text_vocab_size or min(size, rows)
  model = dataclasses.replace(
    config.model, vocab_size=rows, text_vocab_size=text
  )
  return dataclasses.replace(config, model=model)


def make_model(config: config_lib.Config, mesh: Mesh) -> gemini.Gemini:
  """The network as it runs on the devices of a mesh.

  Raises:
    ConfigError: an attention kernel asked for by name is not there, or not
      for this model.
  """
  kernel = dot_product_attention.choose(
    config.model.attention_kernel,
    mesh.devices.flat[0].platform,
    plain='parallel.sequence above 1'
    if mesh.shape['sequence'] > 1
    else 'model.latent.memory above 0'
    if config.model.latent.dim and config.model.latent.memory
    else '',
  )
  model = dataclasses.replace(config.model, attention_kernel=kernel)
  config_lib.check(
    kernel != 'cudnn'
    or (model.dtype == 'bfloat16' and not model.attention_softcap),
    "model.attention_kernel='cudnn' needs model.dtype='bfloat16' and "
    'model.attention_softcap=0',
  )
  return gemini.Gemini(model, pipeline.make_schedule(config.parallel))


def abstract_params(
  model: gemini.Gemini,
  mesh: Mesh,
  transform: Callable[[Any], Any] = lambda params: params,
) -> Any:
  """Shapes, types and shardings of the parameters; nothing is computed.

  Args:
    model: the network.
    mesh: of the devices.
    transform: puts weights of other types in the place of arrays; their arrays
      are split as their `names` say.

  Raises:
    ConfigError: an axis of the mesh does not divide a parameter.
  """
  # Flax makes modules hashable as it runs, which a type checker cannot see.
  boxed = _boxed_shapes(model)  # pyright: ignore
  is_boxed = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  is_weight = lambda leaf: isinstance(leaf, matmul.Weight)
  # Not unboxed by flax, which constrains what is in the mesh of a context.
  params = jax.eval_shape(
    transform,
    jax.tree.map(
      lambda leaf: leaf.value if is_boxed(leaf) else leaf,
      boxed,
      is_leaf=is_boxed,
    ),
  )
  named = jax.tree.map(
    lambda leaf, box: _box(leaf, box.names) if is_boxed(box) else leaf,
    params,
    boxed,
    is_leaf=is_weight,
  )
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    params,
    sharding.param_shardings(mesh, named),
  )


def fsdp_mesh(model: config_lib.Model) -> Mesh:
  """A mesh of all devices for parameters alone, which no batch need fit.

  They are split over as many devices as divide every width; the rest of the
  devices hold copies.
  """
  boxed = jax.tree.leaves(
    _boxed_shapes(gemini.Gemini(model)),  # pyright: ignore
    is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
  )
  widths = [
    size
    for leaf in boxed
    if isinstance(leaf, nn.LogicallyPartitioned)
    for name, size in zip(leaf.names, leaf.value.shape, strict=True)
    if name == 'embed'
  ]
  fsdp = math.gcd(len(jax.devices()), *widths)
  return mesh_lib.make_mesh(config_lib.Parallel(data=-1, fsdp=fsdp))


# Traced once for a model, of which a command may ask several times.
@functools.lru_cache(maxsize=4)
def _boxed_shapes(model: gemini.Gemini) -> Any:
  return jax.eval_shape(
    functools.partial(gemini.init_params, model), jax.random.key(0)
  )


def _box(leaf: Any, names: tuple[str | None, ...]) -> Any:
  """An array, or each array of a weight, with the names of its dims."""
  if not isinstance(leaf, matmul.Weight):
    return nn.LogicallyPartitioned(leaf, names)
  parts = leaf.names(names)
  if parts is None:
    return leaf
  return jax.tree.map(
    lambda names, array: nn.LogicallyPartitioned(array, names),
    parts,
    leaf,
    is_leaf=sharding.is_names,
  )


def with_any_vocab(config: config_lib.Config) -> config_lib.Config:
  """The config of a model whose tokenizer is not known yet, for its shapes."""
  return with_vocab(config, _ANY_VOCAB)
