"""The one config: every field, its type, its default and what it means.

An experiment edits a ConfigDict made by `to_config_dict`; `from_config_dict`
turns it into the frozen dataclasses below, strictly. Nothing else in the
package sees a ConfigDict, and no field has a second default anywhere.
"""

import dataclasses
import json
import pathlib
import re
from typing import Annotated, Any, Literal

import ml_collections

from gemini_jax import architecture, host, schema

# Peak learning rates that train a small Transformer, by optimizer.
LEARNING_RATES = {
  'adamw': 1e-3,
  'adafactor': 1e-3,
  'muon': 3e-3,
  'lion': 2e-4,
  'prodigy': 1.0,
  'schedule_free': 3e-3,
  'momo_adam': 1e-2,
}

# Between several texts of one prompt.
SEPARATOR = '||'

# A global batch of all processes holds no more than this, or it could not even
# be prepared: tokens of all its sequences, and bytes of one kind of media.
MAX_BATCH_TOKENS = 2**28
MAX_BATCH_BYTES = 2**35

# Where a run keeps its config, in its folder.
FILE = 'config.json'

# Of the section `data`: what a batch depends on beside the sources and the
# tokenizer, and what else where there are tasks.
BATCH_FIELDS = (
  *('weights', 'objective', 'batch_size', 'sequence_length', 'inputs_length'),
  *('pack', 'shuffle'),
)
TASK_FIELDS = (
  *('tasks', 'label_names', 'audio_rate', 'augment'),
  *('media_dropout', 'inputs_dropout', 'without', 'permuted'),
)

AXES = ('data', 'fsdp', 'tensor', 'sequence', 'expert', 'pipeline')


# What every module of ours says of a user's mistake.
ConfigError = schema.ConfigError
check = schema.check
optional = schema.optional
nearest = schema.nearest

# Types of fields: devices along an axis, and how much a term of the loss
# counts.
Devices = Annotated[int, schema.Range(1, rest=True, cap=2**20)]
Weight = Annotated[float, schema.Range(0, cap=1_000_000)]

# The section `model`.
Model = architecture.Model
Latent = architecture.Latent
Image = architecture.Image
Audio = architecture.Audio
Video = architecture.Video
Autoencoder = architecture.Autoencoder
KINDS = architecture.KINDS


@schema.section('data.augment')
class Augment:
  """How training examples are varied, on the host: data/augmentation.py."""

  # Pictures, and all frames of a video alike. Moved by so many pixels at most
  # in each direction.
  crop_padding: Annotated[int, schema.Range(0, cap=2**14)] = 0
  # Every other one is mirrored, left to right.
  flip: bool = False
  # So many random operations of RandAugment; 0: off; and how strong they are,
  # from 0 to 10.
  randaugment_ops: Annotated[int, schema.Range(0, cap=100)] = 0
  randaugment_magnitude: Annotated[float, schema.Range(0, 10)] = 5.0
  # Pictures and sounds that an encoder reads are mixed with those of another
  # row, by a share below a half of Beta(alpha, alpha); 0: off.
  mixup_alpha: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # Sounds. So many spans of silence, each of up to so many seconds.
  time_masks: Annotated[int, schema.Range(0, cap=1000)] = 0
  time_mask_seconds: Annotated[float, schema.Range(0, cap=1_000_000)] = 0.1
  # So many bands taken out, each of up to this share of the mel scale.
  frequency_masks: Annotated[int, schema.Range(0, cap=1000)] = 0
  frequency_mask_share: schema.Share = 0.15
  # White noise this far below the sound, in dB from the first number to the
  # second; (): off.
  noise_db: tuple[Annotated[float, schema.Range(cap=200)], ...] = ()
  # Louder or softer by so many dB at most.
  gain_db: Annotated[float, schema.Range(0, cap=100)] = 0.0
  # Earlier or later by so many seconds at most.
  time_shift_seconds: Annotated[float, schema.Range(0, cap=1_000_000)] = 0.0

  def __post_init__(self):
    check(
      not self.noise_db
      or (len(self.noise_db) == 2 and self.noise_db[0] <= self.noise_db[1]),
      f'data.augment.noise_db={self.noise_db} must be empty or (low, high)',
    )


@schema.section('data')
class Data:
  """Where examples come from and how they become batches.

  A source is `KIND:WHERE#SLICE`: `tfds:tiny_shakespeare#validation+test`,
  `text:book.txt`, `text:corpus/*.txt#[:90%]`, `jsonl:pairs.jsonl`,
  `python:pydoc_data.topics#[9::10]` and its complement `#[!9::10]`,
  `reverse:20000`, `wordnet:`, `digits:train`, `moving:test` (see
  data/sources.py).
  """

  # Sources of each split; several training sources make a mixture.
  train: tuple[str, ...] = ()
  validation: tuple[str, ...] = ()
  test: tuple[str, ...] = ()
  # Shares of the training sources in tokens; (): by their size.
  weights: tuple[schema.Positive, ...] = ()
  # Folder of prepared TFDS data sets; None: TFDS's own, downloaded.
  data_dir: str | None = None
  # The field of a record that is read as text.
  text_field: str = 'text'
  # Fields of a pair (input to output); both empty: plain text.
  inputs_field: str = ''
  targets_field: str = ''
  # Pairs of any kind, '{image:photo} in {language} -> {caption}': a record
  # gives an example of each; see data/task.py.
  tasks: tuple[str, ...] = ()
  # Words for the classes of a label that is a number; (): those of TFDS.
  label_names: tuple[str, ...] = ()
  # Samples a second of sounds that do not tell; None: model.audio.rate.
  audio_rate: Annotated[int, schema.Range(1, cap=1_000_000)] | None = None
  # Chance that a kind of media among a row's inputs is left out of it, of
  # those that have several kinds (modality dropout).
  media_dropout: schema.PartialShare = 0.0
  # Chance that all inputs of a row are left out of it, which the guidance of
  # written media needs.
  inputs_dropout: schema.PartialShare = 0.0
  # Kinds of media that are left out of all inputs, to see what is lost.
  without: tuple[Literal['image', 'audio', 'video'], ...] = ()
  # Fields of training records of tasks that take the values of other records,
  # at random: a negative control, from which nothing is to be learned.
  permuted: tuple[str, ...] = ()
  # causal: predict every token. prefix: inputs are seen in both directions.
  # seq2seq: the encoder reads the inputs, the decoder writes the targets.
  objective: Literal['causal', 'prefix', 'seq2seq'] = 'causal'
  # Sequences in one global batch, and tokens in one (decoder) sequence.
  batch_size: schema.Size = 16
  sequence_length: schema.Length = 256
  # Tokens in one encoder sequence (seq2seq).
  inputs_length: schema.Length = 256
  # Fill rows with several records kept apart by segment ids.
  pack: bool = True
  # A new order every epoch; False keeps the sources' order.
  shuffle: bool = True
  # Share of a source's examples that may be unusable; more are an error. What
  # does not count: a pair that is longer than a row, and a field that a record
  # lacks for one task if it has what another task asks for.
  max_unusable: schema.Share = 0.01
  # Pixels of a picture or of a frame, at most. A side may be 1/2,048 of it long
  # (65,536), all frames of a video together may have 64 times as many.
  max_media_pixels: schema.Count = 1 << 27
  # Drop repeated paragraphs of all sources, then cut what is left into
  # passages of about 2,000 characters, which slices then count.
  deduplicate: bool = False
  # How training examples are varied.
  augment: Augment = dataclasses.field(default_factory=Augment)
  # Where tokenized sources are kept; None: ~/.cache/gemini_jax/tokens.
  cache_dir: str | None = None
  # Batches prepared ahead in the background.
  prefetch: Annotated[int, schema.Range(0, cap=1000)] = 4

  def __post_init__(self):
    check(
      bool(self.inputs_field) == bool(self.targets_field),
      f'data.inputs_field={self.inputs_field!r} and data.targets_field='
      f'{self.targets_field!r} must be set together',
    )
    check(
      not (self.tasks and self.inputs_field),
      f'data.tasks={self.tasks} and data.inputs_field={self.inputs_field!r} '
      'must not both be set',
    )
    check(
      not (self.deduplicate and self.pairs),
      'data.deduplicate=True is for plain text; data.inputs_field='
      f'{self.inputs_field!r} and data.tasks={self.tasks} make pairs',
    )
    check(
      not self.weights or len(self.weights) == len(self.train),
      f'data.weights has {len(self.weights)} values for {len(self.train)} '
      'sources in data.train',
    )

  @property
  def pairs(self) -> bool:
    """Whether a record is inputs and targets, not plain text."""
    return bool(self.inputs_field or self.tasks)


@schema.section('tokenizer')
class Tokenizer:
  """Text to token ids and back."""

  # How text is cut: learned pieces, UTF-8 bytes, or the characters seen.
  kind: Literal['sentencepiece', 'bytes', 'characters'] = 'bytes'
  # A SentencePiece model to load; None: train one on the training split.
  path: str | None = None
  # Pieces of a SentencePiece model that is trained here, at most.
  vocab_size: schema.Length = 2048


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
  ] = 'adamw'
  # Peak learning rate; None: a usual one, see LEARNING_RATES. Of prodigy,
  # which finds its own, a multiplier near 1.
  learning_rate: schema.Positive | None = None
  # Its course after the warm-up; schedule_free never decays.
  schedule: Literal['constant', 'cosine', 'wsd', 'inverse_sqrt'] = 'cosine'
  # Linear warm-up, in steps.
  warmup_steps: schema.StepsOrZero = 0
  # The last learning rate as a share of the peak (cosine, wsd).
  final_scale: schema.Share = 0.1
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
  # Added to the root of the second moment.
  eps: schema.Positive = 1e-8
  # Decoupled weight decay.
  weight_decay: Annotated[float, schema.Range(0, cap=10)] = 0.1
  # Parameters whose path matches this regular expression do not decay.
  no_decay: str = (
    r'(scale|bias|embedding|positions|latent/(query|multiplier|prior_\w+))$'
  )
  # Parameters whose path matches stay as they are; '': all are trained.
  frozen: str = ''
  # Largest global norm of the gradient; 0: no clipping.
  clip_norm: schema.NonNegative = 1.0
  # Sequences of a batch are processed in this many parts, one by one.
  accumulation_steps: schema.Size = 1
  # Evaluate an exponential moving average of the parameters; 0: off.
  ema_decay: schema.PartialShare = 0.0

  def __post_init__(self):
    check(
      self.b1 > 0 or self.name != 'schedule_free',
      f'optimizer.b1={self.b1} must be above 0 with schedule_free, which '
      'divides by it',
    )
    check(
      not (self.ema_decay and self.name == 'schedule_free'),
      'optimizer.ema_decay must be 0 with schedule_free, which averages itself',
    )
    check(
      not (self.plateau_patience and self.name == 'schedule_free'),
      'optimizer.plateau_patience must be 0 with schedule_free, whose average '
      'would not see the scaled steps',
    )
    for name in ('no_decay', 'frozen'):
      try:
        re.compile(getattr(self, name))
      except re.error as error:
        raise ConfigError(
          f'optimizer.{name}={getattr(self, name)!r} is not a regular '
          f'expression: {error}'
        ) from error

  @property
  def peak(self) -> float:
    """The learning rate after warm-up."""
    if self.learning_rate is None:
      return LEARNING_RATES[self.name]
    return self.learning_rate


@schema.section('parallel')
class Parallel:
  """Devices along each axis of the mesh; one of them may be -1: the rest."""

  # Copies of the parameters; each reads its share of the batch.
  data: Devices = -1
  # Parts of every parameter, along its width; the batch is split as well.
  fsdp: Devices = 1
  # Parts of the heads, of the hidden units and of the vocabulary.
  tensor: Devices = 1
  # Parts of the sequences.
  sequence: Devices = 1
  # Parts of the experts.
  expert: Devices = 1
  # Parts of the layers: stages that microbatches go through one by one.
  pipeline: Devices = 1
  # Groups of devices with a slower network (DCN) between them than inside,
  # such as the slices of a multi-slice TPU job.
  slices: schema.Size = 1
  # The axis whose outer part goes across the slices.
  slice_axis: Literal['data', 'fsdp', 'pipeline'] = 'data'
  # Microbatches of a batch; None: as many as stages. The more there are, the
  # less the stages wait: of R M + S - 1 iterations, S - 1.
  microbatches: schema.Size | None = None
  # Times R that a microbatch goes round the stages, each time through other
  # layers (circular); 1: once (GPipe). More need model.remat.
  pipeline_repeats: schema.Layers = 1

  def __post_init__(self):
    free = [name for name, size in self.sizes.items() if size == -1]
    check(len(free) <= 1, f'parallel: only one of {free} can be -1')

  @property
  def sizes(self) -> dict[str, int]:
    """Devices along each axis, in the order of AXES."""
    return {axis: getattr(self, axis) for axis in AXES}


@schema.section('train.bottleneck')
class Bottleneck:
  """How much a latent may say, and when; loss_weights.kl weighs what it says.

  Against posterior collapse, where a decoder learns to write without z.
  """

  # Course of the weight of the KL term. cyclical: it rises from 0 in every
  # cycle (Fu et al. 2019); monotonic: once; constant: never below its value.
  schedule: Literal['cyclical', 'monotonic', 'constant'] = 'cyclical'
  # Cycles of all steps.
  cycles: schema.Steps = 4
  # Share of a cycle in which the weight is 0, and in which it rises.
  off: schema.PartialShare = 0.0
  ramp: schema.PartialShare = 0.5
  # Nats of each dimension of z that cost nothing (Kingma et al. 2016).
  free_bits: schema.NonNegative = 0.2
  # Nats that z must carry on average, by a learned multiplier (Minimum
  # Desired Rate, Pelsmaeker and Aziz 2020); 0: off.
  min_rate: schema.NonNegative = 0.0
  # Share of the steps in which the KL term is off; then the decoder starts
  # anew and the schedule begins (Li et al. 2019).
  autoencode: schema.PartialShare = 0.0
  # Rate of the decoder's input tokens that are hidden from it.
  word_dropout: schema.PartialShare = 0.0

  def __post_init__(self):
    check(
      not self.min_rate or self.schedule == 'constant',
      f'train.bottleneck.min_rate={self.min_rate} needs schedule constant: '
      'while the KL term is off nothing would hold its multiplier',
    )
    check(
      self.off + self.ramp <= 1,
      f'train.bottleneck.off={self.off} and ramp={self.ramp} must together be '
      'at most 1',
    )


@schema.section('train')
class Train:
  """The training loop."""

  # Updates of the parameters.
  num_steps: schema.Steps = 1000
  # All randomness of a run follows from it.
  seed: schema.Seed = 0
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
  # their weights.
  keep_best: bool = True
  # Label smoothing of the cross-entropy.
  label_smoothing: schema.PartialShare = 0.0
  # Training of a latent.
  bottleneck: Bottleneck = dataclasses.field(default_factory=Bottleneck)
  # Compiled programs kept here; None: ~/.cache/gemini_jax/xla; '': off.
  compilation_cache: str | None = None
  # Project on Weights & Biases (pip install 'gemini_jax[wandb]'); '': off.
  wandb_project: str = ''

  def __post_init__(self):
    fields = ('train', *BATCH_FIELDS, *TASK_FIELDS)
    known = (*(f'data.{name}' for name in fields), 'train.seed')
    for name in self.accept_changes:
      check(
        name in known,
        f'train.accept_changes: {name!r} is not a field that it takes'
        f'{nearest(name, known)}',
      )


@schema.section('eval')
class Eval:
  """Evaluation over whole splits."""

  # Sequences in one batch; None: data.batch_size.
  batch_size: schema.Size | None = None
  # Batches at most during training; None: the whole split.
  max_batches: schema.Count | None = None
  # Prompts continued after training, to read.
  samples: tuple[str, ...] = ()
  # Held-out pairs whose targets are generated greedily after training and
  # compared with the true ones; 0: none.
  exact_match: schema.Natural = 0
  # Held-out texts whose pictures or sounds are written after training, put on
  # a page, and judged by a classifier that learns from real ones alone where
  # there are at most 100 different texts; 0: none.
  judged: schema.Natural = 0
  # Held-out examples of each task that writes text alone, which are written
  # greedily after training, put on a page and compared by BLEU and CIDEr-D;
  # 0: none.
  captions: schema.Natural = 0
  # Held-out examples of each task whose sides are to find each other, by
  # model.contrast_dim: recall at 1, 5 and 10; 0: none.
  retrieval: schema.Natural = 0
  # Test sequences, a row each (data.pack=False), whose nll is measured at the
  # end, and of a latent mi and active_units, by so many draws of z for each.
  latent_examples: schema.Natural = 1000
  importance_samples: schema.Size = 500


@schema.section('generate')
class Generate:
  """Text from a trained model."""

  # What to continue (decoder), or to read (encoder_decoder); several texts
  # have SEPARATOR between them.
  prompt: str = ''
  # prompt: continue or answer it. Of a model with a latent, also: write from a
  # z of the prior, of the posterior of the prompt, on the way from one text
  # to another (A || B), or by an analogy (B is to A as the output to C, from
  # A || B || C).
  source: Literal['prompt', 'prior', 'posterior', 'interpolate', 'analogy'] = (
    'prompt'
  )
  # z itself, instead of a source.
  latent: tuple[Annotated[float, schema.Range(cap=1_000_000)], ...] = ()
  # What deviations of z are multiplied by; 0 reconstructs, more varies.
  latent_temperature: Annotated[float, schema.Range(0, cap=1000)] = 1.0
  # What the output should be: 'attribute=value', or several with commas. The
  # attributes are those of the labels in data.train.
  steer: str = ''
  # How; see infer/steering.py.
  steer_method: Literal[
    'ode', 'gradient', 'vector', 'best_of', 'fudge', 'pplm'
  ] = 'ode'
  # Strength of it.
  steer_weight: Annotated[float, schema.Range(0, cap=1_000_000)] = 1.0
  # Labelled texts that each attribute is learned from; a quarter of them have
  # the wished value at least, if there are so many.
  num_labels: Annotated[int, schema.Range(2)] = 400
  # Files that are read beside the prompt; '': none.
  image: str = ''
  audio: str = ''
  video: str = ''
  # What is written.
  output: Literal['text', 'image', 'audio'] = 'text'
  # The task of data.tasks that is asked for, by its name; '': the only one that
  # reads what is given and writes the output.
  task: str = ''
  # Written media: how much likelier the inputs must make them (classifier-free
  # guidance, data.inputs_dropout); 0: off.
  guidance: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # Samples of the prompt, and new tokens in each at most.
  count: schema.Size = 1
  max_tokens: schema.Length = 200
  # 0: greedy. Otherwise logits are divided by it.
  temperature: schema.NonNegative = 0.8
  # Keep the k likeliest tokens; 0: all.
  top_k: schema.StepsOrZero = 0
  # Keep the likeliest tokens that together hold this probability.
  top_p: schema.PositiveShare = 1.0
  # Keep tokens at least this likely relative to the likeliest.
  min_p: schema.Share = 0.0
  # Beams of a beam search; 1: sampling.
  beam_size: Annotated[int, schema.Range(1, cap=2**12)] = 1
  # Length normalisation of beams, ((5 + n) / 6) ** length_penalty.
  length_penalty: Annotated[float, schema.Range(-5, 5)] = 0.6
  # Of the samples, and of the choice of labelled texts.
  seed: schema.Seed = 0
  # Which checkpoint: the newest, or the best by validation loss.
  checkpoint: Literal['latest', 'best'] = 'latest'
  # Tokens of a prompt that are read at once.
  prefill_chunk: schema.Length = 64

  def __post_init__(self):
    num = {'interpolate': 2, 'analogy': 3}.get(self.source, 1)
    check(
      len(self.texts) == num,
      f'generate.prompt={self.prompt!r} must be {num} texts with '
      f'{SEPARATOR!r} between them for generate.source={self.source!r}',
    )

  @property
  def texts(self) -> tuple[str, ...]:
    """The texts that the prompt is, of which there may be several."""
    if self.source in ('interpolate', 'analogy'):
      return tuple(text.strip() for text in self.prompt.split(SEPARATOR))
    return (self.prompt,)


@schema.section('plan')
class Plan:
  """What `--mode=plan` compiles for."""

  # Devices that need not be here: v5p:8x8x8 (also v4, v5e, v6e, tpu7x; chips
  # along each dim of a slice) or h100:2x8 (also a100, h100-pcie, h200, b200;
  # hosts x GPUs of each). '': the devices of this machine.
  topology: str = ''
  # Rows that are decoded together; None: data.batch_size; 0: no decode step.
  decode_batch_size: schema.SizeOrZero | None = None
  # Compile fast instead of well: in a fifth of the time, memory within 10 %.
  fast: bool = True
  # Bytes that a device has; None: what its kind has.
  device_memory_bytes: schema.Count | None = None


@schema.section('loss_weights')
class LossWeights:
  """Weights of the terms that the model returns beside its outputs."""

  # Mean squared log-partition of the logits (PaLM, section 5).
  z_loss: Weight = 0.0
  # How unevenly routers load their experts: 1 at best (Switch, section 2.2).
  router_balance: Weight = 0.01
  # Mean squared log-partition of the routers' logits (ST-MoE, section 3.1).
  router_z: Weight = 0.001
  # What a latent says, in nats, as it stands in the evidence bound at 1; see
  # train.bottleneck for its course.
  kl: Weight = 1.0
  # What a latent should say and does not, by its multiplier.
  min_rate: Weight = 1.0
  # Written media: nats of each number of a z, as one token's cross-entropy.
  media_nll: Weight = 1.0
  # Autoencoders of media, for each medium: absolute error of a number; nats of
  # a token's z; edges of a picture, or loud parts of a sound.
  reconstruction: Weight = 1.0
  media_rate: Weight = 0.003
  detail: Weight = 0.0
  # Nats of finding the other side of an example among those of the batch.
  contrastive: Weight = 1.0


@schema.section()
class Config:
  """Everything that defines a run."""

  model: Model = dataclasses.field(default_factory=Model)
  data: Data = dataclasses.field(default_factory=Data)
  tokenizer: Tokenizer = dataclasses.field(default_factory=Tokenizer)
  optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
  parallel: Parallel = dataclasses.field(default_factory=Parallel)
  train: Train = dataclasses.field(default_factory=Train)
  eval: Eval = dataclasses.field(default_factory=Eval)
  generate: Generate = dataclasses.field(default_factory=Generate)
  plan: Plan = dataclasses.field(default_factory=Plan)
  loss_weights: LossWeights = dataclasses.field(default_factory=LossWeights)

  def __post_init__(self):
    seq2seq = self.data.objective == 'seq2seq'
    check(
      seq2seq == self.model.cross,
      f'data.objective={self.data.objective!r} does not go with '
      f'model.architecture={self.model.architecture!r}; encoder_decoder goes '
      'with seq2seq, decoder with causal or prefix',
    )
    check(
      not self.eval.exact_match or bool(self.data.inputs_field),
      f'eval.exact_match={self.eval.exact_match} needs pairs; set '
      'data.inputs_field and data.targets_field',
    )
    check(
      not (self.model.latent.dim and self.data.pack),
      f'model.latent.dim={self.model.latent.dim} is one z for each row; set '
      'data.pack=False',
    )
    check(
      not (self.model.contrast_dim and self.data.pack),
      f'model.contrast_dim={self.model.contrast_dim} compares the examples of '
      'rows; set data.pack=False',
    )
    check(
      not self.eval.retrieval or bool(self.model.contrast_dim),
      f'eval.retrieval={self.eval.retrieval} needs vectors of both sides; set '
      'model.contrast_dim',
    )
    check(
      self.data.sequence_length <= self.model.max_length,
      f'data.sequence_length={self.data.sequence_length} must be at most '
      f'model.max_length={self.model.max_length}',
    )
    check(
      not self.model.cross
      or self.model.position != 'learned'
      or self.data.inputs_length <= self.model.max_length,
      f'data.inputs_length={self.data.inputs_length} must be at most '
      f"model.max_length={self.model.max_length} for model.position='learned'",
    )
    check(
      self.data.batch_size % self.optimizer.accumulation_steps == 0,
      f'optimizer.accumulation_steps={self.optimizer.accumulation_steps} must '
      f'divide data.batch_size={self.data.batch_size}',
    )
    canvas = min(self.model.image.height, self.model.image.width)
    padding = self.data.augment.crop_padding
    check(
      not canvas or padding <= canvas,
      f'data.augment.crop_padding={padding} must be at most {canvas}, the '
      'smaller of model.image.height and model.image.width',
    )
    for field, rows in (
      ('data.batch_size', self.data.batch_size),
      ('eval.batch_size', self.eval.batch_size),
      ('plan.decode_batch_size', self.plan.decode_batch_size),
    ):
      self._check_batch(field, rows or 0)

  def _check_batch(self, field: str, num_rows: int):
    """Estimates a batch of so many rows before anything is allocated."""
    data, model = self.data, self.model
    lengths = f'data.sequence_length={data.sequence_length}'
    length = data.sequence_length
    if model.cross:
      lengths += f' and data.inputs_length={data.inputs_length}'
      length += data.inputs_length
    check(
      num_rows * length <= MAX_BATCH_TOKENS,
      f'{field}={num_rows} rows of {lengths} are {num_rows * length:,} '
      f'tokens; a batch holds at most {MAX_BATCH_TOKENS:,}',
    )
    image, audio, video = model.image, model.audio, model.video
    canvas = f'model.image.height={image.height} x width={image.width} pixels'
    sizes = {
      'image': canvas,
      'audio': f'model.audio.seconds={audio.seconds} at rate={audio.rate}',
      'video': f'model.video.num_frames={video.num_frames} of {canvas}',
    }
    limit = MAX_BATCH_BYTES // 2**30
    for kind, num_bytes in model.media_bytes().items():
      total = round(num_rows * num_bytes / 2**30)
      check(
        num_rows * num_bytes <= MAX_BATCH_BYTES,
        f'{field}={num_rows} rows with {sizes[kind]} are {total} GiB; the '
        f'{kind}s of a batch hold at most {limit} GiB',
      )


def from_config_dict(values) -> Config:
  """The frozen config of a ConfigDict or of a nested dict.

  Raises:
    ConfigError: a field is unknown, has the wrong type or a value outside
      what is accepted.
  """
  return schema.convert(values, Config)


def to_config_dict(config: Config | None = None) -> ml_collections.ConfigDict:
  """A ConfigDict that holds every field, to be edited by an experiment."""
  return schema.to_config_dict(Config() if config is None else config, Config)


def to_json(config: Config) -> str:
  """The resolved config as readable JSON."""
  return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def from_json(text: str | bytes) -> Config:
  """The config that `to_json` wrote.

  Raises:
    ConfigError: the text is not JSON, names a field twice, or holds no config.
  """

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    names = [name for name, _ in pairs]
    for name in values:
      check(names.count(name) == 1, f'{name!r} stands twice in one section')
    return values

  try:
    values = json.loads(text, object_pairs_hook=once)
  except ConfigError:
    raise
  except RecursionError as error:
    raise ConfigError('the config is nested too deeply') from error
  except ValueError as error:
    raise ConfigError(f'the config is not JSON: {error}') from error
  return from_config_dict(values)


def read(path: pathlib.Path) -> Config:
  """The config in a file that this version or an earlier one wrote.

  What an earlier version did not know yet has its default.

  Raises:
    ConfigError: it cannot be read, or is no config of this version.
  """
  try:
    return from_json(host.read_file(path))
  except OSError as error:
    raise ConfigError(f'{path} cannot be read: {error.strerror}') from error
  except ValueError as error:
    raise ConfigError(f'{path}: {error}') from error
