"""Evaluation over whole splits."""

import functools
import math
from typing import Any

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax.models import gemini
from gemini_jax.train import losses


def eval_step(
  params: Any, batch: batch_lib.Batch, *, model: gemini.Gemini
) -> losses.Sums:
  """The sums of one batch."""
  return losses.model_sums(model, params, batch)


def summarize(
  total: losses.Sums, tokens_per_byte: float | None
) -> dict[str, float]:
  """Numbers of a split from its sums.

  Args:
    total: sums over the split, on the host.
    tokens_per_byte: targets for each byte of text; None: not text.
  """
  loss = float(total.loss) / float(total.weight)
  values = {
    'loss': loss,
    'perplexity': math.exp(min(loss, 700.0)),
    'accuracy': float(total.correct) / float(total.weight),
  }
  if tokens_per_byte:
    values['bits_per_byte'] = loss * tokens_per_byte / math.log(2)
  return values


def evaluate(
  step: Any, params: Any, batches: Any, tokens_per_byte: float | None
) -> dict[str, float]:
  """Loss (nats a token), perplexity, accuracy and bits per byte of a split.

  Args:
    step: compiled `eval_step` of (params, batch).
    params: the parameters.
    batches: device batches; padding carries weight 0.
    tokens_per_byte: see `summarize`.
  """
  sums = [step(params, batch) for batch in batches]
  host = jax.device_get(sums)
  # float64: the sums of a split outgrow float32's integers.
  total = functools.reduce(
    lambda a, b: jax.tree.map(np.add, a, b),
    (jax.tree.map(np.float64, item) for item in host),
  )
  return summarize(total, tokens_per_byte)
