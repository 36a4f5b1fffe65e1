"""Compression of a finished run: what is pruned, and how weights are stored."""

import dataclasses
import re
from typing import Literal

from gemini_jax.config import schema

Weights = Literal['float', 'int8', 'int4', 'nf4', 'float8']
# Bits of a number.
BITS = {'int8': 8, 'int4': 4, 'nf4': 4, 'float8': 8}
# Methods that prune, and those that read calibration data.
PRUNING = ('magnitude', 'wanda', 'sparsegpt')
CALIBRATED = ('wanda', 'sparsegpt', 'gptq')


@schema.section('compress.recovery')
class Recovery:
  """Training of what is left, in the same run of --mode=compress.

  Pruned weights stay zero. Quantised ones keep their scales: the forward pass
  reads the nearest codes, and the gradient goes straight through.
  """

  # Updates; 0: none.
  steps: schema.StepsOrZero = 0
  # Of AdamW, without decay; it falls to a tenth along a cosine.
  learning_rate: schema.Positive = 1e-4
  # Weight of the divergence from the model that was compressed (Hinton et al.
  # 2015), beside that of the data, 1 - distillation.
  distillation: schema.Share = 0.5


@schema.section('compress')
class Compress:
  """What `--mode=compress` makes of the run in --workdir.

  It writes WORKDIR/compressed/NAME, a workdir, and a row of what it is like
  beside the run into WORKDIR/compress.json.
  """

  # round: the nearest codes. gptq: codes that make up for each other's errors
  # (Frantar et al. 2023). magnitude: the smallest weights of a matrix are
  # pruned. wanda: the smallest weights times the norm of their input, of each
  # output (Sun et al. 2024). sparsegpt: those that cost least, where the rest
  # makes up for them, and for rounding in the same pass (Frantar and Alistarh
  # 2023). none: nothing.
  method: Literal[
    'none', 'round', 'gptq', 'magnitude', 'wanda', 'sparsegpt'
  ] = 'none'
  # Share of the weights of each matrix that is pruned.
  alpha: schema.PartialShare = 0.0
  # Weights that are kept of neighbouring inputs, such as 2:4 for two of four;
  # '': those of alpha, wherever they are.
  n_m: str = ''
  # Whole blocks of so many inputs and outputs are pruned, an equal number of
  # them for every block of outputs, by the squares of what the method scores;
  # 0: single weights. With weights=float only the others are stored and
  # multiplied, which is faster too.
  block: schema.SizeOrZero = 0
  # How matrices are stored: as they are, or in codes with a scale for each
  # output (int8, float8), for each group of inputs (int4) or block of outputs
  # (nf4).
  weights: Weights = 'float'
  # How token tables and heads are then stored, by row; they are not pruned.
  tables: Weights = 'int8'
  # Inputs of an int4 group; the last one of a row may have fewer.
  group: schema.Size = 128
  # Matrices that it is about, by a regular expression that is searched for in
  # path and kind; '': those of all layers but of experts and routers.
  pattern: str = ''
  # Rows of data.train that calibration reads.
  sequences: schema.Size = 128
  # Of the mean of the diagonal of a Hessian, added to it.
  damping: schema.Positive = 0.01
  # Inputs of int8 matrices as int8 too, where the hardware multiplies these.
  int8_inputs: bool = False
  # Training after it.
  recovery: Recovery = dataclasses.field(default_factory=Recovery)
  # Whether the run of this config is compressed; --mode=compress sets it.
  is_stored: bool = False
  # How many numbers a matrix keeps at most, of each parameter that may have
  # zeros, by their paths in order; --mode=compress sets it.
  num_kept: tuple[schema.Count, ...] = ()

  def __post_init__(self):
    schema.check(
      not self.n_m or re.fullmatch(r'[1-9]\d?:[1-9]\d?', self.n_m) is not None,
      f'compress.n_m={self.n_m!r} must be N:M, such as 2:4, or empty',
    )
    if self.n_m:
      n, m = self.kept_of
      schema.check(
        n < m and self.alpha in (0, self.share),
        f'compress.n_m={self.n_m!r} must keep fewer than all, and prunes '
        f'{self.share:g} of the weights; set compress.alpha={self.alpha:g} to '
        '0',
      )
    schema.check(
      not self.block or self.alpha > 0,
      f'compress.block={self.block} prunes the share compress.alpha of all '
      f'blocks; set compress.alpha={self.alpha} above 0',
    )
    schema.check(
      not (self.block and self.n_m),
      f'compress.block={self.block} prunes whole blocks; set compress.n_m='
      f"{self.n_m!r} to ''",
    )
    schema.check(
      not self.block or self.method != 'sparsegpt',
      f'compress.block={self.block} does not go with compress.method='
      "'sparsegpt', which prunes single weights; use magnitude or wanda",
    )
    schema.check(
      self.weights == 'int8' or not self.int8_inputs,
      f'compress.int8_inputs=True needs compress.weights=int8, not '
      f'{self.weights}',
    )
    schema.check(
      self.method not in ('round', 'gptq') or self.weights != 'float',
      f'compress.method={self.method!r} rounds to codes, and compress.weights='
      "'float' has none; set it to int8, int4 or float8",
    )
    schema.check(
      self.method != 'gptq' or self.weights != 'nf4',
      "compress.method='gptq' does not round to compress.weights='nf4'; use "
      'method round, or weights int4',
    )
    schema.check_pattern('compress.pattern', self.pattern)

  @property
  def kept_of(self) -> tuple[int, int]:
    """N and M; (0, 0): none."""
    n, m = self.n_m.split(':') if self.n_m else (0, 0)
    return int(n), int(m)

  @property
  def share(self) -> float:
    """Share of the weights that is pruned, by either field."""
    n, m = self.kept_of
    return 1 - n / m if m else self.alpha
