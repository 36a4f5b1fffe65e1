"""Rows that are sorted by expert and multiplied group by group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import expert_dispatch


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
