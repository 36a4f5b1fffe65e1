"""The one door through which the weights of a model are read."""

from typing import Any

import jax


def to_array(leaf: Any, dtype: jax.typing.DTypeLike) -> jax.Array:
  """A weight, whatever type its leaf has, as a plain array."""
  return leaf.astype(dtype)
