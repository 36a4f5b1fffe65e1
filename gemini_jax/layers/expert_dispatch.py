"""Rows of tokens sorted by expert, on the devices that hold the experts.

Dropless: rows are multiplied group by group (MegaBlocks, Gale et al. 2023).

B batch, T length, D width, E experts, K experts of a token, F hidden width;
on one device: N tokens, R = N * K rows, one for each token and its expert.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemini_jax.layers import feedforward, matmul


def apply_experts(
  x_BTD: jax.Array,
  chosen_BTK: jax.Array,
  gates_BTK: jax.Array,
  kernels: dict[str, Any],
  *,
  names: dict[str, Any],
  num_experts: int,
  hidden_dim: int,
  activation: str,
) -> jax.Array:
  """The sum of each token's experts, weighted by its gates, [B, T, D].

  Runs on each device (see sharding.per_device); the shapes tell how the
  kernels are split. Experts stay on their device. If they lie on several
  devices, tokens and their sums go round the ring of the expert axis and return
  after as many steps as it has devices; a step holds the rows of one device's
  tokens, however uneven the load.

  Args:
    x_BTD: tokens of this device.
    chosen_BTK: int32, their experts.
    gates_BTK: float32, the weights of these.
    kernels: [E, ...] of the experts of this device, by projection.
    names: logical names of the dims of each array in `kernels`.
    num_experts: E of all devices.
    hidden_dim: F of all devices.
    activation: a name in feedforward.ACTIVATIONS.
  """
  width = x_BTD.shape[-1]

  def whole_width(array, dims):
    for axis, name in enumerate(dims):
      if name == 'embed' and array.shape[axis] < width:
        array = jax.lax.all_gather(array, 'fsdp', axis=axis, tiled=True)
    return array

  kernels = jax.tree.map(whole_width, kernels, names)
  num_local = kernels['up'].shape[0]
  num_devices = num_experts // num_local
  first = 0
  if num_devices > 1:
    first = jax.lax.axis_index('expert') * num_local

  def apply(x_ND, chosen_NK, gates_NK):
    return apply_local_experts(
      x_ND, chosen_NK - first, gates_NK, kernels, activation=activation
    )

  tokens = jax.tree.map(
    lambda leaf: leaf.reshape(-1, leaf.shape[-1]),
    (x_BTD, chosen_BTK, gates_BTK),
  )
  if num_devices == 1:
    out_ND = apply(*tokens)
  else:
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]
    # Recomputed in the backward pass: otherwise the rows of all steps would be
    # kept.
    apply = jax.checkpoint(apply, prevent_cse=False)

    def step(carry, _):
      tokens, out_ND = carry
      out_ND += apply(*tokens)
      carry = jax.tree.map(
        lambda leaf: jax.lax.ppermute(leaf, 'expert', ring), (tokens, out_ND)
      )
      return carry, None

    carry = (tokens, jnp.zeros_like(tokens[0]))
    (_, out_ND), _ = jax.lax.scan(step, carry, length=num_devices)
  if kernels['up'].shape[2] < hidden_dim:
    out_ND = jax.lax.psum(out_ND, 'tensor')
  return out_ND.reshape(x_BTD.shape)


def apply_local_experts(
  x_ND: jax.Array,
  chosen_NK: jax.Array,
  gates_NK: jax.Array,
  kernels: dict[str, Any],
  *,
  activation: str,
) -> jax.Array:
  """The weighted sum of each token's experts on this device, [N, D].

  Args:
    x_ND: tokens.
    chosen_NK: int32, their experts; those outside [0, E) are on other devices.
    gates_NK: float32.
    kernels: of the E experts of this device, by projection.
    activation: a name in feedforward.ACTIVATIONS.
  """
  num_experts = kernels['up'].shape[0]
  chosen_R = chosen_NK.reshape(-1)
  local_R = (chosen_R >= 0) & (chosen_R < num_experts)
  order_R = jnp.argsort(jnp.where(local_R, chosen_R, num_experts))
  inverse_R = jnp.argsort(order_R)
  sizes_E = jnp.sum(
    jax.nn.one_hot(chosen_R, num_experts, dtype=jnp.int32), axis=0
  )
  rows_RD = take_rows(x_ND, order_R, inverse_R)
  project = lambda name, rows: matmul.grouped_dot(rows, kernels[name], sizes_E)
  activate = feedforward.ACTIVATIONS[activation]
  up_RF = checkpoint_name(project('up', rows_RD), 'up')
  if 'gate' in kernels:
    gate_RF = checkpoint_name(project('gate', rows_RD), 'gate')
    hidden_RF = activate(gate_RF) * up_RF
  else:
    hidden_RF = activate(up_RF)
  out_RD = take_rows(project('down', hidden_RF), inverse_R, order_R)
  out_NKD = out_RD.reshape(*chosen_NK.shape, -1)
  return jnp.sum(out_NKD * gates_NK[..., None], axis=1).astype(x_ND.dtype)


@jax.custom_vjp
def take_rows(
  x_ND: jax.Array, order_R: jax.Array, inverse_R: jax.Array
) -> jax.Array:
  """`repeat(x_ND, R // N, axis=0)[order_R]`, with a gradient that gathers.

  Args:
    x_ND: the rows to repeat.
    order_R: a permutation.
    inverse_R: its inverse. Without it the gradient would be a scatter, which is
      slow and on GPUs adds in any order.
  """
  del inverse_R
  return x_ND[order_R // (order_R.shape[0] // x_ND.shape[0])]


def _take_rows_forward(x_ND, order_R, inverse_R):
  return take_rows(x_ND, order_R, inverse_R), (x_ND.shape, inverse_R)


def _take_rows_backward(saved, dy_RD):
  shape, inverse_R = saved
  dx_NKD = dy_RD[inverse_R].reshape(shape[0], -1, shape[1])
  return jnp.sum(dx_NKD, axis=1), None, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)
