"""A kind of weight for tests: a matrix and a low-rank update of it.

I the first dim of the matrix, R the rank.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

import toy
from gemini_jax.layers import matmul


@flax.struct.dataclass
class LowRank(matmul.Weight):
  """`matrix + down @ up`, which is never computed where it can be avoided.

  Attributes:
    matrix: [*lead, I, *rest]; lead are dims of layers or of experts.
    down: [*lead, I, R].
    up: [*lead, R, *rest].
  """

  matrix: jax.Array
  down: jax.Array
  up: jax.Array

  @property
  def shape(self):
    return self.matrix.shape

  @property
  def dtype(self):
    return self.matrix.dtype

  def to_array(self, dtype):
    update = self.down @ self.up.reshape(
      *self.up.shape[: self.down.ndim - 1], -1
    )
    return (self.matrix + update.reshape(self.shape)).astype(dtype)

  def dot(self, x, num_contracted, *, dtype, out_dtype=None):
    types = {'dtype': dtype, 'out_dtype': out_dtype}
    dim = x.ndim - num_contracted
    moved = jnp.moveaxis(x, dim, -1)
    low = matmul.dot(moved, self.down, 1, dtype=dtype)
    low = jnp.moveaxis(low, -1, dim)
    plain = matmul.dot(x, self.matrix, num_contracted, **types)
    return plain + matmul.dot(low, self.up, num_contracted, **types)

  def dot_transposed(self, x, *, dtype, out_dtype=None):
    types = {'dtype': dtype, 'out_dtype': out_dtype}
    low = matmul.dot_transposed(x, self.up, dtype=dtype)
    plain = matmul.dot_transposed(x, self.matrix, **types)
    return plain + matmul.dot_transposed(low, self.down, **types)

  def rows(self, ids, dtype):
    low = matmul.rows(self.down, ids, dtype)
    update = matmul.dot(low, self.up, 1, dtype=dtype)
    return matmul.rows(self.matrix, ids, dtype) + update

  def grouped_dot(self, x_RD, sizes_E):
    low = matmul.grouped_dot(x_RD, self.down, sizes_E)
    return matmul.grouped_dot(x_RD, self.matrix, sizes_E) + matmul.grouped_dot(
      low, self.up, sizes_E
    )

  def names(self, names):
    return LowRank(names, (*names[:-1], None), (*names[:-2], None, names[-1]))


def put(params, rank=2, seed=0):
  """The tree with a low-rank update at every matrix, and how many there are.

  Norms and biases are not matrices. A stack has a leading dim of layers, and
  experts have one of their own.
  """
  count = 0

  def one(path, leaf):
    nonlocal count
    keys = [key.key for key in path]
    lead = int('layers' in keys)
    if leaf.ndim - lead < 2 or keys[-1] == 'bias':
      return leaf
    lead += any(key.startswith('expert_') for key in keys)
    count += 1
    down = toy.normal((*leaf.shape[: lead + 1], rank), (seed, count), 0.3)
    shape = (*leaf.shape[:lead], rank, *leaf.shape[lead + 1 :])
    return LowRank(leaf, down, toy.normal(shape, (seed, count, 1), 0.3))

  tree = jax.tree_util.tree_map_with_path(one, params)
  return tree, count


def merged(params):
  """The tree with arrays in place of all weights."""
  return jax.tree.map(
    lambda leaf: leaf.to_array(np.float32) if is_weight(leaf) else leaf,
    params,
    is_leaf=is_weight,
  )


def is_weight(leaf):
  return isinstance(leaf, matmul.Weight)
