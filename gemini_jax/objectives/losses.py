"""The objective of training: all losses of a batch, weighted and added up.

A new objective is a function `terms` in a file of its own and an entry of
`_OBJECTIVES`; its weights are fields of `config.loss_weights`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import forward_pass, gemini
from gemini_jax.objectives import (
  contrastive,
  kl,
  language,
  media_losses,
  preference,
  router,
  values,
)
from gemini_jax.objectives import terms as terms_lib
from gemini_jax.weights import tuning

# What is added to the cross-entropy, in the order of the sum.
_OBJECTIVES = (
  router.terms,
  media_losses.terms,
  contrastive.terms,
  kl.terms,
)


def weights_at(config: config_lib.Config, step: jax.Array) -> dict[str, Any]:
  """The weight of each loss beside the cross-entropy, at a step."""
  weights = dict(vars(config.loss_weights))
  share = kl.schedule(config.train.kl_annealing, config.train.num_steps, step)
  return weights | {'kl': weights['kl'] * share}


def weighted(losses: Mapping[str, Any], weights: Mapping[str, Any]) -> Any:
  """The sum of losses times their weights.

  Raises:
    KeyError: a loss has no weight.
  """
  return sum((weights[name] * loss for name, loss in losses.items()), 0.0)


def means(terms: Mapping[str, Any]) -> dict[str, Any]:
  """The mean of each term, which is [sum, count]."""
  return {
    name: total[0] / jnp.maximum(total[1], 1) for name, total in terms.items()
  }


def model_sums(
  model: gemini.Gemini,
  params: Any,
  batch: batch_lib.Batch,
  *,
  key: jax.Array | None = None,
  config: config_lib.Train | None = None,
  loss_weights: Mapping[str, Any] | None = None,
  reference: Any = None,
) -> cross_entropy.Sums:
  """The sums of one batch, whose `objective` has a gradient.

  Args:
    model: the network.
    params: of the model.
    batch: what is summed over.
    key: of the randomness; None: a function of the batch.
    config: of the training; None: neither dropout nor smoothing.
    loss_weights: of `weights_at`; None: the objective is the cross-entropy.
    reference: for a batch of preferences, the parameters that these are
      relative to.
  """
  if batch.rejected is not None:
    train = config or config_lib.Train()
    return preference_sums(
      *(model, params, batch, reference, train.dpo),
      key=key,
      config=config,
      loss_weights=loss_weights,
    )
  weights = loss_weights or {}
  output, table_VD = _forward(model, params, batch, key, config)
  args = model.config, output.x_BTD, table_VD, batch
  label_smoothing = config.label_smoothing if config else 0.0
  if batch.values is not None:
    sums, _ = values.scores(*args, label_smoothing=label_smoothing)
  else:
    sums = language.token_sums(
      *args,
      label_smoothing=label_smoothing,
      z_loss=weights.get('z_loss', 0.0),
    )
  return _add_terms(model.config, output, batch, sums, config, loss_weights)


def model_scores(
  model: gemini.Gemini, params: Any, batch: batch_lib.Batch
) -> tuple[cross_entropy.Sums, cross_entropy.TokenScores]:
  """The sums of one batch in evaluation, and the scores of its tokens."""
  output, table_VD = _forward(model, params, batch, None, None)
  of_targets = language.token_scores if batch.values is None else values.scores
  sums, scores = of_targets(model.config, output.x_BTD, table_VD, batch)
  return _add_terms(model.config, output, batch, sums, None, None), scores


def preference_sums(
  model: gemini.Gemini,
  params: Any,
  batch: batch_lib.Batch,
  reference: Any,
  options: config_lib.DPO,
  *,
  key: jax.Array | None = None,
  config: config_lib.Train | None = None,
  loss_weights: Mapping[str, Any] | None = None,
) -> cross_entropy.Sums:
  """The sums of a batch of preferences; `objective` is that of `preference`.

  The others are those of the preferred targets. Arguments as in `model_sums`.

  Args:
    model: the network.
    params: of the model.
    batch: of preferences.
    reference: parameters that these are relative to.
    options: of the objective.
    key: of the randomness.
    config: of the training.
    loss_weights: of `weights_at`.
  """
  assert reference is not None, 'preferences are relative to a reference'
  rows = preference.all_rows(batch)

  def scores(output, table_VD):
    return language.token_scores(model.config, output.x_BTD, table_VD, rows)

  output, table_VD = _forward(model, params, rows, key, config)
  sums, policy = scores(output, table_VD)
  _, fixed = scores(
    *_forward(model, jax.lax.stop_gradient(reference), rows, None, None)
  )
  part = preference.terms(options, batch, policy.log_prob_BT, fixed.log_prob_BT)
  # The cross-entropy counts by its weight alone.
  sums = dataclasses.replace(sums, objective=jnp.zeros_like(sums.objective))
  return _add_terms(
    model.config, output, rows, sums, config, loss_weights, part
  )


def _forward(
  model: gemini.Gemini,
  params: Any,
  batch: batch_lib.Batch,
  key: jax.Array | None,
  config: config_lib.Train | None,
) -> tuple[forward_pass.ForwardOutput, jax.Array]:
  """Outputs of a forward pass, and the output table."""
  if key is None:
    number = jnp.sum(batch.targets.astype(jnp.uint32))
    key = jax.random.fold_in(jax.random.key(0), number)
  rngs = {'latent': jax.random.fold_in(key, 1)}
  word_dropout = 0.0
  if config is not None:
    rngs['dropout'] = key
    params = tuning.with_dropout(params, jax.random.fold_in(key, 2))
    word_dropout = config.kl_annealing.word_dropout
  output = gemini.apply(
    model,
    params,
    batch,
    config is None,
    word_dropout,
    rngs=rngs,
    method='forward',
  )
  return output, gemini.apply(model, params, method='output_table')


def _add_terms(
  config: config_lib.Model,
  output: forward_pass.ForwardOutput,
  batch: batch_lib.Batch,
  sums: cross_entropy.Sums,
  train: config_lib.Train | None,
  loss_weights: Mapping[str, Any] | None,
  first: terms_lib.Terms | None = None,
) -> cross_entropy.Sums:
  """The sums with all objectives in them, each weighted once."""
  num_tokens = jnp.maximum(sums.weight, 1e-9)
  first = first or terms_lib.Terms()
  losses, terms = dict(first.losses), dict(first.sums)
  for objective in _OBJECTIVES:
    part = objective(config, output, batch, num_tokens, train)
    losses |= part.losses
    terms |= part.sums
  objective = sums.objective
  if loss_weights is not None:
    objective += weighted(losses, loss_weights) * sums.weight
  loss = sums.loss
  if 'kl' in terms:
    # The negative evidence bound.
    loss += terms['kl'][0]
  return dataclasses.replace(sums, loss=loss, objective=objective, terms=terms)
