"""Gemini: one Transformer, encoder-decoder or decoder-only by config.

B batch, T decoder length, S encoder length, D width, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen import spmd

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy, masking
from gemini_jax.layers import attention, embedding, linear
from gemini_jax.models import contrast, media_embeddings, stack, transformer
from gemini_jax.models import latent as latent_lib
from gemini_jax.parallel import pipeline, sharding


@flax.struct.dataclass
class ForwardOutput:
  """What the model says of a batch.

  Attributes:
    x_BTD: the decoder, after each token.
    aux: losses of layers, by name.
    kl_terms: of z, where there is a latent.
    media: losses of what stands beside text, by name: [sum, what it is over].
    pair_vectors: of the inputs and of the targets of each example a vector
      [B, C], where the two are compared.
  """

  x_BTD: jax.Array
  aux: dict[str, jax.Array]
  kl_terms: latent_lib.KLTerms | None
  media: dict[str, jax.Array]
  pair_vectors: tuple[jax.Array, jax.Array] | None = None


class Gemini(nn.Module):
  """Tokens in, scores of the next tokens out.

  Attributes:
    config: its architecture; `vocab_size` must be set.
    schedule: of the stages, where the mesh has some.
  """

  config: config_lib.Model
  schedule: pipeline.Schedule = pipeline.Schedule()

  def setup(self):
    """The parts, by config."""
    config = self.config
    types: dict[str, Any] = {
      'dtype': jnp.dtype(config.dtype),
      'param_dtype': jnp.dtype(config.param_dtype),
    }
    assert config.vocab_size, 'the tokenizer sets model.vocab_size'
    self.token = embedding.Embedding(
      config.vocab_size,
      config.width,
      init_scale=config.init_scale or config.width**-0.5,
      **types,
    )
    if config.position == 'learned':
      self.position = embedding.Embedding(
        config.max_length,
        config.width,
        axes=(None, 'embed'),
        init_scale=config.init_scale or 0.02,
        **types,
      )
    if config.encodes:
      self.encoder = stack.Stack(
        config, config.encoder_layers, schedule=self.schedule
      )
      self.encoder_norm = linear.RMSNorm(config.norm_eps, **types)
    if config.latent.dim:
      self.latent = latent_lib.Latent(
        config.latent, config.width, config.num_heads, **types
      )
      if config.latent.embedding:
        # As large as a token's vector, which it must not drown.
        size = self.token.init_scale
        size *= config.width**0.5 if config.scale_embeddings else 1
        self.latent_embedding = linear.Einsum(
          (config.latent.dim, config.width),
          (None, 'embed'),
          init_scale=size * config.latent.dim**-0.5,
          **types,
        )
    if config.contrast_dim:
      self.contrast = contrast.Contrast(
        config.contrast_dim, config.width, types
      )
    if config.kinds:
      self.perception = media_embeddings.MediaEmbedder(config, self.schedule)
    self.decoder = stack.Stack(
      config,
      config.num_layers,
      decodes=True,
      schedule=self.schedule,
    )
    self.decoder_norm = linear.RMSNorm(config.norm_eps, **types)
    self.dropout = nn.Dropout(config.dropout)
    if not config.tie_embeddings:
      self.head = linear.Einsum(
        (config.width, config.vocab_size),
        ('embed', 'vocab'),
        init_scale=config.init_scale,
        out_dtype=jnp.dtype('float32'),
        **types,
      )

  def __call__(
    self, batch: batch_lib.Batch, deterministic: bool = True
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits of the targets, float32[B, T, V], and auxiliary losses."""
    output = self.forward(batch, deterministic)
    return self.logits(output.x_BTD), output.aux

  def sums(
    self,
    batch: batch_lib.Batch,
    deterministic: bool = True,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    kl_annealing: config_lib.KLAnnealing | None = None,
  ) -> tuple[cross_entropy.Sums, dict[str, jax.Array]]:
    """Sums of the cross-entropy of the targets, and auxiliary losses.

    The same as of the logits, which are never there as a whole; a device has
    those of its tokens and its part of the vocabulary. With a latent the loss
    is the evidence bound: cross-entropy and the KL term of z.
    """
    kl_annealing = kl_annealing or config_lib.KLAnnealing(free_bits=0.0)
    output = self.forward(batch, deterministic, kl_annealing.word_dropout)
    x_BTD, aux, kl_terms = output.x_BTD, output.aux, output.kl_terms
    table_VD = (
      self.token.embedding
      if self.config.tie_embeddings
      else self.head.variables['params']['kernel'].T
    )
    dtype = jnp.dtype(self.config.dtype)
    options = cross_entropy.Options(
      self.config.logit_softcap,
      label_smoothing,
      z_loss,
      num_classes=self.config.text_rows,
    )

    def local(x_BTD, table_VD, targets_BT, weights_BT):
      split = dataclasses.replace(options, vocab_axis=None)
      if table_VD.shape[0] < num_rows:
        split = dataclasses.replace(options, vocab_axis='tensor')
      if table_VD.shape[1] < x_BTD.shape[-1]:
        table_VD = jax.lax.all_gather(table_VD, 'fsdp', axis=1, tiled=True)
      sums = cross_entropy.token_sums(
        split, x_BTD, table_VD, targets_BT, weights_BT
      )
      return {name: getattr(sums, name).reshape(1, 1) for name in counted}

    counted = ('loss', 'objective', 'correct', 'weight')
    num_rows = table_VD.shape[0]
    tokens = ('batch', 'length')
    parts = sharding.per_device(
      local,
      ((*tokens, None), ('vocab', 'embed'), tokens, tokens),
      dict.fromkeys(counted, tokens),
    )(x_BTD.astype(dtype), table_VD.astype(dtype), batch.targets, batch.weights)
    sums = cross_entropy.Sums(**jax.tree.map(jnp.sum, parts))
    segments_BT = jnp.where(batch.weights > 0, batch.decoder.segments, 0)
    num_B = jnp.max(segments_BT, axis=1).astype(jnp.float32)
    terms = {'sequences': jnp.sum(num_B)}
    # As all of aux: for each token.
    weight = jnp.maximum(sums.weight, 1e-9)
    for name, total in output.media.items():
      terms[name] = total
      aux |= {name: total[0] / weight}
    if output.pair_vectors is not None:
      tokens = contrast.pair_tokens(batch)
      alike_BB = contrast.alike(
        *tokens,
        tuple(self.config.placeholder(kind) for kind in self.config.kinds),
      )
      # Inputs that were left out end at once, and are near to nothing.
      pairs_B = num_B * (jnp.sum(tokens[0] > 0, axis=1) > 1)
      found = self.contrast.loss(*output.pair_vectors, alike_BB, pairs_B)
      aux |= {'contrastive': found.loss}
      total = jnp.sum(pairs_B)
      for name in ('loss', 'accuracy'):
        mean = getattr(found, name)
        key = 'contrastive' if name == 'loss' else 'contrastive_accuracy'
        terms[key] = jnp.stack([mean * total, total])
    if kl_terms is not None:
      kl, losses = kl_terms.loss_terms(
        num_B, self.config.latent.dim, kl_annealing
      )
      terms['kl'] = kl
      sums = dataclasses.replace(sums, loss=sums.loss + kl)
      aux |= {name: value / weight for name, value in losses.items()}
    return dataclasses.replace(sums, terms=terms), aux

  def forward(
    self,
    batch: batch_lib.Batch,
    deterministic: bool,
    word_dropout: float = 0.0,
  ) -> 'ForwardOutput':
    """What the decoder says after each token of a batch.

    Where there is a latent, z is a draw of its posterior, by the stream of
    randomness `latent`, or else its mean.
    """
    memory_BSD = kl_terms = z_BZ = None
    source, stacks = self.encoder_inputs(batch), []
    # A latent reads what is written.
    inputs = written = self.encode_media(batch.decoder.media, deterministic)
    if batch.encoder is not None:
      inputs = self.encode_media(batch.encoder.media, deterministic)
    if source is not None:
      soft_BSD = self.scatter_soft_tokens(source, inputs)
      memory_BSD, aux = self.encode(source, deterministic, soft_BSD)
      stacks.append(aux)
    if self.config.latent.dim:
      assert memory_BSD is not None and source is not None
      posterior, prior, multiplier = self.latent(memory_BSD, source)
      z_BZ = posterior.mean
      if self.has_rng('latent'):
        z_BZ = posterior.sample(self.make_rng('latent'))
      kl_terms = latent_lib.KLTerms.of(posterior, prior, z_BZ, multiplier)
    hidden_BT = None
    if word_dropout and not deterministic:
      hidden_BT = jax.random.bernoulli(
        self.make_rng('dropout'), word_dropout, batch.targets.shape
      ) & (batch.decoder.positions > 0)
    x_BTD, _, layers = self.decode_hidden(
      batch.decoder,
      memory_BSD=memory_BSD if self.config.cross else None,
      memory=batch.encoder,
      prefix_BT=batch.prefix,
      latent_BZ=z_BZ,
      hidden_BT=hidden_BT,
      soft_BTD=self.scatter_soft_tokens(batch.decoder, written),
      deterministic=deterministic,
    )
    vectors = None
    if self.config.contrast_dim:
      assert memory_BSD is not None and source is not None
      written_too = dataclasses.replace(batch.decoder, tokens=batch.targets)
      soft_BTD = self.scatter_soft_tokens(written_too, written)
      other_BTD, aux = self.encode(written_too, deterministic, soft_BTD)
      stacks.append(aux)
      vectors = (
        self.contrast(memory_BSD, source),
        self.contrast(other_BTD, written_too),
      )
    # The mean over all layers.
    mean = lambda *parts: jnp.mean(jnp.concatenate(parts))
    media = {}
    if written is not None:
      media = self.perception.written_sums(batch, x_BTD, written)
      sums = [written.sums]
      if inputs is not None and inputs is not written:
        sums.append(inputs.sums)
      for name, total in (item for own in sums for item in own.items()):
        media[name] = media.get(name, 0) + total
    aux = jax.tree.map(mean, layers, *stacks)
    return ForwardOutput(x_BTD, aux, kl_terms, media, vectors)

  def pair_vectors(self, batch: batch_lib.Batch) -> tuple[jax.Array, ...]:
    """Vectors of what is read and of what is written, [B, C] each.

    After them the tokens of both, as of `contrast.sides`.
    """
    found = self.forward(batch, deterministic=True).pair_vectors
    assert found is not None, 'model.contrast_dim is 0'
    return *found, *contrast.pair_tokens(batch)

  def encode_media(
    self, media: Mapping[str, batch_lib.Media], deterministic: bool = True
  ) -> media_embeddings.MediaEmbeddings | None:
    """What media are; None of a model that reads none."""
    if not self.config.kinds:
      return None
    return self.perception(media, deterministic)

  def scatter_soft_tokens(
    self,
    sequence: batch_lib.Sequence,
    seen: media_embeddings.MediaEmbeddings | None,
  ) -> jax.Array | None:
    """Soft tokens at placeholders, 0 elsewhere; None of a model of text."""
    if seen is None:
      return None
    return self.perception.scatter_soft_tokens(sequence.tokens, seen)

  def media_embeddings(
    self, sequence: batch_lib.Sequence, deterministic: bool = True
  ) -> jax.Array | None:
    """What its media are, at their placeholders."""
    return self.scatter_soft_tokens(
      sequence, self.encode_media(sequence.media, deterministic)
    )

  def encoder_inputs(self, batch: batch_lib.Batch) -> batch_lib.Sequence | None:
    """What the encoder reads, if there is one: for a latent, what is written.

    With inputs of its own, the encoder reads those.
    """
    if batch.encoder is not None or not self.config.latent.dim:
      return batch.encoder
    return dataclasses.replace(batch.decoder, tokens=batch.targets)

  def posterior(self, sequence: batch_lib.Sequence) -> latent_lib.Normal:
    """Which z a sequence has, of [B, Z]."""
    memory_BSD, _ = self.encode(sequence)
    return self.latent(memory_BSD, sequence)[0]

  def prior(self) -> latent_lib.Mixture:
    """Which z there are."""
    return self.latent.prior()

  def log_likelihood(
    self,
    batch: batch_lib.Batch,
    latent_BZ: jax.Array | None = None,
    memory_BSD: jax.Array | None = None,
  ) -> jax.Array:
    """Log p of the targets of each row, given its z and what the encoder says.

    Nats, float32[B]; without dropout.
    """
    logits_BTV, _, _ = self.decode(
      batch.decoder,
      memory_BSD=memory_BSD,
      memory=batch.encoder,
      prefix_BT=batch.prefix,
      latent_BZ=latent_BZ,
    )
    chosen_BT = jnp.take_along_axis(
      jax.nn.log_softmax(logits_BTV), batch.targets[..., None], axis=-1
    )[..., 0]
    return jnp.sum(chosen_BT * batch.weights, axis=-1)

  def encode(
    self,
    sequence: batch_lib.Sequence,
    deterministic: bool = True,
    soft_BSD: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The encoder's output, [B, S, D], and the losses of its layers, [L].

    `soft_BSD` is as of `decode_hidden`.
    """
    context = transformer.Context(
      views=self.views(sequence, sequence, causal=False),
      positions_BT=sequence.positions,
      real_BT=sequence.segments > 0,
    )
    x_BSD, _, aux = self.encoder(
      self.embed(sequence, deterministic, soft_BTD=soft_BSD),
      context,
      deterministic=deterministic,
    )
    return self.encoder_norm(x_BSD), aux

  def decode(
    self, sequence: batch_lib.Sequence, **kwargs: Any
  ) -> tuple[jax.Array, transformer.Cache | None, dict[str, jax.Array]]:
    """Logits float32[B, T, V] after each token, and what is beside them.

    Args:
      sequence: tokens to read.
      **kwargs: of `decode_hidden`.
    """
    x_BTD, cache, aux = self.decode_hidden(sequence, **kwargs)
    return self.logits(x_BTD), cache, aux

  def decode_hidden(
    self,
    sequence: batch_lib.Sequence,
    *,
    memory_BSD: jax.Array | None = None,
    memory: batch_lib.Sequence | None = None,
    prefix_BT: jax.Array | None = None,
    latent_BZ: jax.Array | None = None,
    hidden_BT: jax.Array | None = None,
    soft_BTD: jax.Array | None = None,
    cache: transformer.Cache | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, transformer.Cache | None, dict[str, jax.Array]]:
    """What comes out after each token, [B, T, D], and the cache with it.

    Also the losses of the layers by name, [L].

    Args:
      sequence: tokens to read; with a cache, the next ones of each row, at
        their positions. Padding (segment 0) leaves the cache as it was.
      memory_BSD: the encoder's output; with a cache that has `cross_cache` of
        it, None.
      memory: the sequence that the encoder read.
      prefix_BT: of `sequence`, or of the whole cache when there is one: what
        may be attended to from before it.
      latent_BZ: z of each row, where there is a latent.
      hidden_BT: tokens whose embedding is 0.
      soft_BTD: soft tokens at placeholders, 0 elsewhere; None: of the media of
        the sequence.
      cache: what was read so far.
      deterministic: no dropout.
    """
    keys, positions_BT = sequence, sequence.positions
    if cache is not None:
      # Slot s holds position s; those not yet written lie in the future.
      slots = cache.self_attention.num_slots
      shape = (sequence.tokens.shape[0], slots)
      slots_BS = jnp.broadcast_to(jnp.arange(slots), shape)
      keys = batch_lib.Sequence(slots_BS, slots_BS, jnp.ones(shape, jnp.int32))
      positions_BT = jnp.where(sequence.segments > 0, positions_BT, slots)
      if memory_BSD is not None:
        cache = dataclasses.replace(
          cache, cross_attention=self.cross_cache(memory_BSD)
        )
    cross_mask = None
    if memory is not None:
      cross_mask = masking.visible(sequence, memory)
    context = transformer.Context(
      views=self.views(sequence, keys, causal=True, prefix_BS=prefix_BT),
      positions_BT=positions_BT,
      cross_mask=cross_mask,
      memory_BSD=memory_BSD,
      real_BT=sequence.segments > 0,
      latent_BZ=latent_BZ,
    )
    x_BTD = self.embed(sequence, deterministic, hidden_BT, soft_BTD)
    if self.config.latent.embedding and latent_BZ is not None:
      x_BTD = x_BTD + self.latent_embedding('BZ,ZD->BD', latent_BZ)[:, None]
    x_BTD, cache, aux = self.decoder(x_BTD, context, cache, deterministic)
    return self.decoder_norm(x_BTD), cache, aux

  def cross_cache(self, memory_BSD: jax.Array) -> attention.KVCache:
    """Keys and values that the decoder's layers make of the encoder's output.

    They belong into `Cache.cross_attention`, for as long as the memory is read.
    """
    return self.decoder.cross_cache(memory_BSD)

  def embed(
    self,
    sequence: batch_lib.Sequence,
    deterministic: bool,
    hidden_BT: jax.Array | None = None,
    soft_BTD: jax.Array | None = None,
  ) -> jax.Array:
    """Tokens (and learned positions) as vectors, [B, T, D].

    Soft tokens are added to what their placeholders are.
    """
    x_BTD = self.token(sequence.tokens)
    if hidden_BT is not None:
      x_BTD = jnp.where(hidden_BT[..., None], 0, x_BTD)
    if self.config.scale_embeddings:
      x_BTD = x_BTD * jnp.asarray(self.config.width**0.5, x_BTD.dtype)
    if soft_BTD is None and sequence.media:
      soft_BTD = self.media_embeddings(sequence, deterministic)
    if soft_BTD is not None:
      x_BTD = x_BTD + soft_BTD
    if self.config.position == 'learned':
      x_BTD = x_BTD + self.position(sequence.positions)
    x_BTD = self.dropout(x_BTD, deterministic=deterministic)
    return spmd.with_logical_constraint(x_BTD, ('batch', 'length', None))

  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """Scores of every token, float32[B, T, V]."""
    if self.config.tie_embeddings:
      logits_BTV = self.token.attend(x_BTD)
    else:
      logits_BTV = self.head('BTD,DV->BTV', x_BTD)
    if self.config.logit_softcap:
      cap = self.config.logit_softcap
      logits_BTV = cap * jnp.tanh(logits_BTV / cap)
    return spmd.with_logical_constraint(
      logits_BTV, ('batch', 'length', 'vocab')
    )

  def views(
    self,
    queries: batch_lib.Sequence,
    keys: batch_lib.Sequence,
    *,
    causal: bool,
    prefix_BS: jax.Array | None = None,
  ) -> dict[str, transformer.View]:
    """What each kind of layer in the pattern sees."""
    config = self.config
    rotary = {
      'global': {
        'base': config.rope_base,
        'scale': config.rope_scale,
        'llama3_context': config.rope_llama3_context,
        'llama3_factors': config.rope_llama3_factors,
      },
      'local': {'base': config.rope_base_local or config.rope_base},
    }
    windows = {'global': None, 'local': config.window}
    views = {}
    for kind in sorted(set(config.attention_pattern)):
      angles = None
      if config.position == 'rotary':
        frequencies_F = embedding.rotary_frequencies(
          config.head_width, **rotary[kind]
        )
        angles = embedding.rotary_angles(queries.positions, frequencies_F)
      mask = masking.visible(
        queries,
        keys,
        causal=causal,
        window=windows[kind],
        prefix_BS=prefix_BS,
      )
      views[kind] = transformer.View(mask, angles)
    return views


def init_cache(
  config: config_lib.Model, batch_size: int, length: int, memory_length: int = 0
) -> transformer.Cache:
  """An empty cache for `length` positions, in the compute type."""

  def buffers(length):
    return attention.KVCache.zeros(
      config.num_layers,
      batch_size,
      length,
      config.kv_heads,
      config.head_width,
      jnp.dtype(config.dtype),
    )

  return transformer.Cache(
    buffers(length), buffers(memory_length) if config.cross else None
  )


def init_params(model: Gemini, key: jax.Array) -> Any:
  """Fresh parameters, boxed with the logical names of their dims."""
  token = jnp.ones((1, 1), jnp.int32)
  # One of each kind that the model reads, of nothing.
  media = {
    kind: batch_lib.blank_media(kind, model.config, 1, 1)
    for kind in model.config.kinds
  }
  sequence = batch_lib.Sequence(token, 0 * token, token, media)
  batch = batch_lib.Batch(
    decoder=sequence,
    targets=token,
    weights=jnp.ones((1, 1)),
    encoder=sequence if model.config.cross else None,
  )
  return model.init(key, batch)['params']


def param_count(params: Any) -> int:
  """Numbers in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
