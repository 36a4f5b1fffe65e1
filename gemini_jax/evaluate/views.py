"""Views of pictures: the same batch again, mirrored or shifted a little.

B rows, M media, F frames, H x W pixels of C channels.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib

# (mirrored, pixels that it is shifted by): what a number of views are.
_VIEWS = tuple(
  (is_mirrored, shift) for shift in (0, -1, 1) for is_mirrored in (False, True)
)


def of(batch: batch_lib.Batch, count: int) -> list[batch_lib.Batch]:
  """The batch as it is, and with other views of its pictures and videos.

  Args:
    batch: on devices.
    count: 1; 2: also mirrored left to right; 6: both also shifted by a pixel
      along both dims, either way, as Jordan (2024) averages for CIFAR-10.
  """
  return [_view(batch, *view) for view in _VIEWS[:count]]


def _view(
  batch: batch_lib.Batch, is_mirrored: bool, shift: int
) -> batch_lib.Batch:
  def seen(sequence: batch_lib.Sequence) -> batch_lib.Sequence:
    media = {
      kind: dataclasses.replace(
        medium, values=changed(medium, is_mirrored, shift)
      )
      if kind in ('image', 'video')
      else medium
      for kind, medium in sequence.media.items()
    }
    return dataclasses.replace(sequence, media=media)

  return dataclasses.replace(
    batch,
    decoder=seen(batch.decoder),
    encoder=None if batch.encoder is None else seen(batch.encoder),
  )


def changed(
  medium: batch_lib.Media, is_mirrored: bool, shift: int
) -> jax.Array:
  """Pictures mirrored, then shifted down and right, each within its extent.

  What is moved in from outside repeats the edge; the rest of the canvas has no
  meaning.

  Args:
    medium: pictures [B, M, H, W, C] or videos [B, M, F, H, W, C].
    is_mirrored: left to right.
    shift: pixels, down and right; negative ones are up and left.
  """
  values = medium.values
  lead = medium.sizes.shape[:2] + (1,) * (values.ndim - 2)
  last_row, last_column = (
    jnp.maximum(medium.sizes[..., dim].reshape(lead) - 1, 0) for dim in (-2, -1)
  )
  ones = (1,) * (values.ndim - 3)
  row = jnp.arange(values.shape[-3]).reshape(*ones, -1, 1, 1)
  column = jnp.arange(values.shape[-2]).reshape(*ones, 1, -1, 1)
  row = jnp.clip(row - shift, 0, last_row)
  column = jnp.clip(column - shift, 0, last_column)
  if is_mirrored:
    column = last_column - column
  values = jnp.take_along_axis(values, row, axis=-3)
  return jnp.take_along_axis(values, column, axis=-2)
