"""The architecture of a model: the section `model` of a config."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from gemini_jax.config import media, schema

# Tensors of a layer that remat can save, by the names that the layer gives.
Tensor = Literal['query', 'key', 'value', 'attended', 'gate', 'up', 'residual']
# Types of fields.
Experts = Annotated[int, schema.Range(0, cap=2**16)]
RotaryBase = Annotated[float, schema.Range(1)]


@schema.section('model.latent')
class Latent:
  """The variational head: one vector z for each sequence, see models/latent.

  The encoder gives the posterior of z; the decoder is conditioned on z.
  """

  # Dims of z; 0: no latent.
  dim: schema.SizeOrZero = 0
  # Prior of z: a standard normal, or a learned mixture of normals.
  prior: Literal['normal', 'mixture'] = 'normal'
  # Components of the mixture.
  num_components: schema.Size = 32
  # Number of key/value positions made of z that every decoder layer attends
  # to; 0: none.
  memory: schema.SizeOrZero = 1
  # Add a projection of z to every token embedding.
  embedding: bool = True

  def __post_init__(self):
    schema.check(
      not self.dim or self.memory > 0 or self.embedding,
      'model.latent.memory=0 needs model.latent.embedding=True: the decoder '
      'would not see z',
    )


@schema.section('model')
class Model:
  """The Transformer. Llama and Gemma 2/3 are values of these fields."""

  # decoder: decoder-only. encoder_decoder: with cross-attention to an encoder.
  architecture: Literal['decoder', 'encoder_decoder'] = 'decoder'
  # Rows of the embedding table; None: what the tokenizer needs.
  vocab_size: schema.Length | None = None
  # How many of those rows, from the first, are text tokens; padding and the
  # placeholders of media come after them. None: the tokenizer's vocabulary.
  text_vocab_size: schema.Length | None = None
  # Classes that an output of its own gives scores to, in the place of tokens;
  # 0: the output is tokens. The targets of tasks set it (data/task.py).
  num_classes: Annotated[int, schema.Range(0, cap=65_535)] = 0
  # What that output is: scores of classes of which one is right, of labels of
  # which any may be, or numbers. The tasks set it.
  output: Literal['classes', 'labels', 'numbers'] = 'classes'
  # Fields {number:FIELD} of inputs; each has vectors of its own. The tasks set
  # it.
  num_numbers: Annotated[int, schema.Range(0, cap=65_535)] = 0
  # Longest sequence of the decoder in tokens, prompt and output together.
  max_length: schema.Length = 256
  # Width of the residual stream.
  width: schema.Size = 256
  # Layers of the decoder.
  num_layers: schema.Layers = 4
  # Layers of the encoder; None: as many as the decoder.
  num_encoder_layers: schema.LayersOrZero | None = None
  # Query heads.
  num_heads: schema.Size = 4
  # Key and value heads (grouped-query attention); None: num_heads.
  num_kv_heads: schema.Size | None = None
  # Width of one head; None: width / num_heads.
  head_dim: schema.Size | None = None
  # Hidden width of the feed-forward layer; None: 4 * width.
  mlp_dim: schema.Size | None = None
  # Experts of the feed-forward layer (mixture of experts); 0: dense.
  num_experts: Experts = 0
  # Experts that the router selects for each token.
  experts_per_token: Experts = 2
  # Hidden width of one expert; None: mlp_dim.
  expert_dim: schema.Size | None = None
  # Hidden width of the shared expert, which processes every token; 0: none.
  shared_expert_dim: schema.SizeOrZero = 0
  # Nonlinearity of the feed-forward layer.
  activation: Literal['gelu', 'gelu_exact', 'silu', 'relu', 'relu2'] = 'gelu'
  # Gate the hidden layer by a second projection (GLU).
  gated: bool = True
  # Bias terms of the query, key and value projections (as in Qwen 2), of the
  # projection of attention's output, and of the feed-forward projections.
  attention_bias: bool = False
  attention_output_bias: bool = False
  mlp_bias: bool = False
  # Attention of the layers, a pattern that repeats: e.g. ('local', 'global').
  attention_pattern: tuple[Literal['global', 'local'], ...] = ('global',)
  # Positions that a query of a local layer attends to, its own included.
  window: schema.Steps = 128
  # Position encoding: rotary, in attention, or a learned embedding.
  position: Literal['rotary', 'learned', 'none'] = 'rotary'
  # Rotary base (theta) of global and of local layers; local None: global's.
  rope_base: RotaryBase = 10_000.0
  rope_base_local: RotaryBase | None = None
  # Positions of global layers are divided by this (linear interpolation).
  rope_scale: Annotated[float, schema.Range(0, above=True, cap=1_000_000)] = 1.0
  # Llama 3's frequency-dependent rescaling: its original context; 0: off.
  rope_llama3_context: schema.LengthOrZero = 0
  # Its (factor, low_freq_factor, high_freq_factor): see layers/embedding.py.
  rope_llama3_factors: tuple[
    schema.Positive, schema.Positive, schema.Positive
  ] = (8.0, 1.0, 4.0)
  # pre: x + f(norm(x)); pre_post: x + norm(f(norm(x))), as in Gemma 2.
  norm: Literal['pre', 'pre_post'] = 'pre'
  # LayerNorms with biases (Ba et al. 2016) in place of RMS norms, but for
  # queries and keys.
  layer_norm: bool = False
  # Added to the mean square under the root of every norm.
  norm_eps: schema.PositiveShare = 1e-6
  # Normalise queries and keys per head, as in Gemma 3.
  qk_norm: bool = False
  # Scores are divided by sqrt(this); None: head_dim.
  query_scale: schema.Positive | None = None
  # tanh soft-caps of attention scores and of logits; 0: off.
  attention_softcap: schema.NonNegative = 0.0
  logit_softcap: schema.NonNegative = 0.0
  # One table for input embedding and output projection.
  tie_embeddings: bool = True
  # Multiply embeddings by sqrt(width), as Gemma does.
  scale_embeddings: bool = False
  # Dims of the contrastive embeddings of inputs and of targets, for retrieval
  # (see loss_weights.contrastive); 0: none.
  contrast_dim: schema.SizeOrZero = 0
  # Dropout probability of embeddings and of the output of each sublayer.
  dropout: schema.PartialShare = 0.0
  # Stochastic depth (Huang et al. 2016): the probability that a sublayer of the
  # last layer of a stack is skipped in training, drawn for each row and each
  # sublayer. It grows linearly: that of layer l of L is l / L of it.
  stochastic_depth: schema.PartialShare = 0.0
  # Standard deviation of initial parameters; None: 1/sqrt(fan in).
  init_scale: schema.Positive | None = None
  # Types of computation and of parameters. Norms with their scales, softmax,
  # logits and losses are always float32.
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  # Scan over layers (one compiled body) or unroll them; the result is the same.
  scan_layers: bool = True
  # Implementation of attention; auto: the best one for the platform. chunked is
  # plain XLA; see kernels/dot_product_attention.py.
  attention_kernel: Literal['auto', 'chunked', 'splash', 'cudnn'] = 'auto'
  # Context parallelism under parallel.sequence: gather all keys and values, or
  # ring attention, which takes less memory.
  context_parallel: Literal['all_gather', 'ring'] = 'all_gather'
  # Rematerialisation: recompute the forward pass in the backward pass.
  remat: bool = False
  # Under remat, the tensors that are saved and not recomputed: on the device,
  # or offloaded to the host's memory (on a CPU that is the same).
  remat_save: tuple[Tensor, ...] = ()
  remat_offload: tuple[Tensor, ...] = ()
  # The variational head.
  latent: Latent = dataclasses.field(default_factory=Latent)
  # Pictures, as inputs and outputs.
  image: media.Image = dataclasses.field(default_factory=media.Image)
  # Sounds, as inputs and outputs.
  audio: media.Audio = dataclasses.field(default_factory=media.Audio)
  # Videos, as inputs.
  video: media.Video = dataclasses.field(default_factory=media.Video)
  # Series of numbers, as inputs.
  series: media.Series = dataclasses.field(default_factory=media.Series)

  def __post_init__(self):
    schema.check(
      self.text_vocab_size is None
      or 1 <= self.text_vocab_size <= (self.vocab_size or math.inf),
      f'model.text_vocab_size={self.text_vocab_size} must be at least 1 and at '
      f'most model.vocab_size={self.vocab_size}',
    )
    schema.check(
      not self.encodes or self.encoder_layers > 0,
      f'model.num_encoder_layers={self.num_encoder_layers} must be at least 1 '
      'where there is an encoder',
    )
    schema.check(
      not self.contrast_dim or self.cross,
      f'model.contrast_dim={self.contrast_dim} needs '
      "model.architecture='encoder_decoder': the encoder reads both sides",
    )
    schema.check(
      self.num_heads % self.kv_heads == 0,
      f'model.num_kv_heads={self.num_kv_heads} must divide '
      f'model.num_heads={self.num_heads}',
    )
    schema.check(
      self.head_dim is not None or self.width % self.num_heads == 0,
      f'model.num_heads={self.num_heads} must divide model.width={self.width} '
      'unless model.head_dim is set',
    )
    schema.check(
      self.position != 'rotary' or self.head_width % 2 == 0,
      f'model.head_dim={self.head_width} must be even for rotary positions',
    )
    schema.check(
      len(self.attention_pattern) > 0, 'model.attention_pattern is empty'
    )
    both = set(self.remat_save).intersection(self.remat_offload)
    schema.check(
      not both,
      f'model.remat_save={self.remat_save} and model.remat_offload='
      f'{self.remat_offload} must not share names: {", ".join(sorted(both))}',
    )
    factor, low, high = self.rope_llama3_factors
    schema.check(
      not self.rope_llama3_context or low < high,
      f'model.rope_llama3_factors={(factor, low, high)} must be (factor, low, '
      'high) with low below high',
    )
    self._check_experts()
    self._check_media()

  def _check_media(self):
    schema.check(
      not self.video.num_frames or self.image.height > 0,
      f'model.video.num_frames={self.video.num_frames} needs '
      'model.image.height and model.image.width, of the frames',
    )
    schema.check(
      self.video.frame_tokens <= 1 or not self.image.num_tokens,
      f'model.video.frame_tokens={self.video.frame_tokens} are rectangles of '
      f'patches: of the tokens that model.image.num_tokens='
      f'{self.image.num_tokens} leaves, use 0 or 1',
    )
    for kind, frames in (('image', self.video.num_frames), ('audio', 0)):
      section = getattr(self, kind)
      for name in ('num_blocks', 'num_layers', 'num_tokens'):
        schema.check(
          not (getattr(section, name, 0) and section.autoencoder.dim)
          or frames > 0,
          f'model.{kind}.{name}={getattr(section, name, 0)} has no effect with '
          f'model.{kind}.autoencoder.dim={section.autoencoder.dim}: the z of '
          'each patch is read',
        )
    schema.check(
      not self.image.num_layers
      or self.image.tower.width > 0
      or self.image.position != 'rotary'
      or self.head_width % 4 == 0,
      f'model.head_dim={self.head_width} must be a multiple of 4 for '
      "model.image.position='rotary' in model.image.num_layers="
      f'{self.image.num_layers}',
    )
    schema.check(
      not self.audio.num_layers
      or self.audio.tower.width > 0
      or self.head_width % 2 == 0,
      f'model.head_dim={self.head_width} must be even for the rotary '
      f'positions of model.audio.num_layers={self.audio.num_layers}',
    )

  def _check_experts(self):
    if not self.num_experts:
      for name in ('expert_dim', 'shared_expert_dim'):
        schema.check(
          not getattr(self, name),
          f'model.{name}={getattr(self, name)} needs model.num_experts above 0',
        )
      return
    schema.check(
      1 <= self.experts_per_token <= self.num_experts,
      f'model.experts_per_token={self.experts_per_token} must be at least 1 '
      f'and at most model.num_experts={self.num_experts}',
    )
    schema.check(
      not self.mlp_bias,
      f'model.mlp_bias=True needs model.num_experts=0, not {self.num_experts}',
    )

  @property
  def kv_heads(self) -> int:
    """Key and value heads."""
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def head_width(self) -> int:
    """Width of one head."""
    return (
      self.width // self.num_heads if self.head_dim is None else self.head_dim
    )

  @property
  def mlp_width(self) -> int:
    """Hidden width of the feed-forward layer."""
    return 4 * self.width if self.mlp_dim is None else self.mlp_dim

  @property
  def expert_width(self) -> int:
    """Hidden width of one expert."""
    return self.mlp_width if self.expert_dim is None else self.expert_dim

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds of soft tokens that the model can take as inputs."""
    sizes = (
      *(self.num_numbers, self.series.length),
      *(self.image.height, self.audio.sample_rate, self.video.num_frames),
    )
    return tuple(k for k, size in zip(media.KINDS, sizes, strict=True) if size)

  def writes(self, kind: str) -> bool:
    """Whether the model can generate a kind, which takes an autoencoder."""
    if kind not in ('image', 'audio') or kind not in self.kinds:
      return False
    return getattr(self, kind).autoencoder.dim > 0

  @property
  def text_rows(self) -> int:
    """Rows of the embedding table that are text tokens, as far as is known."""
    assert self.vocab_size, 'the tokenizer sets model.vocab_size'
    return self.text_vocab_size or self.vocab_size - self.num_placeholders

  @property
  def num_placeholders(self) -> int:
    """Rows of the embedding table that are placeholders of soft tokens."""
    is_numeric = not set(self.kinds).isdisjoint(media.NUMERIC)
    return len(media.KINDS if is_numeric else media.MEDIA if self.kinds else ())

  @property
  def output_rows(self) -> int:
    """Rows of the output table that have a meaning: classes, or text tokens."""
    return self.num_classes or self.text_rows

  def placeholder(self, kind: str) -> int:
    """Id of the token that holds the place of a soft token of a kind.

    Placeholders are the last rows of the embedding table.
    """
    assert self.vocab_size, 'the tokenizer sets model.vocab_size'
    return self.vocab_size - len(media.KINDS) + media.KINDS.index(kind)

  def tokens_of(self, kind: str, size: Sequence[int]) -> int:
    """Number of soft tokens of a medium of extent `size`; 0 if that is 0."""
    if kind in media.NUMERIC:
      # The extent of a number is that of its field among all.
      return self.series.tokens_of(*size) if kind == 'series' else min(*size, 1)
    if kind == 'image' and self.writes('image'):
      # A picture read as z has one a patch; frames of a video may be resampled.
      return self.image.patches_of(*size)
    if kind == 'image':
      return self.image.tokens_of(*size)
    if kind == 'audio':
      return self.audio.tokens_of(*size)
    frames, *picture = size
    each = self.image.tokens_of(*picture)
    each = (self.video.frame_tokens or each) if each else 0
    return min(frames, self.video.num_frames) * each

  def soft_tokens(self, kind: str) -> int:
    """Number of soft tokens of the largest medium of a kind."""
    canvas = (self.image.height, self.image.width)
    sizes = {
      'number': (self.num_numbers,),
      'series': (self.series.length,),
      'image': canvas,
      'audio': (self.audio.num_samples,),
      'video': (self.video.num_frames, *canvas),
    }
    return self.tokens_of(kind, sizes[kind])

  def media_bytes(self) -> dict[str, int]:
    """Bytes of the largest medium of each kind that is read, in float32."""
    image = self.image.height * self.image.width * self.image.channels
    numbers = {
      'number': self.num_numbers,
      'series': self.series.num_steps * self.series.channels,
      'image': image,
      'audio': self.audio.num_samples,
      'video': self.video.num_frames * image,
    }
    return {kind: 4 * numbers[kind] for kind in self.kinds}

  @property
  def cross(self) -> bool:
    """Whether the decoder has cross-attention to an encoder."""
    return self.architecture == 'encoder_decoder'

  @property
  def encodes(self) -> bool:
    """Whether there is an encoder: for cross-attention, or for a latent."""
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
