"""Products with arrays and with weights stored in another way.

R rows, D dims in, F dims out, E groups.
"""

import flax.errors
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import low_rank
import toy
from gemini_jax.layers import linear, matmul

F32 = jnp.float32


@flax.struct.dataclass
class Halved(matmul.Weight):
  """Twice the stored array; it has only what a kind of weight must have."""

  half: jax.Array

  @property
  def shape(self):
    return self.half.shape

  @property
  def dtype(self):
    return self.half.dtype

  def to_array(self, dtype):
    return (2 * self.half).astype(dtype)


def halved(array, lead, inputs=1):
  del lead, inputs
  return Halved(array / 2)


def updated(array, lead, inputs=1):
  return low_rank.beside(array, lead, inputs)


def weighed(array, lead, inputs=1):
  return low_rank.beside(halved(array, lead), lead, inputs, gains=True)


def plain(array, lead, inputs=1):
  del lead, inputs
  return array


BY_KIND = pytest.mark.parametrize('make', [plain, halved, updated, weighed])


def same(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def as_numpy(leaf):
  return np.asarray(matmul.to_array(leaf, F32), np.float64)


@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize('num_contracted', [1, 2])
@BY_KIND
def test_the_last_dims_meet_the_first(make, num_contracted, num_devices):
  leaf = make(toy.normal((3, 4, 5)), 0, num_contracted)
  x = toy.normal((4, 2, 3, 4)[: 2 + num_contracted], 1)
  if num_contracted == 1:
    x = x[..., :3]
  mesh = jax.make_mesh(
    (num_devices,),
    ('data',),
    (jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:num_devices],
  )
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x, leaf: matmul.dot(x, leaf, num_contracted, dtype=F32))(
      x, leaf
    )
  same(y, np.tensordot(x, as_numpy(leaf), num_contracted))


def test_dims_are_merged_on_one_device_alone():
  """Merged with others, a dim that is split would be gathered first."""
  x_BTD, kernel_DNH = toy.normal((4, 8, 3)), toy.normal((3, 2, 5))

  def reshapes(num_devices):
    mesh = jax.make_mesh(
      (num_devices,),
      ('data',),
      (jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:num_devices],
    )
    with jax.set_mesh(mesh):
      program = jax.make_jaxpr(
        lambda x, kernel: (
          matmul.dot(x, kernel, 1, dtype=F32),
          matmul.dot_transposed(x, kernel[:, 0].T, dtype=F32),
        )
      )(x_BTD, kernel_DNH)
    return str(program).count('f32[32,')

  assert reshapes(1) and not reshapes(4)


@BY_KIND
def test_the_last_dim_meets_the_last(make):
  leaf, x = make(toy.normal((7, 3)), 0), toy.normal((2, 4, 3), 1)
  y = matmul.dot_transposed(x, leaf, dtype=F32)
  same(y, np.asarray(x, np.float64) @ as_numpy(leaf).T)


@BY_KIND
def test_rows_of_a_table(make):
  leaf, ids = make(toy.normal((7, 3)), 0), np.array([[0, 6], [3, 3]])
  same(matmul.rows(leaf, ids, F32), as_numpy(leaf)[ids])


@BY_KIND
def test_rows_beyond_all_groups_are_zero_and_have_no_gradient(make):
  sizes_E = jnp.asarray([2, 0, 1])
  leaf = make(toy.normal((3, 4, 6), 2), 1)
  x_RD = toy.normal((5, 4)).at[3:].set(jnp.nan)
  dot = jax.jit(lambda x, k: matmul.grouped_dot(x, k, sizes_E))
  y_RF = dot(x_RD, leaf)
  kernel_EDF = as_numpy(leaf)
  expected = [x_RD[r] @ kernel_EDF[e] for r, e in enumerate([0, 0, 2])]
  np.testing.assert_allclose(y_RF[:3], np.stack(expected), rtol=1e-4, atol=1e-5)
  assert not np.any(y_RF[3:])
  total = lambda x, k: jnp.sum(dot(x, k))
  dx_RD, dleaf = jax.jit(jax.grad(total, (0, 1)))(x_RD, leaf)
  assert not np.any(dx_RD[3:]) and np.all(dx_RD[:3] != 0)
  for part in jax.tree.leaves(dleaf):
    assert np.isfinite(part).all() and not np.any(part[1])
    assert np.any(part[0])


def test_factors_are_rounded_and_sums_are_not():
  x, kernel = toy.normal((2, 64)), toy.normal((64, 3), 1)
  y = matmul.dot(x, kernel, 1, dtype=jnp.bfloat16, out_dtype=F32)
  assert y.dtype == F32
  low = [np.asarray(part.astype(jnp.bfloat16), float) for part in (x, kernel)]
  np.testing.assert_allclose(y, low[0] @ low[1], rtol=1e-5, atol=1e-5)
  assert matmul.dot(x, kernel, 1, dtype=jnp.bfloat16).dtype == jnp.bfloat16


@BY_KIND
def test_a_slice_of_the_layers_is_one_layer(make):
  """All arrays of a weight have the dim of layers first."""
  leaves = [make(toy.normal((3, 5), i), 0) for i in range(4)]
  stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *leaves)
  x = toy.normal((2, 3), 7)

  def body(x, leaf):
    return x, matmul.dot(x, leaf, 1, dtype=F32)

  found = jax.lax.scan(body, x, stacked)[1]
  same(found, np.stack([np.asarray(x) @ as_numpy(leaf) for leaf in leaves]))


@BY_KIND
def test_a_module_reads_what_stands_at_its_path(make):
  module, x = (
    linear.Einsum((3, 5), ('embed', 'mlp'), use_bias=True),
    toy.normal((2, 4, 3)),
  )
  boxed = module.init(jax.random.key(0), 'BTD,DF->BTF', x)['params']
  assert boxed['kernel'].names == ('embed', 'mlp')
  params = nn.unbox(boxed)
  params = params | {'kernel': make(toy.normal((3, 5), 1), 0)}
  y = module.apply({'params': params}, 'BTD,DF->BTF', x)
  same(y, np.asarray(x) @ as_numpy(params['kernel']))


@BY_KIND
def test_a_matrix_of_another_shape_is_refused(make):
  module, x = linear.Einsum((3, 5), (None, None)), toy.normal((2, 4, 3))
  params = {'kernel': make(toy.normal((3, 6)), 0)}
  with pytest.raises(flax.errors.ScopeParamShapeError, match=r'\(3, 6\)'):
    module.apply({'params': params}, 'BTD,DF->BTF', x)


def test_names_for_devices_are_those_of_each_array():
  names = ('expert', 'embed', 'mlp')
  array = toy.normal((4, 3, 5))
  leaf, axes = matmul.for_devices(array, names, jnp.bfloat16)
  assert axes == names and leaf.dtype == jnp.bfloat16
  # Without names of its own a weight goes there as an array.
  leaf, axes = matmul.for_devices(Halved(array), names, F32)
  assert axes == names
  same(leaf, 2 * array)
  leaf, axes = matmul.for_devices(updated(array, 1), names, F32)
  assert axes == leaf.replace(
    base=names, a=('expert', 'embed', None), b=('expert', None, 'mlp')
  )
  axes = low_rank.beside(array, 1, gains=True).names(names)
  assert axes.gains == ('expert', None)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_single_row_is_that_of_a_batch(dtype):
  """A row without content is added for bfloat16 on CPUs, and taken off."""
  array, table = toy.normal((6, 4, 5), 1), toy.normal((7, 6), 2)
  x = toy.normal((3, 6), 3).astype(dtype)
  for product in (
    lambda x: matmul.dot(x, array, 1, dtype=dtype),
    lambda x: matmul.dot_transposed(x, table, dtype=dtype, out_dtype=F32),
  ):
    many, one = product(x), product(x[1:2])
    assert one.shape == (1, *many.shape[1:]) and one.dtype == many.dtype
    np.testing.assert_allclose(
      *(np.asarray(y, np.float32) for y in (one[0], many[1])), rtol=1e-2
    )


def test_a_single_row_of_bfloat16_is_multiplied_as_it_is():
  """Of two rows XLA for CPUs makes no float32 matrix."""
  x, array = (jnp.ones(shape, jnp.bfloat16) for shape in ((1, 64), (64, 32)))
  text = jax.jit(lambda x: matmul.dot(x, array, 1, dtype=jnp.bfloat16))
  assert 'bf16[2,64]' in text.lower(x).compile().as_text()
