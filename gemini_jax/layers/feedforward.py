"""The position-wise feed-forward layer.

B batch, T length, D width, F hidden width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gemini_jax.layers import hooks, linear

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': functools.partial(jax.nn.gelu, approximate=True),
  'gelu_exact': functools.partial(jax.nn.gelu, approximate=False),
  'silu': jax.nn.silu,
  'relu': jax.nn.relu,
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),
}


class FeedForward(nn.Module):
  """Two projections with a nonlinearity, gated or plain (Shazeer 2020).

  Attributes:
    hidden_dim: F.
    activation: a name in ACTIVATIONS.
    gated: multiply by a second projection of the input.
    use_bias: biases of all projections.
    dtype: of the computation.
    param_dtype: of the parameters.
    init_scale: of the initial kernels; None: 1 / sqrt(fan in).
    axes: logical names of D and F, for sharding.
  """

  hidden_dim: int
  activation: str = 'gelu'
  gated: bool = True
  use_bias: bool = False
  dtype: jax.typing.DTypeLike = jnp.float32
  param_dtype: jax.typing.DTypeLike = jnp.float32
  init_scale: float | None = None
  axes: tuple[str | None, str | None] = ('embed', 'mlp')

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """The update of the residual stream, [B, T, D]."""
    x_BTD = hooks.point(self, 'input', x_BTD)
    width = x_BTD.shape[-1]
    project = functools.partial(
      linear.Einsum,
      use_bias=self.use_bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      init_scale=self.init_scale,
    )
    rising = functools.partial(project, (width, self.hidden_dim), self.axes)
    activate = ACTIVATIONS[self.activation]
    if self.gated:
      gate_BTF = rising(name='gate')('BTD,DF->BTF', x_BTD)
      gate_BTF = hooks.point(self, 'gate', gate_BTF)
      hidden_BTF = activate(checkpoint_name(gate_BTF, 'gate'))
      up_BTF = rising(name='up')('BTD,DF->BTF', x_BTD)
      up_BTF = hooks.point(self, 'up', up_BTF)
      hidden_BTF = hidden_BTF * checkpoint_name(up_BTF, 'up')
    else:
      up_BTF = rising(name='up')('BTD,DF->BTF', x_BTD)
      up_BTF = hooks.point(self, 'up', up_BTF)
      hidden_BTF = activate(checkpoint_name(up_BTF, 'up'))
    hidden_BTF = hooks.point(self, 'hidden', hidden_BTF)
    down = project((self.hidden_dim, width), self.axes[::-1], name='down')
    return hooks.point(self, 'output', down('BTF,FD->BTD', hidden_BTF))
