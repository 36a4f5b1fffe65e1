"""Rows that are sorted by expert and multiplied group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import expert_dispatch


def test_rows_beyond_all_groups_are_zero_and_have_no_gradient():
  sizes_E = jnp.asarray([2, 0, 1])
  kernel_EDF = toy.normal((3, 4, 6), 2)
  x_RD = toy.normal((5, 4)).at[3:].set(jnp.nan)
  y_RF = expert_dispatch.grouped_dot(x_RD, kernel_EDF, sizes_E)
  expected = [x_RD[r] @ kernel_EDF[e] for r, e in enumerate([0, 0, 2])]
  np.testing.assert_allclose(y_RF[:3], np.stack(expected), rtol=1e-4, atol=1e-5)
  assert not np.any(y_RF[3:])
  dx_RD, dkernel_EDF = jax.grad(
    lambda x, k: jnp.sum(expert_dispatch.grouped_dot(x, k, sizes_E)),
    argnums=(0, 1),
  )(x_RD, kernel_EDF)
  assert not np.any(dx_RD[3:]) and np.all(dx_RD[:3] != 0)
  assert np.isfinite(dkernel_EDF).all() and not np.any(dkernel_EDF[1])


@pytest.mark.parametrize('k', [1, 3])
def test_taking_rows_is_indexing_with_its_gradient(k):
  x_ND = toy.normal((4, 5))
  order_R = jnp.asarray(np.random.default_rng(0).permutation(4 * k))
  weights_RD = toy.normal((4 * k, 5), 1)

  def ours(x_ND):
    return expert_dispatch.take_rows(x_ND, order_R, jnp.argsort(order_R))

  plain = lambda x_ND: jnp.repeat(x_ND, k, axis=0)[order_R]
  np.testing.assert_array_equal(ours(x_ND), plain(x_ND))
  gradient = lambda f: jax.grad(lambda x: jnp.sum(f(x) * weights_RD))(x_ND)
  np.testing.assert_allclose(gradient(ours), gradient(plain), rtol=1e-5)
