"""A length split along a mesh axis against the whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention_cases
from gemini_jax.kernels import context_parallel

SCALE = attention_cases.SCALE


@pytest.mark.parametrize('how', ['all_gather', 'ring'])
@pytest.mark.parametrize(
  'rule',
  [{'causal': True}, *({'causal': True, 'window': n} for n in (1, 5, 6)), {}],
  ids=str,
)
def test_a_split_length_is_the_whole(how, rule):
  """Value and gradient, on a mesh axis of four devices."""
  *qkv, mask = attention_cases.packed_inputs(16, **rule)
  qkv = attention_cases.as_float32(*qkv)
  mesh = jax.make_mesh(
    (4,),
    ('sequence',),
    (jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )
  spec = jax.sharding.PartitionSpec(None, 'sequence')
  weights = jax.random.normal(jax.random.key(1), qkv[0].shape)

  def split(*qkv):
    return jax.shard_map(
      lambda *args: context_parallel.attention(
        *args, axis='sequence', how=how, scale=SCALE
      )[0],
      mesh=mesh,
      in_specs=(spec, spec, spec, jax.tree.map(lambda _: spec, mask)),
      out_specs=spec,
      check_vma=False,
    )(*qkv, mask)

  def total(qkv, attend):
    out = attend(*qkv)
    return jnp.sum(out * weights), out

  evaluate = jax.jit(jax.grad(total, has_aux=True), static_argnames='attend')
  grads, out = evaluate(qkv, split)
  expected, wanted = evaluate(
    qkv, lambda *qkv: attention_cases.dense(*qkv, mask)
  )
  np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-6)
  for grad, wanted in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)
