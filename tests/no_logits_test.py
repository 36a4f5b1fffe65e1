"""No compiled program holds an array of [batch, length, vocabulary].

Neither of training, whose forward pass diagnosis runs operation by operation,
nor of evaluation or likelihoods.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.evaluate import evaluation, likelihood
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import gemini
from gemini_jax.objectives import losses
from gemini_jax.plan import hlo
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

ROWS, LENGTH, VOCABULARY = 4, 32, 512
LOGITS = ROWS * LENGTH * VOCABULARY
CONFIG = tiny.config(
  model={'vocab_size': VOCABULARY, 'max_length': LENGTH},
  data={'sequence_length': LENGTH, 'batch_size': ROWS},
)
MODEL = gemini.Gemini(CONFIG.model)
BATCH = toy.batch(rows=ROWS, length=LENGTH)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
  """As a real batch and vocabulary have them: many chunks."""
  monkeypatch.setattr(cross_entropy, '_SCORES', 0)
  monkeypatch.setattr(cross_entropy, '_CHUNK', 16)


@functools.cache
def params(model=MODEL):
  return toy.model_params(model)


def train_step():
  optimizer = optimizer_lib.make_optimizer(CONFIG.optimizer, 10)
  state = jax.eval_shape(
    functools.partial(state_lib.fresh_state, CONFIG, MODEL, optimizer), KEY
  )
  step = functools.partial(
    step_lib.train_step, config=CONFIG, model=MODEL, optimizer=optimizer
  )
  return jax.jit(step).lower(state, BATCH, jnp.int32(0))


def preferences():
  """Of half as many pairs as the others have rows."""
  batch, rejected = (
    toy.batch(rows=ROWS // 2, length=LENGTH, seed=seed) for seed in (0, 1)
  )
  batch = batch.replace(rejected=rejected)

  def objective(params):
    sums = losses.model_sums(
      MODEL,
      params,
      batch,
      key=KEY,
      config=CONFIG.train,
      loss_weights=losses.weights_at(CONFIG, 0),
      reference=params,
    )
    return sums.objective

  return jax.jit(jax.grad(objective)).lower(params())


def eval_step(whole):
  step = functools.partial(evaluation.eval_step, model=MODEL, whole=whole)
  return jax.jit(step).lower(params(), BATCH)


def sampled_likelihood():
  latent = config_lib.Latent(dim=3)
  model = gemini.Gemini(dataclasses.replace(CONFIG.model, latent=latent))
  return likelihood._measure.lower(model, 2, params(model), BATCH, KEY)


def logits():
  """What must be found: a loss from the logits of the whole batch."""

  def loss(params):
    logits_BTV, _ = gemini.apply(MODEL, params, BATCH)
    return jnp.sum(jax.nn.logsumexp(logits_BTV, axis=-1))

  return jax.jit(loss).lower(params())


PROGRAMS = {
  'train_step': train_step,
  'eval_step': functools.partial(eval_step, False),
  'eval_step_of_whole_examples': functools.partial(eval_step, True),
  'likelihood': lambda: likelihood._nats.lower(MODEL, params(), BATCH),
  'sampled_likelihood': sampled_likelihood,
  'preferences': preferences,
}


def largest(lowered):
  """Elements of the largest array in a compiled program, with fusions."""
  program = hlo.parse(lowered.compile().as_text())
  return max(
    math.prod(shape.dims)
    for computation in program.computations.values()
    for operation in computation.values()
    for shape in operation.shapes
  )


@pytest.mark.parametrize('name', PROGRAMS)
def test_no_array_is_as_large_as_the_logits(name):
  assert largest(PROGRAMS[name]()) < LOGITS


def test_the_logits_would_be_found():
  assert largest(logits()) >= LOGITS
