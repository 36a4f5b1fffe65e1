"""Training of weights of which a share is zero."""

import dataclasses
import re
from typing import Annotated, Literal

from gemini_jax.config import schema


@schema.section('sparsity.gate')
class Gate:
  """How validation decides what stays pruned (adapt/gate.py)."""

  # Share of the weights that are left which an epoch's end prunes, at first; it
  # is halved whenever validation refuses.
  alpha: Annotated[float, schema.Range(0, 1, above=True, below=True)] = 0.5
  # By how much of itself the validation loss may be above the lowest that was
  # accepted, the dense model's being the first; below the standard error of the
  # loss it decides by noise.
  tolerance: schema.NonNegative = 0.02
  # Epochs before the first pruning; the loss after them is the one to keep.
  first_epochs: schema.Steps = 2
  # Epochs of training at the end, in which nothing is pruned any more.
  last_epochs: schema.Steps = 2


@schema.section('sparsity')
class Sparsity:
  """Training of weights of which a share is zero (adapt/pruning.py).

  What is pruned is zero in parameters, averages and exports.
  """

  # none: off. static: the first mask stays. set: the smallest weights go, and
  # as many come at random (Mocanu et al. 2018). rigl: those come whose gradient
  # is largest (Evci et al. 2020). gradual: the smallest go in the course of the
  # run (Zhu and Gupta 2017). movement: those go that training moves towards
  # zero (Sanh et al. 2020). ste: the largest count, and all are trained by
  # their gradients (straight-through). gated: validation decides.
  method: Literal[
    'none', 'static', 'set', 'rigl', 'gradual', 'movement', 'ste', 'gated'
  ] = 'none'
  # Share of the weights that is zero, at last; gated finds its own.
  sparsity: schema.PartialShare = 0.9
  # Which matrices keep more. uniform: all the same share. erk: those with few
  # inputs and outputs (Erdos-Renyi-Kernel, Evci et al. 2020). global: those
  # with more weights that are large beside their root mean square, as gated
  # does; of gradual alone.
  distribution: Literal['uniform', 'erk', 'global'] = 'uniform'
  # Matrices and tables that it is about, by a regular expression that is
  # searched for in path and kind, such as '^decoder/.*@matrix$'.
  pattern: str = r'/layers/(?!.*router).*@(matrix|expert)$'
  # N:M, such as '2:4': N of every M weights that lie one after the other along
  # the inputs are kept, in place of a share; '': off.
  n_m: str = ''
  # Whole blocks of so many inputs and outputs, an equal number of them for
  # every block of outputs; 0: single weights.
  block: schema.SizeOrZero = 0
  # The first mask. random: any weights. magnitude: the largest. nonzero: what
  # is not zero in the parameters that the run starts from, in place of a share.
  # auto: magnitude with train.init_from, else random.
  first: Literal['auto', 'random', 'magnitude', 'nonzero'] = 'auto'
  # Steps from one change of masks to the next.
  update_every: schema.Steps = 100
  # Shares of all steps at which masks begin to change and no longer do.
  begin: schema.PartialShare = 0.0
  end: schema.PositiveShare = 0.75
  # Share of the kept weights that set and rigl exchange, at first.
  drop_fraction: schema.PartialShare = 0.3
  # Of method gated.
  gate: Gate = dataclasses.field(default_factory=Gate)

  def __post_init__(self):
    schema.check_pattern('sparsity.pattern', self.pattern)
    schema.check(
      self.method == 'none' or bool(self.pattern),
      f"sparsity.pattern='' chooses nothing for sparsity.method={self.method}; "
      'name some matrices, such as @matrix$',
    )
    given = f'sparsity.n_m={self.n_m!r}'
    schema.check(
      not self.n_m or 0 < self.kept_of_group[0] < self.kept_of_group[1],
      f"{given} must be two numbers N:M with 0 < N < M, such as '2:4'",
    )
    schema.check(
      not (self.n_m and self.block),
      f'{given} does not go with sparsity.block={self.block}; set one of them',
    )
    schema.check(
      self.method != 'gated' or not (self.n_m or self.block),
      'sparsity.method=gated prunes single weights; leave sparsity.n_m and '
      'sparsity.block off',
    )
    schema.check(
      self.distribution != 'global'
      or (self.method == 'gradual' and not self.n_m and not self.block),
      'sparsity.distribution=global is for single weights of '
      f'sparsity.method=gradual, not {self.method}; choose erk',
    )
    schema.check(
      self.begin < self.end,
      f'sparsity.begin={self.begin} must be below sparsity.end={self.end}',
    )
    keeps = self.method in ('static', 'set', 'rigl')
    schema.check(
      self.first == 'auto' or keeps,
      f'sparsity.first={self.first} is for methods static, set and rigl; '
      f'{self.method} begins in its own way',
    )

  @property
  def kept_of_group(self) -> tuple[int, int]:
    """N and M of N:M; zeros where it is no such pair."""
    match = re.fullmatch(r'(\d{1,4}):(\d{1,4})', self.n_m)
    return (int(match[1]), int(match[2])) if match else (0, 0)

  def course(self, num_steps: int) -> tuple[int, int]:
    """(first step, last step) between which masks change."""
    last = min(max(1, round(self.end * num_steps)), num_steps)
    return min(round(self.begin * num_steps), last - 1), last
