"""The one config: every field, its type, its default and what it means.

An experiment edits a ConfigDict made by `to_config_dict`; `from_config_dict`
turns it into the frozen dataclasses below, strictly. Nothing else in the
package sees a ConfigDict, and no field has a second default anywhere.
"""

import dataclasses
import json
import re
from typing import Literal

import ml_collections

from gemini_jax import schema

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

AXES = ('data', 'fsdp', 'tensor', 'sequence', 'expert', 'pipeline')

# What remat can keep of a layer, whose code gives it these names.
_Tensor = Literal['query', 'key', 'value', 'attended', 'gate', 'up', 'residual']


ConfigError = schema.ConfigError
check = schema.check
nearest = schema.nearest
at_least = schema.at_least
is_share = schema.is_share


@dataclasses.dataclass(frozen=True)
class Latent:
  """The variational head: one vector z for each sequence, see models/latent.

  The decoder writes a sequence given its z; the encoder tells which z.
  """

  # Numbers in z; 0: no latent.
  dim: int = 0
  # What z is before a sequence is seen: a standard normal, or a learned
  # mixture of normals.
  prior: Literal['normal', 'mixture'] = 'normal'
  # Normals in the mixture.
  num_components: int = 32
  # z as keys and values that every layer attends to: so many; 0: none.
  memory: int = 1
  # z as a vector added to every embedding.
  embedding: bool = True

  def __post_init__(self):
    at_least(self, 'model.latent', 0, 'dim', 'memory')
    at_least(self, 'model.latent', 1, 'num_components')
    check(
      not self.dim or self.memory > 0 or self.embedding,
      'model.latent.memory=0 needs model.latent.embedding=True: the decoder '
      'would not see z',
    )


@dataclasses.dataclass(frozen=True)
class Model:
  """The Transformer. Llama and Gemma 2/3 are values of these fields."""

  # decoder: decoder-only. encoder_decoder: the decoder reads an encoder.
  architecture: Literal['decoder', 'encoder_decoder'] = 'decoder'
  # Rows of the token table; None takes the tokenizer's.
  vocab_size: int | None = None
  # Longest sequence (tokens) of the decoder, prompt and output together.
  max_length: int = 256
  # Width of the residual stream.
  width: int = 256
  # Layers of the decoder.
  num_layers: int = 4
  # Layers of the encoder; None: as many as the decoder.
  num_encoder_layers: int | None = None
  # Query heads.
  num_heads: int = 4
  # Key and value heads (grouped-query attention); None: num_heads.
  num_kv_heads: int | None = None
  # Width of one head; None: width / num_heads.
  head_dim: int | None = None
  # Hidden width of the feed-forward layer; None: 4 * width.
  mlp_dim: int | None = None
  # Experts of the feed-forward layer (mixture of experts); 0: dense.
  num_experts: int = 0
  # Experts that each token visits, by its router's choice.
  experts_per_token: int = 2
  # Hidden width of one expert; None: mlp_dim.
  expert_dim: int | None = None
  # Hidden width of an expert that every token visits; 0: none.
  shared_expert_dim: int = 0
  # Nonlinearity of the feed-forward layer.
  activation: Literal['gelu', 'gelu_exact', 'silu', 'relu', 'relu2'] = 'gelu'
  # Gate the hidden layer with a second projection (GLU).
  gated: bool = True
  # Bias terms of the query, key and value projections (as in Qwen 2), and of
  # the feed-forward projections.
  attention_bias: bool = False
  mlp_bias: bool = False
  # Layers repeat this pattern, e.g. ('local', 'global').
  attention_pattern: tuple[Literal['global', 'local'], ...] = ('global',)
  # A local layer sees this many positions, itself included.
  window: int = 128
  # How positions enter: rotary angles in attention, or a learned table.
  position: Literal['rotary', 'learned', 'none'] = 'rotary'
  # Rotary base (theta) of global and of local layers; local None: global's.
  rope_base: float = 10_000.0
  rope_base_local: float | None = None
  # Positions of global layers are divided by this (linear interpolation).
  rope_scale: float = 1.0
  # Llama 3's frequency-dependent rescaling: its original context; 0: off.
  rope_llama3_context: int = 0
  # Its (factor, low, high): see layers/embedding.py.
  rope_llama3_factors: tuple[float, float, float] = (8.0, 1.0, 4.0)
  # pre: x + f(norm(x)); pre_post: x + norm(f(norm(x))), as in Gemma 2.
  norm: Literal['pre', 'pre_post'] = 'pre'
  # Added to the mean square under the root of every norm.
  norm_eps: float = 1e-6
  # Normalise queries and keys per head, as in Gemma 3.
  qk_norm: bool = False
  # Scores are divided by sqrt(this); None: head_dim.
  query_scale: float | None = None
  # tanh soft-caps of attention scores and of logits; 0: off.
  attention_softcap: float = 0.0
  logit_softcap: float = 0.0
  # One table for input embedding and output projection.
  tie_embeddings: bool = True
  # Multiply embeddings by sqrt(width), as Gemma does.
  scale_embeddings: bool = False
  # Dropout rate on embeddings and on what each block adds.
  dropout: float = 0.0
  # Standard deviation of the initial weights; None: 1/sqrt(fan in).
  init_scale: float | None = None
  # Compute and parameter types. Norms, softmax, logits, loss: float32.
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  # One scanned layer body, or layers unrolled. Never changes the result.
  scan_layers: bool = True
  # What computes attention; auto: the best there is on the platform of the
  # run. chunked is plain XLA; see kernels/flash.py.
  attention_kernel: Literal['auto', 'chunked', 'splash', 'cudnn'] = 'auto'
  # How keys reach the queries of other devices where parallel.sequence splits
  # the length: all at once, or neighbour by neighbour in less memory.
  over_sequence: Literal['all_gather', 'ring'] = 'all_gather'
  # Recompute the forward pass in the backward pass.
  remat: bool = False
  # Under remat, the tensors that are kept, not computed again: on the device,
  # and in the host's memory (on a CPU that is the same).
  remat_save: tuple[_Tensor, ...] = ()
  remat_offload: tuple[_Tensor, ...] = ()
  # The variational head.
  latent: Latent = dataclasses.field(default_factory=Latent)

  def __post_init__(self):
    at_least(self, 'model', 1, 'max_length', 'width', 'num_layers')
    at_least(self, 'model', 1, 'num_heads', 'window')
    at_least(self, 'model', 0, 'num_experts', 'shared_expert_dim')
    is_share(self, 'model', 'dropout')
    check(
      self.num_heads % self.kv_heads == 0,
      f'model.num_kv_heads={self.num_kv_heads} must divide '
      f'model.num_heads={self.num_heads}',
    )
    check(
      self.head_dim is not None or self.width % self.num_heads == 0,
      f'model.num_heads={self.num_heads} must divide model.width={self.width} '
      'unless model.head_dim is set',
    )
    check(
      self.position != 'rotary' or self.head_width % 2 == 0,
      f'model.head_dim={self.head_width} must be even for rotary positions',
    )
    check(len(self.attention_pattern) > 0, 'model.attention_pattern is empty')
    both = set(self.remat_save).intersection(self.remat_offload)
    check(
      not both,
      f'model.remat_save={self.remat_save} and model.remat_offload='
      f'{self.remat_offload} must not share names: {", ".join(sorted(both))}',
    )
    self._check_experts()

  def _check_experts(self):
    if not self.num_experts:
      for name in ('expert_dim', 'shared_expert_dim'):
        check(
          not getattr(self, name),
          f'model.{name}={getattr(self, name)} needs model.num_experts above 0',
        )
      return
    check(
      1 <= self.experts_per_token <= self.num_experts,
      f'model.experts_per_token={self.experts_per_token} must be at least 1 '
      f'and at most model.num_experts={self.num_experts}',
    )
    check(
      not self.mlp_bias,
      f'model.mlp_bias=True needs model.num_experts=0, not {self.num_experts}',
    )

  @property
  def kv_heads(self) -> int:
    """Key and value heads."""
    return self.num_kv_heads or self.num_heads

  @property
  def head_width(self) -> int:
    """Width of one head."""
    return self.head_dim or self.width // self.num_heads

  @property
  def mlp_width(self) -> int:
    """Hidden width of the feed-forward layer."""
    return self.mlp_dim or 4 * self.width

  @property
  def expert_width(self) -> int:
    """Hidden width of one expert."""
    return self.expert_dim or self.mlp_width

  @property
  def cross(self) -> bool:
    """Whether the decoder attends to what the encoder says."""
    return self.architecture == 'encoder_decoder'

  @property
  def encodes(self) -> bool:
    """Whether there is an encoder: to attend to, or for a latent."""
    return self.cross or self.latent.dim > 0

  @property
  def encoder_layers(self) -> int:
    """Layers of the encoder; 0 without one."""
    if not self.encodes:
      return 0
    return (
      self.num_layers
      if self.num_encoder_layers is None
      else self.num_encoder_layers
    )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from and how they become batches.

  A source is `KIND:WHERE#SLICE`: `tfds:tiny_shakespeare#validation+test`,
  `text:book.txt`, `text:corpus/*.txt#[:90%]`, `jsonl:pairs.jsonl`,
  `python:pydoc_data.topics#[9::10]` and its complement `#[!9::10]`,
  `reverse:20000`, `wordnet:` (see data/sources.py).
  """

  # Sources of each split; several training sources make a mixture.
  train: tuple[str, ...] = ()
  validation: tuple[str, ...] = ()
  test: tuple[str, ...] = ()
  # Shares of the training sources in tokens; (): by their size.
  weights: tuple[float, ...] = ()
  # Folder of prepared TFDS data sets; None: TFDS's own, downloaded.
  data_dir: str | None = None
  # The field of a record that is read as text.
  text_field: str = 'text'
  # Fields of a pair (input to output); both empty: plain text.
  inputs_field: str = ''
  targets_field: str = ''
  # causal: predict every token. prefix: inputs are seen in both directions.
  # seq2seq: the encoder reads the inputs, the decoder writes the targets.
  objective: Literal['causal', 'prefix', 'seq2seq'] = 'causal'
  # Sequences in one global batch, and tokens in one (decoder) sequence.
  batch_size: int = 16
  sequence_length: int = 256
  # Tokens in one encoder sequence (seq2seq).
  inputs_length: int = 256
  # Fill rows with several records kept apart by segment ids.
  pack: bool = True
  # A new order every epoch; False keeps the sources' order.
  shuffle: bool = True
  # Drop repeated paragraphs of all sources, then cut what is left into
  # passages of about 2,000 characters, which slices then count.
  deduplicate: bool = False
  # Where tokenized sources are kept; None: ~/.cache/gemini_jax/tokens.
  cache_dir: str | None = None
  # Batches prepared ahead in the background.
  prefetch: int = 4

  def __post_init__(self):
    at_least(self, 'data', 1, 'batch_size', 'sequence_length', 'inputs_length')
    at_least(self, 'data', 0, 'prefetch')
    check(
      bool(self.inputs_field) == bool(self.targets_field),
      f'data.inputs_field={self.inputs_field!r} and data.targets_field='
      f'{self.targets_field!r} must be set together',
    )
    check(
      not (self.deduplicate and self.inputs_field),
      'data.deduplicate=True is for plain text; data.inputs_field='
      f'{self.inputs_field!r} makes pairs',
    )
    check(
      not self.weights or len(self.weights) == len(self.train),
      f'data.weights has {len(self.weights)} values for {len(self.train)} '
      'sources in data.train',
    )
    check(
      all(weight > 0 for weight in self.weights),
      f'data.weights={self.weights} must all be above 0',
    )


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back."""

  # How text is cut: learned pieces, UTF-8 bytes, or the characters seen.
  kind: Literal['sentencepiece', 'bytes', 'characters'] = 'bytes'
  # A SentencePiece model to load; None: train one on the training split.
  path: str | None = None
  # Pieces of a SentencePiece model that is trained here, at most.
  vocab_size: int = 2048


@dataclasses.dataclass(frozen=True)
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
  learning_rate: float | None = None
  # Its course after the warm-up; schedule_free never decays.
  schedule: Literal['constant', 'cosine', 'wsd', 'inverse_sqrt'] = 'cosine'
  # Linear warm-up, in steps.
  warmup_steps: int = 0
  # The last learning rate as a share of the peak (cosine, wsd).
  final_scale: float = 0.1
  # Share of the steps in which wsd decays.
  decay_share: float = 0.2
  # Multiply the learning rate by plateau_factor once the validation loss
  # has not improved for plateau_patience evaluations; 0: off.
  plateau_patience: int = 0
  # What a plateau multiplies the learning rate by.
  plateau_factor: float = 0.5
  # Decay rates of the first and of the second moment.
  b1: float = 0.9
  b2: float = 0.95
  # Added to the root of the second moment.
  eps: float = 1e-8
  # Decoupled weight decay.
  weight_decay: float = 0.1
  # Parameters whose path matches this regular expression do not decay.
  no_decay: str = (
    r'(scale|bias|embedding|positions|latent/(query|multiplier|prior_\w+))$'
  )
  # Parameters whose path matches stay as they are; '': all are trained.
  frozen: str = ''
  # Largest global norm of the gradient; 0: no clipping.
  clip_norm: float = 1.0
  # Sequences of a batch are processed in this many parts, one by one.
  accumulation_steps: int = 1
  # Evaluate an exponential moving average of the parameters; 0: off.
  ema_decay: float = 0.0

  def __post_init__(self):
    check(
      self.peak > 0,
      f'optimizer.learning_rate={self.learning_rate} must be above 0',
    )
    at_least(self, 'optimizer', 1, 'accumulation_steps')
    is_share(self, 'optimizer', 'ema_decay')
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


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Devices along each axis of the mesh; one of them may be -1: the rest."""

  # Copies of the parameters; each reads its share of the batch.
  data: int = -1
  # Parts of every parameter, along its width; the batch is split as well.
  fsdp: int = 1
  # Parts of the heads, of the hidden units and of the vocabulary.
  tensor: int = 1
  # Parts of the sequences.
  sequence: int = 1
  # Parts of the experts.
  expert: int = 1
  # Parts of the layers: stages that microbatches go through one by one.
  pipeline: int = 1
  # Groups of devices with a slower network (DCN) between them than inside,
  # such as the slices of a multi-slice TPU job.
  slices: int = 1
  # The axis whose outer part goes across the slices.
  slice_axis: Literal['data', 'fsdp', 'pipeline'] = 'data'
  # Microbatches of a batch; None: as many as stages. The more there are, the
  # less the stages wait: of R M + S - 1 iterations, S - 1.
  microbatches: int | None = None
  # Times R that a microbatch goes round the stages, each time through other
  # layers (circular); 1: once (GPipe). More need model.remat.
  pipeline_repeats: int = 1

  def __post_init__(self):
    sizes = self.sizes
    for name, size in sizes.items():
      check(
        size == -1 or size >= 1,
        f'parallel.{name}={size} must be at least 1, or -1 for the rest',
      )
    free = [name for name, size in sizes.items() if size == -1]
    check(len(free) <= 1, f'parallel: only one of {free} can be -1')
    at_least(self, 'parallel', 1, 'slices', 'pipeline_repeats')
    if self.microbatches is not None:
      at_least(self, 'parallel', 1, 'microbatches')

  @property
  def sizes(self) -> dict[str, int]:
    """Devices along each axis, in the order of AXES."""
    return {axis: getattr(self, axis) for axis in AXES}


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """How much a latent may say, and when; loss_weights.kl weighs what it says.

  Against posterior collapse, where a decoder learns to write without z.
  """

  # Course of the weight of the KL term. cyclical: it rises from 0 in every
  # cycle (Fu et al. 2019); monotonic: once; constant: never below its value.
  schedule: Literal['cyclical', 'monotonic', 'constant'] = 'cyclical'
  # Cycles of all steps.
  cycles: int = 4
  # Share of a cycle in which the weight is 0, and in which it rises.
  off: float = 0.0
  ramp: float = 0.5
  # Nats of each dimension of z that cost nothing (Kingma et al. 2016).
  free_bits: float = 0.2
  # Nats that z must carry on average, by a learned multiplier (Minimum
  # Desired Rate, Pelsmaeker and Aziz 2020); 0: off.
  min_rate: float = 0.0
  # Share of the steps in which the KL term is off; then the decoder starts
  # anew and the schedule begins (Li et al. 2019).
  autoencode: float = 0.0
  # Rate of the decoder's input tokens that are hidden from it.
  word_dropout: float = 0.0

  def __post_init__(self):
    path = 'train.bottleneck'
    at_least(self, path, 0, 'free_bits', 'min_rate')
    check(
      not self.min_rate or self.schedule == 'constant',
      f'train.bottleneck.min_rate={self.min_rate} needs schedule constant: '
      'while the KL term is off nothing would hold its multiplier',
    )
    at_least(self, path, 1, 'cycles')
    is_share(self, path, 'off', 'ramp', 'autoencode', 'word_dropout')
    check(
      self.off + self.ramp <= 1,
      f'train.bottleneck.off={self.off} and ramp={self.ramp} must together be '
      'at most 1',
    )


@dataclasses.dataclass(frozen=True)
class Train:
  """The training loop."""

  # Updates of the parameters.
  num_steps: int = 1000
  # All randomness of a run follows from it.
  seed: int = 0
  # Steps between lines of metrics, evaluations and checkpoints.
  log_every: int = 10
  eval_every: int = 200
  save_every: int = 200
  # Newest checkpoints kept.
  keep_last: int = 2
  # Keep the best by validation loss as well.
  keep_best: bool = True
  # Label smoothing of the cross-entropy.
  label_smoothing: float = 0.0
  # Training of a latent.
  bottleneck: Bottleneck = dataclasses.field(default_factory=Bottleneck)
  # Compiled programs kept here; None: ~/.cache/gemini_jax/xla; '': off.
  compilation_cache: str | None = None
  # Project on Weights & Biases (pip install 'gemini_jax[wandb]'); '': off.
  wandb_project: str = ''

  def __post_init__(self):
    at_least(self, 'train', 1, 'num_steps', 'log_every', 'eval_every')
    at_least(self, 'train', 1, 'save_every', 'keep_last')


@dataclasses.dataclass(frozen=True)
class Eval:
  """Evaluation over whole splits."""

  # Sequences in one batch; None: data.batch_size.
  batch_size: int | None = None
  # Batches at most during training; None: the whole split.
  max_batches: int | None = None
  # Prompts continued after training, to read.
  samples: tuple[str, ...] = ()
  # Held-out pairs whose targets are generated greedily after training and
  # compared with the true ones; 0: none.
  exact_match: int = 0
  # Test sequences, a row each (data.pack=False), whose nll is measured at the
  # end, and of a latent mi and active_units, by so many draws of z for each.
  latent_examples: int = 1000
  importance_samples: int = 500

  def __post_init__(self):
    at_least(self, 'eval', 0, 'exact_match', 'latent_examples')
    at_least(self, 'eval', 1, 'importance_samples')


@dataclasses.dataclass(frozen=True)
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
  latent: tuple[float, ...] = ()
  # What deviations of z are multiplied by; 0 reconstructs, more varies.
  latent_temperature: float = 1.0
  # What the output should be: 'attribute=value', or several with commas. The
  # attributes are those of the labels in data.train.
  steer: str = ''
  # How; see infer/steering.py.
  steer_method: Literal[
    'ode', 'gradient', 'vector', 'best_of', 'fudge', 'pplm'
  ] = 'ode'
  # Strength of it.
  steer_weight: float = 1.0
  # Labelled texts that each attribute is learned from; a quarter of them have
  # the wished value at least, if there are so many.
  num_labels: int = 400
  # Samples of the prompt, and new tokens in each at most.
  count: int = 1
  max_tokens: int = 200
  # 0: greedy. Otherwise logits are divided by it.
  temperature: float = 0.8
  # Keep the k likeliest tokens; 0: all.
  top_k: int = 0
  # Keep the likeliest tokens that together hold this probability.
  top_p: float = 1.0
  # Keep tokens at least this likely relative to the likeliest.
  min_p: float = 0.0
  # Beams of a beam search; 1: sampling.
  beam_size: int = 1
  # Length normalisation of beams, ((5 + n) / 6) ** length_penalty.
  length_penalty: float = 0.6
  # Of the samples, and of the choice of labelled texts.
  seed: int = 0
  # Which checkpoint: the newest, or the best by validation loss.
  checkpoint: Literal['latest', 'best'] = 'latest'
  # Tokens of a prompt that are read at once.
  prefill_chunk: int = 64

  def __post_init__(self):
    names = ('count', 'max_tokens', 'beam_size', 'prefill_chunk')
    at_least(self, 'generate', 1, *names)
    at_least(self, 'generate', 2, 'num_labels')
    names = ('temperature', 'latent_temperature', 'top_k', 'steer_weight')
    at_least(self, 'generate', 0, *names)
    check(
      0 < self.top_p <= 1,
      f'generate.top_p={self.top_p} must be above 0 and at most 1',
    )
    check(
      0 <= self.min_p <= 1, f'generate.min_p={self.min_p} must be in [0, 1]'
    )
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


@dataclasses.dataclass(frozen=True)
class Plan:
  """What `--mode=plan` compiles for."""

  # Devices that need not be here: v5p:8x8x8 (also v4, v5e, v6e, tpu7x; chips
  # along each dim of a slice) or h100:2x8 (also a100, h100-pcie, h200, b200;
  # hosts x GPUs of each). '': the devices of this machine.
  topology: str = ''
  # Rows that are decoded together; None: data.batch_size; 0: no decode step.
  decode_batch_size: int | None = None
  # Compile fast instead of well: in a fifth of the time, memory within 10 %.
  fast: bool = True
  # Bytes that a device has; None: what its kind has.
  device_memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class LossWeights:
  """Weights of the terms that the model returns beside its outputs."""

  # Mean squared log-partition of the logits (PaLM, section 5).
  z_loss: float = 0.0
  # How unevenly routers load their experts: 1 at best (Switch, section 2.2).
  router_balance: float = 0.01
  # Mean squared log-partition of the routers' logits (ST-MoE, section 3.1).
  router_z: float = 0.001
  # What a latent says, in nats, as it stands in the evidence bound at 1; see
  # train.bottleneck for its course.
  kl: float = 1.0
  # What a latent should say and does not, by its multiplier.
  min_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
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
      self.data.sequence_length <= self.model.max_length,
      f'data.sequence_length={self.data.sequence_length} must be at most '
      f'model.max_length={self.model.max_length}',
    )
    check(
      self.data.batch_size % self.optimizer.accumulation_steps == 0,
      f'optimizer.accumulation_steps={self.optimizer.accumulation_steps} must '
      f'divide data.batch_size={self.data.batch_size}',
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


def from_json(text: str) -> Config:
  """The config that `to_json` wrote."""
  return from_config_dict(json.loads(text))
