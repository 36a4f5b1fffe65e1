"""Gemini: one Transformer, encoder-decoder or decoder-only by config.

B batch, T decoder length, S encoder length, D width, V vocabulary, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import spmd

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.layers import attention, embedding, hooks, linear, matmul
from gemini_jax.models import (
  contexts,
  contrast,
  forward_pass,
  media_embeddings,
  stack,
  transformer,
)
from gemini_jax.models import latent as latent_lib
from gemini_jax.parallel import pipeline


class Gemini(nn.Module):
  """The network: tokens and media in, hidden states and logits out.

  Attributes:
    config: its architecture; `vocab_size` must be set.
    schedule: how a batch passes the pipeline's stages, if the mesh has some.
  """

  config: config_lib.Model
  schedule: pipeline.Schedule = pipeline.Schedule()

  def setup(self):
    """The parts that the config asks for."""
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
      self.encoder_norm = transformer.make_norm(config)
    if config.latent.dim:
      self.latent = latent_lib.Latent(
        config.latent, config.width, config.num_heads, **types
      )
      if config.latent.embedding:
        # The norm of a token's vector, so that neither hides the other.
        size = self.token.init_scale
        size *= config.width**0.5 if config.scale_embeddings else 1
        self.latent_embedding = linear.Einsum(
          (config.latent.dim, config.width),
          (None, 'embed'),
          init_scale=size * config.latent.dim**-0.5,
          **types,
        )
    if config.contrast_dim:
      self.contrast = contrast.ContrastiveHead(
        config.contrast_dim, config.width, types
      )
    if config.kinds:
      self.perception = media_embeddings.MediaEmbedder(config, self.schedule)
    self.decoder = stack.Stack(
      config, config.num_layers, decodes=True, schedule=self.schedule
    )
    self.decoder_norm = transformer.make_norm(config)
    self.dropout = nn.Dropout(config.dropout)
    if config.num_classes:
      self.classes = linear.Einsum(
        (config.width, config.num_classes),
        ('embed', None),
        init_scale=config.init_scale,
        out_dtype=jnp.dtype('float32'),
        **types,
      )
    elif not config.tie_embeddings:
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
    """Logits of the targets, float32[B, T, V], and the routers' losses."""
    output = self.forward(batch, deterministic)
    return self.logits(output.x_BTD), output.aux

  def forward(
    self,
    batch: batch_lib.Batch,
    deterministic: bool,
    word_dropout: float = 0.0,
  ) -> forward_pass.ForwardOutput:
    """Hidden states after each token of a batch; see `forward_pass.run`."""
    return forward_pass.run(self, batch, deterministic, word_dropout)

  def output_table(self) -> jax.Array:
    """The matrix whose products with hidden states are logits, [V, D].

    In the type of the computation. Its rows are classes where the model names
    some.
    """
    dtype = jnp.dtype(self.config.dtype)
    if self.config.tie_embeddings and not self.config.num_classes:
      return matmul.to_array(self.token.embedding, dtype)
    head = self.classes if self.config.num_classes else self.head
    kernel_DV = head.get_variable('params', 'kernel')
    return matmul.to_array(kernel_DV, dtype).T

  def pair_vectors(self, batch: batch_lib.Batch) -> tuple[jax.Array, ...]:
    """Vectors of inputs and of targets, [B, C] each, and the tokens of both.

    The tokens are those of `contrast.pair_tokens`.
    """
    vectors = self.forward(batch, deterministic=True).pair_vectors
    assert vectors is not None, 'model.contrast_dim is 0'
    tokens = contrast.pair_tokens(batch)
    return vectors.inputs_BC, vectors.targets_BC, *tokens

  def encode_media(
    self, media: Mapping[str, batch_lib.Media], deterministic: bool = True
  ) -> media_embeddings.MediaEmbeddings | None:
    """Embeddings of media; None if the model reads text alone."""
    if not self.config.kinds:
      return None
    return self.perception(media, deterministic)

  def scatter_soft_tokens(
    self,
    sequence: batch_lib.Sequence,
    media: media_embeddings.MediaEmbeddings | None,
  ) -> jax.Array | None:
    """Soft tokens at placeholders, 0 elsewhere; None without media."""
    if media is None:
      return None
    return self.perception.scatter_soft_tokens(sequence.tokens, media)

  def media_embeddings(
    self, sequence: batch_lib.Sequence, deterministic: bool = True
  ) -> jax.Array | None:
    """Soft tokens of a sequence's own media, [B, T, D]."""
    return self.scatter_soft_tokens(
      sequence, self.encode_media(sequence.media, deterministic)
    )

  def encoder_inputs(self, batch: batch_lib.Batch) -> batch_lib.Sequence | None:
    """What the encoder reads, if there is one.

    The inputs; or, for a latent without inputs, the targets.
    """
    if batch.encoder is not None or not self.config.latent.dim:
      return batch.encoder
    return dataclasses.replace(batch.decoder, tokens=batch.targets)

  def posterior(self, sequence: batch_lib.Sequence) -> latent_lib.Normal:
    """Distribution of z of each sequence, of [B, Z]."""
    memory_BSD, _ = self.encode(sequence)
    return self.latent(memory_BSD, sequence)[0]

  def prior(self) -> latent_lib.Mixture:
    """Distribution of z without a sequence."""
    return self.latent.prior()

  def encode(
    self,
    sequence: batch_lib.Sequence,
    deterministic: bool = True,
    soft_BSD: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The encoder's output, [B, S, D], and the losses of its routers, [L].

    Args:
      sequence: tokens to read.
      deterministic: no dropout.
      soft_BSD: see `decode_hidden`.
    """
    x_BSD, _, aux = self.encoder(
      self.embed(sequence, deterministic, soft_BTD=soft_BSD),
      contexts.encoder(self.config, sequence),
      deterministic=deterministic,
    )
    return self.encoder_norm(x_BSD), aux

  def decode(
    self, sequence: batch_lib.Sequence, **kwargs: Any
  ) -> tuple[jax.Array, transformer.Cache | None, dict[str, jax.Array]]:
    """Logits float32[B, T, V] after each token; see `decode_hidden`."""
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
    """Hidden states after each token [B, T, D], the cache, routers' losses [L].

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
      cache: of the tokens before.
      deterministic: no dropout.
    """
    if cache is not None and memory_BSD is not None:
      cache = dataclasses.replace(
        cache, cross_attention=self.cross_cache(memory_BSD)
      )
    context = contexts.decoder(
      self.config,
      sequence,
      num_slots=None if cache is None else cache.self_attention.num_slots,
      memory_BSD=memory_BSD,
      memory=memory,
      prefix_BT=prefix_BT,
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
    """Vectors of tokens and of learned positions, [B, T, D].

    Soft tokens are added to the vectors of their placeholders.
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
    """Scores of every token, class or label, or numbers, float32[B, T, V]."""
    if self.config.num_classes:
      logits_BTV = self.classes('BTD,DV->BTV', x_BTD)
    elif self.config.tie_embeddings:
      logits_BTV = self.token.attend(x_BTD)
    else:
      logits_BTV = self.head('BTD,DV->BTV', x_BTD)
    cap = self.config.logit_softcap
    # Labels and numbers have a loss of their own, without it.
    if cap and self.config.output == 'classes':
      logits_BTV = cap * jnp.tanh(logits_BTV / cap)
    rows = None if self.config.num_classes else 'vocab'
    return spmd.with_logical_constraint(logits_BTV, ('batch', 'length', rows))


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
  # An empty one of each kind that the model reads.
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


def apply(model: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
  """`model.apply` of parameters, plain or `hooks.EditedParams`."""
  return model.apply(hooks.variables(params), *args, **kwargs)
