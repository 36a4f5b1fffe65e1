"""The update rule, its learning rate and what surrounds it."""

from typing import Annotated, Literal

from gemini_jax.config import schema

# Peak learning rates that train a small Transformer, by optimizer. Muon's is
# AdamW's, since its updates are as large; at 0.006 what is learned first can
# keep the rest from being learned, see LOG.md.
LEARNING_RATES = {
  'adamw': 1e-3,
  'adafactor': 1e-3,
  'muon': 1e-3,
  'lion': 2e-4,
  'prodigy': 1.0,
  'schedule_free': 3e-3,
  'momo_adam': 1e-2,
  'dadapt_adamw': 1.0,
  'dog': 1.0,
}

# Rules that neither estimate a rate nor average by the steps that they make.
_FIXED_RATE = ('adamw', 'adafactor', 'muon', 'lion')


@schema.section('optimizer')
class Optimizer:
  """The update rule, its learning rate and what surrounds it."""

  # The update rule.
  name: Literal[
    'adamw',
    'adafactor',
    'muon',
    'lion',
    'prodigy',
    'schedule_free',
    'momo_adam',
    'dadapt_adamw',
    'dog',
  ] = 'adamw'
  # Peak learning rate; None: a usual one, see LEARNING_RATES. Of prodigy,
  # dadapt_adamw and dog, which find their own, a multiplier near 1; of
  # momo_adam, which makes steps smaller by the loss, an upper limit.
  learning_rate: schema.Positive | None = None
  # That of what muon leaves to Adam: embeddings, heads, norms and what reads
  # the pixels of pictures. At the same rate Adam's steps are longer: about as
  # long as the rate at first, where muon's are a fifth. None: learning_rate.
  adam_learning_rate: schema.Positive | None = None
  # Its course after the warm-up; schedule_free never decays.
  schedule: Literal['constant', 'cosine', 'wsd', 'inverse_sqrt'] = 'cosine'
  # Linear warm-up, in steps.
  warmup_steps: schema.StepsOrZero = 0
  # The last learning rate as a share of the peak (cosine, wsd).
  final_scale: schema.Share = 0.1
  # How often cosine runs from the peak to the last rate (SGDR, Loshchilov and
  # Hutter 2017). With one cycle an epoch, whatever judges an epoch's end judges
  # a model whose rate has fallen.
  cycles: schema.Steps = 1
  # Share of the steps in which wsd decays.
  decay_share: schema.Share = 0.2
  # Multiply the learning rate by plateau_factor once the validation loss
  # has not improved for plateau_patience evaluations; 0: off.
  plateau_patience: schema.StepsOrZero = 0
  # What a plateau multiplies the learning rate by.
  plateau_factor: Annotated[
    float, schema.Range(0, 1, above=True, below=True)
  ] = 0.5
  # Decay rates of the first and of the second moment.
  b1: schema.PartialShare = 0.9
  b2: schema.PartialShare = 0.95
  # Updates are multiplied by this for each layer from the output down to their
  # own, as in BEiT (Bao et al. 2022): those of layer l of L, counted from 1, by
  # its power L + 1 - l, of the embeddings by its power L + 1, of heads by 1. A
  # decoder lies above its encoder, both above encoders of media. 1: off.
  layer_decay: schema.PositiveShare = 1.0
  # Added to the root of the second moment.
  eps: schema.Positive = 1e-8
  # Decoupled weight decay. The steps of dog are those of SGD, far larger than
  # AdamW's: about 1e-4 there.
  weight_decay: Annotated[float, schema.Range(0, cap=10)] = 0.1
  # Parameters whose path matches this regular expression do not decay.
  no_decay: str = (
    r'(scale|bias|embedding|positions|latent/(query|multiplier|prior_\w+))$'
  )
  # Parameters whose path matches stay as they are; '': all are trained.
  frozen: str = ''
  # Largest global norm of the gradient; 0: no clipping. momo_adam, which reads
  # the norm to choose its steps, is not clipped.
  clip_norm: schema.NonNegative = 1.0
  # Sequences of a batch are processed in this many parts, one by one.
  accumulation_steps: schema.Size = 1
  # Evaluate an exponential moving average of the parameters; 0: off.
  ema_decay: schema.PartialShare = 0.0

  def __post_init__(self):
    schema.check(
      self.b1 > 0 or self.name != 'schedule_free',
      f'optimizer.b1={self.b1} must be above 0 with schedule_free, which '
      'divides by it',
    )
    schema.check(
      self.cycles == 1 or self.schedule == 'cosine',
      f'optimizer.cycles={self.cycles} needs optimizer.schedule=cosine, not '
      f'{self.schedule}',
    )
    schema.check(
      self.adam_learning_rate is None or self.name == 'muon',
      f'optimizer.adam_learning_rate={self.adam_learning_rate} needs '
      f'optimizer.name=muon, not {self.name}',
    )
    schema.check(
      not (self.ema_decay and self.name == 'schedule_free'),
      'optimizer.ema_decay must be 0 with schedule_free, which averages itself',
    )
    schema.check(
      not (self.plateau_patience and self.name == 'schedule_free'),
      'optimizer.plateau_patience must be 0 with schedule_free, whose average '
      'would not see the scaled steps',
    )
    schema.check(
      not (self.plateau_patience and self.name == 'dadapt_adamw'),
      'optimizer.plateau_patience must be 0 with dadapt_adamw, whose estimate '
      'takes its steps to be made in full',
    )
    schema.check(
      self.layer_decay == 1 or self.name in _FIXED_RATE,
      f'optimizer.layer_decay={self.layer_decay} must be 1 with {self.name}, '
      'which takes its steps to be made in full; use '
      f'{", ".join(_FIXED_RATE[:-1])} or {_FIXED_RATE[-1]}',
    )
    for name in ('no_decay', 'frozen'):
      schema.check_pattern(f'optimizer.{name}', getattr(self, name))

  @property
  def peak(self) -> float:
    """The learning rate after warm-up."""
    if self.learning_rate is None:
      return LEARNING_RATES[self.name]
    return self.learning_rate
