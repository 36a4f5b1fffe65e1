"""Mixture of experts: a router, and feed-forward layers that share the tokens.

B batch, T length, D width, E experts, K experts of a token, F hidden width;
on one device: N tokens, R = N * K rows, one for each token and its expert.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemini_jax.layers import feedforward, linear
from gemini_jax.parallel import sharding


class MixtureOfExperts(nn.Module):
  """Each token visits the K likeliest of E feed-forward layers.

  Dropless: rows are sorted by expert and multiplied group by group (MegaBlocks,
  Gale et al. 2023), so no expert has a capacity. The gates of a token sum to
  1, as in Mixtral; with K = 1, where that would leave the router without a
  gradient, the gate is the probability, as in Switch (Fedus et al. 2022).

  Attributes:
    num_experts: E.
    experts_per_token: K.
    hidden_dim: F.
    shared_dim: hidden width of an expert that every token visits; 0: none.
    activation: a name in feedforward.ACTIVATIONS.
    gated: multiply by a second projection of the input.
    dtype: of the computation; the router's is float32.
    param_dtype: of the parameters.
    init_scale: of the initial kernels; None: 1 / sqrt(fan in).
  """

  num_experts: int
  experts_per_token: int
  hidden_dim: int
  shared_dim: int = 0
  activation: str = 'gelu'
  gated: bool = True
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float | None = None

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, real_BT: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The update of the residual stream, [B, T, D], and the router's losses.

    Args:
      x_BTD: the input.
      real_BT: bool, false at padding, which the losses leave out; None: none.
    """
    width = x_BTD.shape[-1]
    parameters: dict[str, Any] = {
      'param_dtype': self.param_dtype,
      'init_scale': self.init_scale,
    }
    logits_BTE = linear.Einsum(
      (width, self.num_experts), ('embed', None), name='router', **parameters
    )('BTD,DE->BTE', x_BTD)
    # Device by device: the partitioner gathers what a top_k reads.
    tokens = ('batch', 'length', None)
    gates_BTK, chosen_BTK = sharding.per_device(
      functools.partial(choose, num_chosen=self.experts_per_token),
      (tokens,),
      (tokens, tokens),
    )(logits_BTE)
    shapes = {
      'gate': ((width, self.hidden_dim), ('embed', 'mlp')),
      'up': ((width, self.hidden_dim), ('embed', 'mlp')),
      'down': ((self.hidden_dim, width), ('mlp', 'embed')),
    }
    if not self.gated:
      del shapes['gate']
    kernels = {
      name: ExpertKernel(
        (self.num_experts, *shape),
        ('expert', *axes),
        dtype=self.dtype,
        name=f'expert_{name}',
        **parameters,
      )()
      for name, (shape, axes) in shapes.items()
    }
    out_BTD = sharding.per_device(
      functools.partial(
        visit_experts,
        num_experts=self.num_experts,
        hidden_dim=self.hidden_dim,
        activation=self.activation,
      ),
      (
        tokens,
        tokens,
        tokens,
        {name: ('expert', *axes) for name, (_, axes) in shapes.items()},
      ),
      tokens,
    )(x_BTD.astype(self.dtype), chosen_BTK, gates_BTK, kernels)
    if self.shared_dim:
      out_BTD += feedforward.FeedForward(
        self.shared_dim,
        activation=self.activation,
        gated=self.gated,
        dtype=self.dtype,
        name='shared',
        **parameters,
      )(x_BTD)
    if real_BT is None:
      real_BT = jnp.ones(x_BTD.shape[:2], bool)
    return out_BTD, router_losses(logits_BTE, chosen_BTK, real_BT)


class ExpertKernel(nn.Module):
  """One kernel for each expert, [E, in, out].

  Attributes:
    shape: of all of them.
    axes: logical axis of each dim, for sharding.
    dtype: of the computation.
    param_dtype: of the parameter.
    init_scale: standard deviation of the initial kernels; None:
      1 / sqrt(fan in).
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float | None = None

  @nn.compact
  def __call__(self) -> jax.Array:
    """The kernels, in the type of the computation."""
    scale = self.init_scale or self.shape[1] ** -0.5
    kernel: Any = self.param(
      'kernel',
      nn.with_logical_partitioning(nn.initializers.normal(scale), self.axes),
      self.shape,
      self.param_dtype,
    )
    return kernel.astype(self.dtype)


def choose(
  logits_BTE: jax.Array, num_chosen: int
) -> tuple[jax.Array, jax.Array]:
  """The likeliest experts of each token: gates and indices, [B, T, K]."""
  gates_BTK, chosen_BTK = jax.lax.top_k(jax.nn.softmax(logits_BTE), num_chosen)
  if num_chosen > 1:
    gates_BTK /= jnp.sum(gates_BTK, axis=-1, keepdims=True)
  return gates_BTK, chosen_BTK


def router_losses(
  logits_BTE: jax.Array, chosen_BTK: jax.Array, real_BT: jax.Array
) -> dict[str, jax.Array]:
  """What keeps a router balanced and its logits small, float32 scalars.

  router_balance is E * sum_e f_e p_e, with f_e the share of the rows that go
  to expert e and p_e its mean probability: 1 where all are alike, at most
  E / K (Switch, section 2.2). router_z is the mean squared log-partition of the
  logits (ST-MoE, section 3.1).

  Args:
    logits_BTE: float32, of the router.
    chosen_BTK: int32, the experts of each token.
    real_BT: bool, false at padding.
  """
  num_experts = logits_BTE.shape[-1]
  real_BT = real_BT.astype(jnp.float32)
  count = jnp.maximum(jnp.sum(real_BT), 1)
  rows_BTKE = jax.nn.one_hot(chosen_BTK, num_experts)
  share_BTE = jnp.mean(rows_BTKE, axis=2)
  mean = lambda x_BTE: jnp.sum(x_BTE * real_BT[..., None], axis=(0, 1)) / count
  share_E, probs_E = mean(share_BTE), mean(jax.nn.softmax(logits_BTE))
  partition_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
  return {
    'router_balance': num_experts * jnp.sum(share_E * probs_E),
    'router_z': jnp.sum(jnp.square(partition_BT) * real_BT) / count,
  }


def visit_experts(
  x_BTD: jax.Array,
  chosen_BTK: jax.Array,
  gates_BTK: jax.Array,
  kernels: dict[str, jax.Array],
  *,
  num_experts: int,
  hidden_dim: int,
  activation: str,
) -> jax.Array:
  """The sum of each token's experts, weighted by its gates, [B, T, D].

  One device's part of it (see sharding.per_device): the shapes tell how the
  kernels are split. Experts stay where they are. Where they lie on several
  devices, tokens go round the ring of the expert axis with their sums, and
  are home after as many steps as it has devices; a step holds the rows of one
  device's tokens, whatever the load.

  Args:
    x_BTD: tokens of this device.
    chosen_BTK: int32, their experts.
    gates_BTK: float32, the weights of these.
    kernels: [E, ...] of the experts of this device, by projection.
    num_experts: E of all devices.
    hidden_dim: F of all devices.
    activation: a name in feedforward.ACTIVATIONS.
  """
  width = x_BTD.shape[-1]
  for name, axis in ('gate', 1), ('up', 1), ('down', 2):
    if name in kernels and kernels[name].shape[axis] < width:
      kernels = kernels | {
        name: jax.lax.all_gather(kernels[name], 'fsdp', axis=axis, tiled=True)
      }
  num_local = kernels['up'].shape[0]
  num_devices = num_experts // num_local
  first = 0
  if num_devices > 1:
    first = jax.lax.axis_index('expert') * num_local

  def visit(x_ND, chosen_NK, gates_NK):
    return run_experts(
      x_ND, chosen_NK - first, gates_NK, kernels, activation=activation
    )

  tokens = jax.tree.map(
    lambda leaf: leaf.reshape(-1, leaf.shape[-1]),
    (x_BTD, chosen_BTK, gates_BTK),
  )
  if num_devices == 1:
    out_ND = visit(*tokens)
  else:
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]
    # Its rows are computed again in the backward pass: otherwise those of all
    # steps would be kept.
    visit = jax.checkpoint(visit, prevent_cse=False)

    def step(carry, _):
      tokens, out_ND = carry
      out_ND += visit(*tokens)
      carry = jax.tree.map(
        lambda leaf: jax.lax.ppermute(leaf, 'expert', ring), (tokens, out_ND)
      )
      return carry, None

    carry = (tokens, jnp.zeros_like(tokens[0]))
    (_, out_ND), _ = jax.lax.scan(step, carry, length=num_devices)
  if kernels['up'].shape[2] < hidden_dim:
    out_ND = jax.lax.psum(out_ND, 'tensor')
  return out_ND.reshape(x_BTD.shape)


def run_experts(
  x_ND: jax.Array,
  chosen_NK: jax.Array,
  gates_NK: jax.Array,
  kernels: dict[str, jax.Array],
  *,
  activation: str,
) -> jax.Array:
  """The weighted sum of those of each token's experts that are here, [N, D].

  Args:
    x_ND: tokens.
    chosen_NK: int32, their experts; those outside [0, E) are elsewhere.
    gates_NK: float32.
    kernels: of the E experts here, by projection.
    activation: a name in feedforward.ACTIVATIONS.
  """
  num_experts = kernels['up'].shape[0]
  chosen_R = chosen_NK.reshape(-1)
  here_R = (chosen_R >= 0) & (chosen_R < num_experts)
  order_R = jnp.argsort(jnp.where(here_R, chosen_R, num_experts))
  place_R = jnp.argsort(order_R)
  sizes_E = jnp.sum(
    jax.nn.one_hot(chosen_R, num_experts, dtype=jnp.int32), axis=0
  )
  rows_RD = take_rows(x_ND, order_R, place_R)
  project = lambda name, rows: grouped_dot(rows, kernels[name], sizes_E)
  activate = feedforward.ACTIVATIONS[activation]
  up_RF = checkpoint_name(project('up', rows_RD), 'up')
  if 'gate' in kernels:
    gate_RF = checkpoint_name(project('gate', rows_RD), 'gate')
    hidden_RF = activate(gate_RF) * up_RF
  else:
    hidden_RF = activate(up_RF)
  out_RD = take_rows(project('down', hidden_RF), place_R, order_R)
  out_NKD = out_RD.reshape(*chosen_NK.shape, -1)
  return jnp.sum(out_NKD * gates_NK[..., None], axis=1).astype(x_ND.dtype)


def grouped_dot(
  x_RD: jax.Array, kernel_EDF: jax.Array, sizes_E: jax.Array
) -> jax.Array:
  """The product of each row with its group's matrix, [R, F].

  The first rows belong to group 0, the next to group 1, and so on. Rows beyond
  all groups are zero and so is their gradient: backends may leave there what
  was in memory, so both sides are masked.
  """
  grouped_R1 = (jnp.arange(x_RD.shape[0]) < jnp.sum(sizes_E))[:, None]
  y_RF = jax.lax.ragged_dot(jnp.where(grouped_R1, x_RD, 0), kernel_EDF, sizes_E)
  return jnp.where(grouped_R1, y_RF, 0)


@jax.custom_vjp
def take_rows(
  x_ND: jax.Array, order_R: jax.Array, place_R: jax.Array
) -> jax.Array:
  """`repeat(x_ND, R // N, axis=0)[order_R]`, with a gradient that gathers.

  Args:
    x_ND: what is repeated.
    order_R: a permutation.
    place_R: its inverse. Without it the gradient would be a scatter, which is
      slow, and on GPUs adds in any order.
  """
  del place_R
  return x_ND[order_R // (order_R.shape[0] // x_ND.shape[0])]


def _take_rows_forward(x_ND, order_R, place_R):
  return take_rows(x_ND, order_R, place_R), (x_ND.shape, place_R)


def _take_rows_backward(saved, dy_RD):
  shape, place_R = saved
  dx_NKD = dy_RD[place_R].reshape(shape[0], -1, shape[1])
  return jnp.sum(dx_NKD, axis=1), None, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)
