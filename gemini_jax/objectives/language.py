"""Cross-entropy of the next token, and log-likelihoods of targets.

No device makes an array of [batch, length, vocabulary]: each has the scores of
a chunk of its tokens for its part of the vocabulary.

B rows, T length, V vocabulary, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import gemini
from gemini_jax.parallel import sharding

_SUMS = ('loss', 'objective', 'correct', 'weight')
_TOKENS = ('batch', 'length')


def token_sums(
  config: config_lib.Model,
  x_BTD: jax.Array,
  table_VD: jax.Array,
  batch: batch_lib.Batch,
  *,
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
) -> cross_entropy.Sums:
  """Sums of the cross-entropy of the targets; `objective` has a gradient.

  The z-loss is weighted here, since the kernel computes the gradient of its
  chunk together with the sums.

  Args:
    config: of the model.
    x_BTD: hidden states after each token.
    table_VD: the output table, of `Gemini.output_table`.
    batch: targets and their weights.
    label_smoothing: share of each target spread evenly over the tokens of text.
    z_loss: weight of the mean squared log-partition.
  """
  options = cross_entropy.Options(
    config.logit_softcap,
    label_smoothing,
    z_loss,
    num_classes=config.output_rows,
  )

  def kernel(options, *args):
    sums = cross_entropy.token_sums(options, *args)
    return {name: getattr(sums, name).reshape(1, 1) for name in _SUMS}

  parts = _per_device(
    *(config, kernel, options, dict.fromkeys(_SUMS, _TOKENS)),
    *(x_BTD, table_VD, batch),
  )
  return cross_entropy.Sums(**jax.tree.map(jnp.sum, parts))


def token_scores(
  config: config_lib.Model,
  x_BTD: jax.Array,
  table_VD: jax.Array,
  batch: batch_lib.Batch,
) -> tuple[cross_entropy.Sums, cross_entropy.TokenScores]:
  """The sums of `token_sums`, and how likely each target is.

  Only the log-probabilities have a gradient.
  """
  options = cross_entropy.Options(
    config.logit_softcap, num_classes=config.output_rows
  )

  def kernel(options, *args):
    sums, scores = cross_entropy.token_scores(options, *args)
    parts = {name: getattr(sums, name).reshape(1, 1) for name in _SUMS}
    return parts, scores

  parts, scores = _per_device(
    config,
    kernel,
    options,
    (
      dict.fromkeys(_SUMS, _TOKENS),
      cross_entropy.TokenScores(_TOKENS, _TOKENS),  # pyright: ignore
    ),
    x_BTD,
    table_VD,
    batch,
  )
  return cross_entropy.Sums(**jax.tree.map(jnp.sum, parts)), scores


def log_likelihood(
  model: gemini.Gemini,
  params: Any,
  batch: batch_lib.Batch,
  latent_BZ: jax.Array | None = None,
  memory_BSD: jax.Array | None = None,
) -> jax.Array:
  """Log p of the targets of each row, weighted, in nats: float32[B].

  Without dropout.

  Args:
    model: the network.
    params: of it.
    batch: rows of tokens and targets.
    latent_BZ: z of each row, where there is a latent.
    memory_BSD: the encoder's output, where the decoder reads it.
  """
  x_BTD, _, _ = gemini.apply(
    model,
    params,
    batch.decoder,
    memory_BSD=memory_BSD,
    memory=batch.encoder,
    prefix_BT=batch.prefix,
    latent_BZ=latent_BZ,
    method='decode_hidden',
  )
  table_VD = gemini.apply(model, params, method='output_table')
  _, scores = token_scores(model.config, x_BTD, table_VD, batch)
  return jnp.sum(scores.log_prob_BT * batch.weights, axis=-1)


def _per_device(
  config: config_lib.Model,
  kernel: Any,
  options: cross_entropy.Options,
  outputs: Any,
  x_BTD: jax.Array,
  table_VD: jax.Array,
  batch: batch_lib.Batch,
) -> Any:
  """What `kernel` gives for the tokens and the table's rows of each device."""
  num_rows = table_VD.shape[0]

  def local(x_BTD, table_VD, targets_BT, weights_BT):
    split = options
    if table_VD.shape[0] < num_rows:
      split = dataclasses.replace(options, vocab_axis='tensor')
    if table_VD.shape[1] < x_BTD.shape[-1]:
      table_VD = jax.lax.all_gather(table_VD, 'fsdp', axis=1, tiled=True)
    return kernel(split, x_BTD, table_VD, targets_BT, weights_BT)

  # Classes are few: each device has all of them.
  rows = None if config.num_classes else 'vocab'
  return sharding.per_device(
    local,
    ((*_TOKENS, None), (rows, 'embed'), _TOKENS, _TOKENS),
    outputs,
  )(x_BTD.astype(table_VD.dtype), table_VD, batch.targets, batch.weights)
