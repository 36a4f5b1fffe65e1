"""A length split along a mesh axis against the whole one."""

import jax
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
  qkv, mask, (expected, wanted) = attention_cases.expected_of(16, **rule)
  mesh = jax.make_mesh(
    (4,),
    ('sequence',),
    (jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )
  spec = jax.sharding.PartitionSpec(None, 'sequence')

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

  grads, out = attention_cases.evaluate(qkv, split)
  np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-6)
  for grad, wanted in zip(grads, expected, strict=True):
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)
