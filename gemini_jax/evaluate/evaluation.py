"""Evaluation over whole splits."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import gemini
from gemini_jax.objectives import losses

# The term of the examples that are right as a whole.
_WHOLE = 'accuracy'


def eval_step(
  params: Any,
  batch: batch_lib.Batch,
  reference: Any = None,
  *,
  model: gemini.Gemini,
  whole: bool,
  dpo: config_lib.DPO | None = None,
) -> cross_entropy.Sums:
  """The sums of one batch.

  Args:
    params: of the model.
    batch: a row for each example, if `whole`.
    reference: parameters that preferences are relative to.
    model: what is evaluated.
    dpo: how preferences are turned into sums.
    whole: also count the examples whose targets are all the likeliest tokens:
      those that greedy decoding would write.
  """
  if batch.rejected is not None:
    options = dpo or config_lib.DPO()
    return losses.preference_sums(model, params, batch, reference, options)
  sums, scores = losses.model_scores(model, params, batch)
  if not whole:
    return sums
  counts_BT = batch.weights > 0
  is_example_B = jnp.any(counts_BT, axis=1)
  right_B = jnp.all(scores.is_best_BT | ~counts_BT, axis=1) & is_example_B
  counts = jnp.stack([jnp.sum(right_B), jnp.sum(is_example_B)])
  terms = sums.terms | {_WHOLE: counts.astype(jnp.float32)}
  return dataclasses.replace(sums, terms=terms)


def summarize(
  total: cross_entropy.Sums, bytes_per_token: float | None
) -> dict[str, float]:
  """Numbers of a split from its sums.

  accuracy is that of whole examples, where those were counted. Of a model with
  a latent, loss is the negative evidence bound and kl its KL term, in nats a
  sequence.

  Args:
    total: sums over the split, on the host.
    bytes_per_token: UTF-8 bytes of text for each target; None: not text.
  """
  loss = float(total.loss) / float(total.weight)
  values = {
    'loss': loss,
    'perplexity': math.exp(min(loss, 700.0)),
    'token_accuracy': float(total.correct) / float(total.weight),
  }
  values |= {
    name: float(mean) for name, mean in losses.means(total.terms).items()
  }
  if bytes_per_token:
    values['bits_per_byte'] = loss / bytes_per_token / math.log(2)
  return values


def objective(
  results: dict[str, float], loss_weights: config_lib.LossWeights
) -> float | None:
  """What a better model has less of: `validation/loss`, and other terms.

  Those by their weights in training, as all of preferences. None where nothing
  was validated.
  """
  if 'validation/loss' not in results:
    return None
  weights = vars(loss_weights)
  terms = {
    name: results[f'validation/{name}']
    for name in weights
    # The KL term is part of validation/loss.
    if name != 'kl' and f'validation/{name}' in results
  }
  loss = results['validation/loss']
  if 'dpo' in terms:
    loss *= loss_weights.chosen_nll
  return loss + losses.weighted(terms, weights)


def evaluate(
  step: Any,
  params: Any,
  batches: Any,
  bytes_per_token: float | None,
  reference: Any = None,
) -> dict[str, float]:
  """Loss (nats a token), perplexity, accuracies and bits per byte of a split.

  Args:
    step: compiled `eval_step` of (params, batch, reference).
    params: the parameters.
    batches: device batches; padding carries weight 0.
    bytes_per_token: see `summarize`.
    reference: parameters that preferences are relative to.
  """
  sums = [step(params, batch, reference) for batch in batches]
  host = jax.device_get(sums)
  # float64: the sums of a split outgrow float32's integers.
  total = functools.reduce(
    lambda a, b: jax.tree.map(np.add, a, b),
    (jax.tree.map(np.float64, item) for item in host),
  )
  return summarize(total, bytes_per_token)
