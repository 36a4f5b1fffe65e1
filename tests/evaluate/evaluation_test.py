"""A split's numbers do not depend on how it is cut into batches."""

import functools
import math

import jax
import numpy as np
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.evaluate import evaluation
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import gemini

eval_step = jax.jit(evaluation.eval_step, static_argnames=('model', 'whole'))


@pytest.fixture(scope='module')
def model():
  network = gemini.Gemini(tiny.config().model)
  return network, toy.model_params(network)


def test_batches_of_a_split_equal_one_big_batch(model):
  """The last one is half padding, whose content must not matter."""
  network, params = model
  step = functools.partial(eval_step, model=network, whole=False)
  whole = toy.batch(rows=5)
  padded = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1]]), whole)
  weights_BT = np.array(padded.weights)
  weights_BT[5] = 0
  padded = padded.replace(weights=weights_BT)
  batches = [
    jax.tree.map(lambda leaf, i=i: leaf[i : i + 2], padded) for i in (0, 2, 4)
  ]
  values = evaluation.evaluate(step, params, batches, 4.0)
  expected = evaluation.evaluate(step, params, [whole], 4.0)
  assert values == pytest.approx(expected, rel=1e-5)
  # A mean of the batches' means is something else.
  means = [
    evaluation.evaluate(step, params, [batch], None)['loss']
    for batch in batches
  ]
  assert abs(np.mean(means) - expected['loss']) > 1e-4


def test_evaluation_has_no_dropout_and_no_smoothing(model):
  network, params = model
  sums = eval_step(params, toy.batch(), model=network, whole=False)
  assert float(sums.objective) == float(sums.loss)
  dropped = gemini.Gemini(tiny.config(model={'dropout': 0.5}).model)
  again = eval_step(params, toy.batch(), model=dropped, whole=False)
  assert float(again.loss) == float(sums.loss)


def test_what_a_better_model_has_less_of():
  """The loss of text, and of media what training has less of."""
  weights = config_lib.LossWeights(media_nll=0.5, reconstruction=2.0)
  text = {'validation/loss': 3.0, 'test/loss': 9.0, 'validation/accuracy': 1.0}
  assert evaluation.objective({'test/loss': 9.0}, weights) is None
  assert evaluation.objective(text, weights) == 3.0
  media = text | {
    'validation/media_nll': 1.0,
    'validation/reconstruction': 0.25,
    'validation/paint_media_nll': 7.0,
    'test/media_nll': 7.0,
  }
  assert evaluation.objective(media, weights) == 4.0
  # Of preferences what they weigh alone.
  pairs = text | {'validation/dpo': 0.5, 'validation/dpo_margin': 7.0}
  weights = config_lib.LossWeights(dpo=2.0)
  assert evaluation.objective(pairs, weights) == 1.0
  weights = config_lib.LossWeights(dpo=2.0, chosen_nll=0.25)
  assert evaluation.objective(pairs, weights) == 1.75


def test_numbers_of_a_split():
  total = cross_entropy.Sums(
    loss=np.float64(60),
    objective=np.float64(1e9),
    correct=np.float64(30),
    weight=np.float64(40),
  )
  # Four bytes for each of 40 targets.
  values = evaluation.summarize(total, 4.0)
  assert values == pytest.approx(
    {
      'loss': 1.5,
      'perplexity': math.exp(1.5),
      'token_accuracy': 0.75,
      'bits_per_byte': 60 / math.log(2) / 160,
    }
  )
  assert 'bits_per_byte' not in evaluation.summarize(total, None)


def test_perplexity_of_a_hopeless_model_is_a_number():
  total = cross_entropy.Sums(*map(np.float64, (1e6, 0, 0, 1)))
  assert math.isfinite(evaluation.summarize(total, None)['perplexity'])


def test_sums_of_many_batches_lose_no_token():
  """float32 stops counting at 2**24."""
  sums = cross_entropy.Sums(*map(np.float32, (2.0, 2.0, 1.0, 2.0**24)))
  one = cross_entropy.Sums(*map(np.float32, (2.0, 2.0, 1.0, 1.0)))
  values = evaluation.evaluate(
    lambda params, batch, reference: batch, None, [sums, one, one, one], None
  )
  assert values['loss'] * (2**24 + 3) == pytest.approx(8, rel=1e-12)


def test_whole_examples_are_counted(model):
  """Those whose every weighted target is the likeliest token."""
  network, params = model
  batch = toy.batch(rows=5)
  logits, _ = jax.jit(network.apply)({'params': params}, batch)
  targets = np.argmax(np.asarray(logits), axis=-1).astype(np.int32)
  weights = np.array(batch.weights)
  # One is wrong at a place that counts, one at a place that does not; the
  # last is padding.
  targets[[1, 2], 3] = (targets[[1, 2], 3] + 1) % toy.VOCAB_SIZE
  weights[2, 3] = 0
  weights[4] = 0
  batch = batch.replace(targets=targets, weights=weights)
  step = functools.partial(eval_step, model=network, whole=True)
  values = evaluation.evaluate(step, params, [batch], None)
  assert values['accuracy'] == 0.75
  assert 0.95 < values['token_accuracy'] < 1
