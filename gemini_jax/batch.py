"""The batch: made by data, read by models and losses.

B sequences in the batch, T decoder length, S encoder length, M the most media
of a kind in a sequence, R dims of a medium, K numbers of a target.
"""

from collections import abc
from typing import Any

import flax.struct
import numpy as np

from gemini_jax import config as config_lib

# A numpy array on the host, a jax array on devices, or a shape.
Array = Any


@flax.struct.dataclass
class Media:
  """Pictures, sounds or videos of sequences, on canvases of one size.

  Numbers and series are media, too, though their values are normalised.

  Attributes:
    values: pictures uint8[B, M, H, W, C], videos uint8[B, M, F, H, W, C],
      sounds int16[B, M, N], series float32[B, M, L, C] of L steps or numbers
      float32[B, M, 1], NaN where one is missing.
    sizes: int32[B, M, R], the extent of each on its canvas: (height, width),
      (frames, height, width), (samples,) or (steps,), and of a number the
      field that it is of, from 1; 0 where there is no medium.
  """

  values: Array
  sizes: Array


@flax.struct.dataclass
class Sequence:
  """Tokens with positions, segments and media.

  Attributes:
    tokens: int32[B, T], token ids.
    positions: int32[B, T], position in the segment, from 0.
    segments: int32[B, T], index of the document in the row, from 1; 0 is
      padding. Attention never crosses segments.
    media: by kind, the media of the placeholders among the tokens, in order.
  """

  tokens: Array
  positions: Array
  segments: Array
  media: abc.Mapping[str, Media] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Batch:
  """One global batch, or one process's share of it.

  Attributes:
    decoder: inputs of the decoder, shifted right by one against `targets`.
    targets: int32[B, T], the token that each position predicts.
    weights: float32[B, T], loss weight of each position; 0: ignored.
    prefix: bool[B, T], positions that the whole segment may attend to
      (prefix-LM), or None.
    encoder: inputs of the encoder, or None.
    rejected: of preferences, the same rows with targets that are worse: segment
      k of a row here is preferred to segment k of that row there; or None.
    values: of targets that are labels or numbers, float32[B, 1, K]: 1 for each
      label that the row's one example has, or normalised numbers. They are
      predicted where the weight is above 0; `targets` are 0 there.
  """

  decoder: Sequence
  targets: Array
  weights: Array
  prefix: Array | None = None
  encoder: Sequence | None = None
  rejected: 'Batch | None' = None
  values: Array | None = None


def blank_media(kind: str, config: config_lib.Model, *lead: int) -> Media:
  """Arrays for media of a kind with leading dims `lead`, all of size 0."""
  canvas = config.image.height, config.image.width, config.image.channels
  shape, dtype, num_dims = {
    'image': (canvas, np.uint8, 2),
    'audio': ((config.audio.num_samples,), np.int16, 1),
    'video': ((config.video.num_frames, *canvas), np.uint8, 3),
    'series': (
      (config.series.num_steps, config.series.channels),
      np.float32,
      1,
    ),
    'number': ((1,), np.float32, 1),
  }[kind]
  return Media(
    np.zeros((*lead, *shape), dtype), np.zeros((*lead, num_dims), np.int32)
  )


def plain_sequence(tokens_BT: np.ndarray, lengths_B: np.ndarray) -> Sequence:
  """One segment a row: the first `lengths_B` tokens; the rest is padding."""
  positions_BT = np.broadcast_to(
    np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape
  )
  segments_BT = (positions_BT < lengths_B[:, None]).astype(np.int32)
  return Sequence(tokens_BT.astype(np.int32), positions_BT, segments_BT)


def padded_size(count: int, limit: int) -> int:
  """Rows of a batch that holds `count`: a power of two, at most `limit`.

  So few sizes are ever compiled.
  """
  return min(limit, 1 << max(count - 1, 0).bit_length())


def pad_rows(
  rows: abc.Sequence[np.ndarray], num_rows: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Token ids as int32[num_rows, length] and their lengths, int32[num_rows].

  Each row is padded at its end; rows past the given ones are empty.
  """
  assert len(rows) <= num_rows, 'more rows than the batch has'
  tokens_BT = np.full((num_rows, length), pad_id, np.int32)
  lengths_B = np.zeros(num_rows, np.int32)
  for i, row in enumerate(rows):
    tokens_BT[i, : len(row)] = row
    lengths_B[i] = len(row)
  return tokens_BT, lengths_B
