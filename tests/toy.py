"""Small models with random weights and random batches, shared by tests.

B rows, T decoder length, S encoder length.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib

VOCAB_SIZE = 23
B, T, S = 2, 12, 7


def normal(shape, seed=0, scale=1.0):
  """float32 normal numbers, drawn by numpy."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(0, scale, shape).astype(np.float32))


def random_tree(shapes, seed=0, scale=0.2):
  """Normal numbers for every leaf: biases and norms must not be zero."""
  leaves, treedef = jax.tree.flatten(nn.unbox(shapes))
  return treedef.unflatten(
    normal(leaf.shape, (seed, i), scale).astype(leaf.dtype)
    for i, leaf in enumerate(leaves)
  )


def random_params(module, *args, seed=0, scale=0.2, **kwargs):
  """Parameters of a module for these arguments; nothing is compiled."""
  init = lambda: module.init(jax.random.key(0), *args, **kwargs)['params']
  return random_tree(jax.eval_shape(init), seed, scale)


def model(**fields):
  """A Gemini of two layers, 16 wide."""
  small = {
    'vocab_size': VOCAB_SIZE,
    'max_length': T,
    'width': 16,
    'mlp_dim': 24,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 2,
    'window': 3,
  }
  return gemini.Gemini(config_lib.Model(**(small | fields)))


@functools.cache
def shapes(gemini_model):
  """Of the parameters of a Gemini, boxed."""
  init = lambda: gemini.init_params(gemini_model, jax.random.key(0))
  return jax.eval_shape(init)


def model_params(gemini_model, seed=0, scale=0.2):
  """Random parameters of a Gemini, unboxed."""
  return random_tree(shapes(gemini_model), seed, scale)


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def apply(gemini_model, params, *arrays, method='__call__', **more):
  """`gemini.apply`, as one program; op by op each would be one."""
  return gemini.apply(gemini_model, params, *arrays, method=method, **more)


def sequence(rows=B, length=T, seed=0, segments=None):
  """Random tokens; `segments` are of every row, one if not given."""
  rng = np.random.default_rng(seed)
  tokens_BT = rng.integers(1, VOCAB_SIZE, (rows, length)).astype(np.int32)
  if segments is None:
    return batch_lib.plain_sequence(tokens_BT, np.full(rows, length))
  segments = np.asarray(segments, np.int32)
  places = np.arange(length)
  starts = np.maximum.accumulate(
    np.where(np.diff(segments, prepend=-1) != 0, places, 0)
  )
  return batch_lib.Sequence(
    tokens_BT,
    np.tile(places - starts, (rows, 1)).astype(np.int32),
    np.tile(segments, (rows, 1)),
  )


def batch(rows=B, length=T, seed=0, segments=None, prefix=None, encoder=None):
  """A random batch; weights differ from token to token."""
  rng = np.random.default_rng((seed, 1))
  decoder = sequence(rows, length, seed, segments)
  return batch_lib.Batch(
    decoder=decoder,
    targets=rng.integers(0, VOCAB_SIZE, (rows, length)).astype(np.int32),
    weights=(
      rng.uniform(0.5, 1.5, (rows, length)) * (decoder.segments > 0)
    ).astype(np.float32),
    prefix=prefix,
    encoder=encoder,
  )


def make_mesh(**sizes):
  """A mesh of fake devices; axes that are not named have one."""
  sizes = {'data': 1} | sizes
  return mesh_lib.make_mesh(
    config_lib.Parallel(**sizes), jax.devices()[: math.prod(sizes.values())]
  )


def assert_near(actual, expected, rtol=1e-5):
  """Relative to the largest number of a tensor."""

  def one(a, b):
    a, b = np.asarray(a), np.asarray(b)
    size = np.abs(b).max()
    assert size > 0
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * size)

  jax.tree.map(one, actual, expected)


def network(seed=0):
  """Parameters with the paths of a model's, drawn at random."""
  shapes = {
    'token': {'embedding': (8, 6)},
    'decoder': {
      'layers': {
        'feedforward': {
          'up': {'kernel': (1, 6, 16), 'bias': (1, 16)},
          'down': {'kernel': (1, 16, 6)},
        },
        'attention': {'output': {'kernel': (1, 2, 3, 6)}},
        'attention_norm': {'scale': (1, 6)},
      }
    },
  }
  return jax.tree.map(
    lambda shape: normal(shape, (seed, sum(shape)), shape[-2] ** -0.5),
    shapes,
    is_leaf=lambda shape: isinstance(shape, tuple),
  )
