"""Normalised numbers and series as soft tokens.

X media, L steps of C channels, P steps of a patch, N patches, F fields, D
width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax.layers import embedding, linear
from gemini_jax.models import fusion


def _types(config: config_lib.Model) -> dict[str, Any]:
  return {
    'dtype': jnp.dtype(config.dtype),
    'param_dtype': jnp.dtype(config.param_dtype),
  }


class NumberEmbedder(nn.Module):
  """A number as its field's `slope` times it plus its field's `offset`.

  In the place of one that is missing stands the mean of the field, and its
  `missing` is added, which begins at 0: where training misses no number, a
  missing one is read as the mean.

  Attributes:
    config: of the model.
  """

  config: config_lib.Model

  @nn.compact
  def __call__(
    self, values_X1: jax.Array, fields_X1: jax.Array, deterministic: bool = True
  ) -> tuple[jax.Array, jax.Array]:
    """Soft tokens [X, 1, D], and how many of them are real, [X].

    Args:
      values_X1: NaN where a number is missing.
      fields_X1: int32, the field of each, from 1; 0: there is no number.
      deterministic: makes no difference.
    """
    del deterministic
    slope_XD, offset_XD, missing_XD = (
      embedding.Embedding(
        self.config.num_numbers,
        self.config.width,
        axes=(None, 'embed'),
        init_scale=init_scale,
        **_types(self.config),
        name=name,
      )(jnp.maximum(fields_X1[:, 0] - 1, 0))
      for name, init_scale in (
        ('slope', fusion.soft_scale(self.config)),
        ('offset', fusion.soft_scale(self.config)),
        ('missing', 0.0),
      )
    )
    is_missing_X1 = jnp.isnan(values_X1)
    # A product with NaN would have a gradient of NaN.
    known_X1 = jnp.where(is_missing_X1, 0, values_X1).astype(slope_XD.dtype)
    x_XD = known_X1 * slope_XD + offset_XD
    x_XD += jnp.where(is_missing_X1, missing_XD, 0)
    is_there_X1 = fields_X1 > 0
    x_XD = jnp.where(is_there_X1, x_XD, 0)
    return x_XD[:, None], is_there_X1[:, 0].astype(jnp.int32)


class SeriesEmbedder(nn.Module):
  """Patches of a series as vectors, by one linear map.

  Attributes:
    config: of the model.
  """

  config: config_lib.Model

  @nn.compact
  def __call__(
    self,
    values_XLC: jax.Array,
    sizes_X1: jax.Array,
    deterministic: bool = True,
  ) -> tuple[jax.Array, jax.Array]:
    """Soft tokens [X, N, D], and how many of them are real, [X].

    Args:
      values_XLC: steps; those beyond the size are read as 0, the mean.
      sizes_X1: int32, steps of each; 0: there is no series.
      deterministic: makes no difference.
    """
    del deterministic
    part = self.config.series
    X, L, C = values_XLC.shape
    is_real_XL = jnp.arange(L)[None] < sizes_X1
    values_XLC = jnp.where(is_real_XL[..., None], values_XLC, 0)
    size = part.patch * C
    x_XND = linear.Einsum(
      (size, self.config.width),
      (None, 'embed'),
      use_bias=True,
      init_scale=fusion.soft_scale(self.config) * size**-0.5,
      **_types(self.config),
      name='patch',
    )('XNP,PD->XND', values_XLC.reshape(X, L // part.patch, size))
    count_X = -(-jnp.minimum(sizes_X1[:, 0], part.length) // part.patch)
    is_real_XN = jnp.arange(x_XND.shape[1])[None] < count_X[:, None]
    return jnp.where(is_real_XN[..., None], x_XND, 0), count_X
