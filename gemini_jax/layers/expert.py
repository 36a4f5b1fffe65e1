"""Mixture of experts: a router and one feed-forward layer an expert.

B batch, T length, D width, E experts, K experts of a token, F hidden width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax.layers import (
  expert_dispatch,
  feedforward,
  hooks,
  linear,
  matmul,
)
from gemini_jax.parallel import sharding


class MixtureOfExperts(nn.Module):
  """Each token goes to the K of E feed-forward layers with the highest gates.

  Dropless (see expert_dispatch), so no expert has a capacity. The gates of a
  token sum to 1, as in Mixtral; with K = 1, where that would leave the router
  without a gradient, the gate is the probability, as in Switch (Fedus et al.
  2022).

  Attributes:
    num_experts: E.
    experts_per_token: K.
    hidden_dim: F.
    shared_dim: hidden width of an expert that sees every token; 0: none.
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
      real_BT: bool, false at padding, which the losses ignore; None: no
        padding.
    """
    x_BTD = hooks.point(self, 'input', x_BTD)
    width = x_BTD.shape[-1]
    parameters: dict[str, Any] = {
      'param_dtype': self.param_dtype,
      'init_scale': self.init_scale,
    }
    logits_BTE = linear.Einsum(
      (width, self.num_experts), ('embed', None), name='router', **parameters
    )('BTD,DE->BTE', x_BTD)
    logits_BTE = hooks.point(self, 'router', logits_BTE)
    # Device by device: the partitioner would gather the operand of top_k.
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
    kernels, names = {}, {}
    for name, (shape, axes) in shapes.items():
      kernels[name], names[name] = ExpertKernel(
        (self.num_experts, *shape),
        ('expert', *axes),
        dtype=self.dtype,
        name=f'expert_{name}',
        **parameters,
      )()
    out_BTD = sharding.per_device(
      functools.partial(
        expert_dispatch.apply_experts,
        names=names,
        num_experts=self.num_experts,
        hidden_dim=self.hidden_dim,
        activation=self.activation,
      ),
      (tokens, tokens, tokens, names),
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
    out_BTD = hooks.point(self, 'output', out_BTD)
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
  def __call__(self) -> tuple[Any, Any]:
    """The kernels, and the names of their dims, for `sharding.per_device`."""
    scale = self.init_scale or self.shape[1] ** -0.5
    kernel = matmul.param(
      self,
      'kernel',
      nn.initializers.normal(scale),
      self.axes,
      self.shape,
      self.param_dtype,
    )
    return matmul.for_devices(kernel, self.axes, self.dtype)


def choose(
  logits_BTE: jax.Array, num_chosen: int
) -> tuple[jax.Array, jax.Array]:
  """Gates and indices of the chosen experts of each token, [B, T, K]."""
  gates_BTK, chosen_BTK = jax.lax.top_k(jax.nn.softmax(logits_BTE), num_chosen)
  if num_chosen > 1:
    gates_BTK /= jnp.sum(gates_BTK, axis=-1, keepdims=True)
  return gates_BTK, chosen_BTK


def router_losses(
  logits_BTE: jax.Array, chosen_BTK: jax.Array, real_BT: jax.Array
) -> dict[str, jax.Array]:
  """Losses that keep a router balanced and its logits small, float32 scalars.

  router_balance is E * sum_e f_e p_e, with f_e the share of the rows that go
  to expert e and p_e its mean probability: 1 where all are equal, at most
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
