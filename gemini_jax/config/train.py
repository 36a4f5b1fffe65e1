"""The training loop, and the weights of what it minimises."""

import dataclasses
from typing import Annotated, Literal

from gemini_jax.config import data, schema

# How much a term of the loss counts.
Weight = Annotated[float, schema.Range(0, cap=1_000_000)]


@schema.section('train.kl_annealing')
class KLAnnealing:
  """How much a latent may say, and when; loss_weights.kl weighs what it says.

  Against posterior collapse, where a decoder learns to write without z.
  """

  # Course of the weight of the KL term. cyclical: it rises from 0 in every
  # cycle (Fu et al. 2019); monotonic: once; constant: never below its value.
  schedule: Literal['cyclical', 'monotonic', 'constant'] = 'cyclical'
  # Cycles of all steps.
  cycles: schema.Steps = 4
  # Share of a cycle in which the weight is 0, and in which it rises.
  zero_fraction: schema.PartialShare = 0.0
  ramp_fraction: schema.PartialShare = 0.5
  # Nats of each dimension of z that cost nothing (Kingma et al. 2016).
  free_bits: schema.NonNegative = 0.2
  # Nats that z must carry on average, by a learned multiplier (Minimum
  # Desired Rate, Pelsmaeker and Aziz 2020); 0: off.
  min_kl: schema.NonNegative = 0.0
  # Share of the steps in which the KL term is off; then the decoder starts
  # anew and the schedule begins (Li et al. 2019).
  pretrain_fraction: schema.PartialShare = 0.0
  # Rate of the decoder's input tokens that are hidden from it.
  word_dropout: schema.PartialShare = 0.0

  def __post_init__(self):
    schema.check(
      not self.min_kl or self.schedule == 'constant',
      f'train.kl_annealing.min_kl={self.min_kl} needs schedule constant: '
      'while the KL term is off nothing would hold its multiplier',
    )
    schema.check(
      self.zero_fraction + self.ramp_fraction <= 1,
      f'train.kl_annealing.zero_fraction={self.zero_fraction} and '
      f'ramp_fraction={self.ramp_fraction} must together be at most 1',
    )


@schema.section('train.dpo')
class DPO:
  """Direct preference optimisation (Rafailov et al. 2023).

  Of targets in data.targets_field over those in data.rejected_field. Rewards
  are log-probabilities relative to the parameters that the run starts from.
  """

  # Factor of rewards; a larger one holds the model nearer to where it started.
  beta: Annotated[float, schema.Range(0, above=True, cap=1000)] = 0.1
  # Share of the preferences that is assumed to be wrong (cDPO, Mitchell 2023).
  label_smoothing: Annotated[float, schema.Range(0, 0.5, below=True)] = 0.0
  # Rewards are means over the tokens of a target, not sums (Tulu 3, Lambert et
  # al. 2024); beta is then larger, such as 5.
  length_normalized: bool = False


@schema.section('train.early_stopping')
class EarlyStopping:
  """Ends a run before its last step, as a finished one.

  By the validation loss that train.keep_best goes by. Each validated step is
  saved, so that the best of them is kept.
  """

  # Evaluations in a row without an improvement after which the run ends; 0: it
  # never does.
  patience: schema.StepsOrZero = 0
  # How much lower than the lowest before it a loss must be to improve on it.
  min_improvement: schema.NonNegative = 0.0


@schema.section('train')
class Train:
  """The training loop."""

  # Updates of the parameters.
  num_steps: schema.Steps = 1000
  # Training examples (rows of batches) of an epoch, a whole batch at the end;
  # 0: training knows no epochs.
  epoch_examples: schema.StepsOrZero = 0
  # So many epochs, in place of num_steps; 0: num_steps.
  epochs: schema.StepsOrZero = 0
  # All randomness of a run follows from it.
  seed: schema.Seed = 0
  # Folder of a run from whose parameters this one starts: those of its newest
  # checkpoint that it would be evaluated with. Its tokenizer comes with them.
  # Of no effect once this run has a checkpoint; '': parameters are drawn.
  init_from: str = ''
  # What may differ from the data of the checkpoint that a run resumes from:
  # 'data.batch_size', or 'data.train' for other records. Step t then reads the
  # batch that a run of the new values would have there.
  accept_changes: tuple[str, ...] = ()
  # Steps between lines of metrics, evaluations and checkpoints.
  log_every: schema.Count = 10
  eval_every: schema.Count = 200
  save_every: schema.Count = 200
  # Newest checkpoints kept.
  keep_last: schema.Count = 2
  # Keep the best by validation loss as well, to which terms of media count by
  # their weights. Where weights, units or ranks are removed in the course of
  # the run, it is the best of those after the last removal.
  keep_best: bool = True
  # Ending the run where validation no longer improves.
  early_stopping: EarlyStopping = dataclasses.field(
    default_factory=EarlyStopping
  )
  # Label smoothing of the cross-entropy.
  label_smoothing: schema.PartialShare = 0.0
  # Training by preferences.
  dpo: DPO = dataclasses.field(default_factory=DPO)
  # Training of a latent.
  kl_annealing: KLAnnealing = dataclasses.field(default_factory=KLAnnealing)
  # Compiled programs kept here; None: ~/.cache/gemini_jax/xla; '': off.
  compilation_cache: str | None = None
  # Project on Weights & Biases (pip install 'gemini_jax[wandb]'); '': off.
  wandb_project: str = ''

  def epoch_steps(self, batch_size: int) -> int:
    """Steps of an epoch; 0 without epochs."""
    return -(-self.epoch_examples // batch_size)

  def __post_init__(self):
    schema.check(
      not self.epochs or bool(self.epoch_examples),
      f'train.epochs={self.epochs} needs train.epoch_examples, the examples of '
      'an epoch',
    )
    fields = ('train', *data.BATCH_FIELDS, *data.TASK_FIELDS, 'class_weights')
    known = (*(f'data.{name}' for name in fields), 'train.seed')
    for name in self.accept_changes:
      schema.check(
        name in known,
        f'train.accept_changes: {name!r} is not a field that it takes'
        f'{schema.nearest(name, known)}',
      )


@schema.section('loss_weights')
class LossWeights:
  """Weights of the losses beside the cross-entropy; see objectives/."""

  # Mean squared log-partition of the logits (PaLM, section 5).
  z_loss: Weight = 0.0
  # How unevenly routers load their experts: 1 at best (Switch, section 2.2).
  router_balance: Weight = 0.01
  # Mean squared log-partition of the routers' logits (ST-MoE, section 3.1).
  router_z: Weight = 0.001
  # What a latent says, in nats, as it stands in the evidence bound at 1; see
  # train.kl_annealing for its course.
  kl: Weight = 1.0
  # What a latent should say and does not, by its multiplier.
  min_kl: Weight = 1.0
  # Written media: nats of each number of a z, as one token's cross-entropy.
  media_nll: Weight = 1.0
  # Autoencoders of media, for each medium: absolute error of a number; nats of
  # a token's z; edges of a picture, or loud parts of a sound.
  reconstruction: Weight = 1.0
  media_kl: Weight = 0.003
  detail: Weight = 0.0
  # Nats of finding the other side of an example among those of the batch.
  contrastive: Weight = 1.0
  # Preferences (data.rejected_field), which take the place of the
  # cross-entropy: nats of telling what is preferred, for each pair; and the
  # cross-entropy of what is preferred, for each of its tokens.
  dpo: Weight = 1.0
  chosen_nll: Weight = 0.0
