"""Int8 matrices whose inputs are int8 too: a scale for each row of these.

R rows, D dims in, F dims out.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gemini_jax.weights import int8


@flax.struct.dataclass
class Int8Inputs(int8.Int8):
  """Of products of integers, where `Int8` keeps inputs to 15 bits or more.

  Twice as many operations a second as of bfloat16 on the devices that have
  them (TPU v5e and later, GPUs with tensor cores).
  """

  def _product(
    self,
    x: jax.Array,
    num_in: int,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None,
  ) -> jax.Array:
    lead = x.shape[: x.ndim - num_in]
    x_RD = x.reshape(-1, self.values.shape[-1]).astype(jnp.float32)
    y_RF = _rounded_product(x_RD, *self.arrays())
    return y_RF.reshape(*lead, *self.outputs).astype(out_dtype or dtype)

  @property
  def stays_in_stack(self) -> bool:
    """No: the kernel that reads stacks takes finer inputs."""
    return False


@jax.custom_jvp
def _rounded_product(
  x_RD: jax.Array, values_FD: jax.Array, scale_F: jax.Array
) -> jax.Array:
  numbers_RD, step_R1 = int8.rounded(x_RD)
  sums_RF = _contract(numbers_RD, values_FD, jnp.int32)
  return sums_RF.astype(jnp.float32) * step_R1 * scale_F[None]


@_rounded_product.defjvp
def _rounded_product_jvp(primals: Any, tangents: Any) -> Any:
  """As if the inputs were not rounded."""
  _, values_FD, scale_F = primals
  dx_RD = tangents[0]
  tangent = _contract(dx_RD, values_FD.astype(dx_RD.dtype), jnp.float32)
  return _rounded_product(*primals), tangent * scale_F[None]


def _contract(x_RD: jax.Array, values_FD: jax.Array, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(
    x_RD, values_FD, (((1,), (1,)), ((), ())), preferred_element_type=dtype
  )
