"""Attention and cross-entropy, with gradients, against plain formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gemini_jax import config as config_lib
from gemini_jax.commands import bench_step, peer, timing
from gemini_jax.kernels import cross_entropy, dot_product_attention, masking
from gemini_jax.models import build


def bench_attention(
  config: config_lib.Config, paths: peer.Paths
) -> dict[str, Any]:
  """Forward and backward pass of one layer's attention and of dense softmax."""
  del paths
  model = config.model
  shape = (config.data.batch_size, config.data.sequence_length)
  dtype = jnp.dtype(model.dtype)
  heads = (model.num_heads, model.kv_heads, model.kv_heads)
  qkv = [
    jax.random.normal(jax.random.key(i), (*shape, num, model.head_width), dtype)
    for i, num in enumerate(heads)
  ]
  sequence = bench_step.random_batch(build.with_vocab(config, 1)).decoder
  mask = masking.visible(sequence, sequence, causal=True)
  scale = model.head_width**-0.5
  kernel = dot_product_attention.choose(
    model.attention_kernel, jax.default_backend()
  )

  def dense(q, k, v, mask):
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask.dense()[:, None], scale=scale, implementation='xla'
    )

  def ours(q, k, v, mask):
    return dot_product_attention.attention(
      q, k, v, mask, scale=scale, implementation=kernel
    )

  def gradient(attend):
    total = lambda qkv, mask: jnp.sum(
      attend(*qkv, mask).astype(jnp.float32) ** 2
    )
    compiled = jax.jit(jax.grad(total)).lower(qkv, mask).compile()
    return lambda: compiled(qkv, mask)

  calls = {kernel: gradient(ours), 'dense': gradient(dense)}
  return timing.side_by_side('attention', config, calls)


def bench_cross_entropy(
  config: config_lib.Config, paths: peer.Paths
) -> dict[str, Any]:
  """Loss and gradients, chunked and from all logits at once."""
  del paths
  config = build.with_vocab(config, 1)
  batch = bench_step.random_batch(config)
  assert config.model.vocab_size
  dtype = jnp.dtype(config.model.dtype)
  x_BTD, table_VD = (
    jax.random.normal(jax.random.key(i), (*shape, config.model.width), dtype)
    for i, shape in enumerate([batch.targets.shape, (config.model.vocab_size,)])
  )

  def chunked(x_BTD, table_VD):
    sums: Any = cross_entropy.token_sums(
      cross_entropy.Options(), x_BTD, table_VD, batch.targets, batch.weights
    )
    return sums.objective

  def dense(x_BTD, table_VD):
    scores_BTV = jnp.einsum(
      'BTD,VD->BTV', x_BTD, table_VD, preferred_element_type=jnp.float32
    )
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(
      scores_BTV, batch.targets
    )
    return jnp.sum(losses_BT * batch.weights)

  def gradient(loss):
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x_BTD, table_VD).compile()
    return lambda: compiled(x_BTD, table_VD)

  calls = {'chunked': gradient(chunked), 'dense': gradient(dense)}
  return timing.side_by_side('cross_entropy', config, calls)
