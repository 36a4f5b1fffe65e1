"""Tuning of another run's parameters with few parameters of one's own."""

import dataclasses
from typing import Literal

from gemini_jax.config import schema


@schema.section('tune.adalora')
class AdaLoRA:
  """The budget of ranks, and how it is given out (Zhang et al. 2023)."""

  # Rank of each matrix at first; None: half as much again as tune.rank, which
  # is the mean over all matrices at the end.
  initial_rank: schema.Size | None = None
  # Steps before the budget begins to fall, and after it has fallen, in which
  # no rank goes or returns; None: a tenth and three tenths of all.
  warmup_steps: schema.StepsOrZero | None = None
  final_steps: schema.StepsOrZero | None = None
  # Steps from one choice of ranks to the next; None: a hundredth of all.
  every: schema.Steps | None = None
  # Decay rates of the means of importance and of its uncertainty.
  importance_decay: schema.PartialShare = 0.85
  uncertainty_decay: schema.PartialShare = 0.85
  # Weight of the distance of both factors from orthogonal ones.
  orthogonality: schema.NonNegative = 0.1

  def first(self, rank: int) -> int:
    """The initial rank, beside a final one."""
    return self.initial_rank or -(-3 * rank // 2)

  def course(self, num_steps: int) -> tuple[int, int, int]:
    """(first step, last step, interval) in which ranks are chosen."""
    warmup, final = self.warmup_steps, self.final_steps
    first = num_steps // 10 if warmup is None else warmup
    last = num_steps - (num_steps * 3 // 10 if final is None else final)
    return first, last, self.every or max(1, num_steps // 100)


@schema.section('tune')
class Tune:
  """Tuning of the parameters of train.init_from.

  All methods but `full` leave these as they are. A checkpoint then holds what
  is trained alone, and needs the run of train.init_from to be read.
  """

  # full: all parameters are trained. head: the output head and the norm before
  # it. adapter: a bottleneck behind the outputs of attention and feed-forward
  # (Houlsby et al. 2019), or with pattern 'feedforward/.*down' behind the
  # latter (Pfeiffer et al. 2021). lora: an update of low rank beside matrices
  # (Hu et al. 2021). adalora: that, with ranks where they are of use.
  method: Literal['full', 'head', 'adapter', 'lora', 'adalora'] = 'full'
  # Matrices that it is about, by a regular expression that is searched for in
  # path and kind, such as '^decoder/.*@matrix$'; '': the attention and
  # feed-forward matrices of all layers, or what the method is made for.
  pattern: str = ''
  # Rank of an update.
  rank: schema.Size = 8
  # An update counts alpha / rank times.
  alpha: schema.Positive = 16.0
  # alpha / sqrt(rank) times instead (rsLoRA, Kalajdzievski 2023).
  rank_stabilized: bool = False
  # Probability that an input of an update is left out in a step of training.
  dropout: schema.PartialShare = 0.0
  # Hidden width of an adapter.
  width: schema.Size = 64
  # How the matrices beside updates are stored: as they are, or in 4 bits
  # (QLoRA, Dettmers et al. 2023).
  base: Literal['plain', 'nf4'] = 'plain'
  # Of adalora.
  adalora: AdaLoRA = dataclasses.field(default_factory=AdaLoRA)

  def __post_init__(self):
    schema.check_pattern('tune.pattern', self.pattern)
    schema.check(
      self.base == 'plain' or self.method in ('lora', 'adalora'),
      f'tune.base={self.base!r} needs tune.method lora or adalora, not '
      f'{self.method}',
    )
    schema.check(
      not self.dropout or self.method in ('lora', 'adalora'),
      f'tune.dropout={self.dropout} needs tune.method lora or adalora, not '
      f'{self.method}',
    )
    first = self.adalora.first(self.rank)
    schema.check(
      self.method != 'adalora' or first >= self.rank,
      f'tune.adalora.initial_rank={first} must be at least tune.rank='
      f'{self.rank}',
    )

  @property
  def scale(self) -> float:
    """By which an update of low rank is multiplied."""
    rank = self.rank
    if self.method == 'adalora':
      rank = self.adalora.first(rank)
    return self.alpha / (rank**0.5 if self.rank_stabilized else rank)
