r"""Does what is learned first keep the rest from being learned?

  python tests/question_study.py WORKDIR [--steps=600] [--every=200] \
      [--rows=muon@0.006,muon@0.006/0.0009,adamw@0.001] [--batch=32]

WORKDIR is a run of experiments/question_answering.py, of any number of steps:
its list of questions, its tokenizer and its model are used. A row is an
optimizer at a constant rate, behind a slash that of what muon leaves to Adam.
Each trains the model from its beginning. Then, by the first two words of the
questions: the share of right answers, their loss, and the norm of its gradient
with respect to the parameters that read pixels; and the share of the variance
of the tokens of pictures that tells pictures apart.
"""

import argparse
import collections
import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.models import gemini, stems
from gemini_jax.objectives import losses
from gemini_jax.train import optimizer as optimizer_lib

NUM_TRAIN, NUM_HELD = 40_000, 1024
# Rows of one evaluation.
CHUNK = 128


def rows_of(batches, count: int) -> batch_lib.Batch:
  """The first rows of a stream of batches, as one."""
  parts, have = [], 0
  for batch in batches:
    parts.append(jax.tree.map(np.asarray, batch))
    have += len(batch.targets)
    if have >= count:
      break
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def take(batch: batch_lib.Batch, rows) -> batch_lib.Batch:
  return jax.tree.map(lambda leaf: leaf[rows], batch)


def kinds(run: run_lib.Run, batch: batch_lib.Batch) -> np.ndarray:
  """The first two words of each question."""
  texts = [
    run.tokenizer.decode(list(map(int, row))) for row in batch.encoder.tokens
  ]
  return np.array([' '.join(text.split()[:2]) for text in texts])


def optimizer_of(row: str, config: config_lib.Config):
  """The optimizer of a row."""
  name, _, rates = row.partition('@')
  rate, _, adam = rates.partition('/')
  options = dataclasses.replace(
    config.optimizer,
    name=name,
    learning_rate=float(rate),
    adam_learning_rate=float(adam) if adam else None,
    schedule='constant',
    warmup_steps=50,
  )
  return optimizer_lib.make_optimizer(options, config.train.num_steps)


def told_apart(run: run_lib.Run, params, batch: batch_lib.Batch) -> float:
  """Share of the mean square of pictures' tokens that differs by picture."""
  config = run.config.model
  stem = stems.ImageStem(
    config.image.patch, config.width, config.image.num_blocks
  )
  media = batch.encoder.media['image']
  x, _ = stem.apply(
    {'params': params['perception']['encoders_image']['stem']},
    jnp.asarray(media.values[:, 0]),
    jnp.asarray(media.sizes[:, 0]),
  )
  return float(jnp.mean((x - x.mean(0)) ** 2) / jnp.mean(x**2))


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir', type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=600)
  parser.add_argument('--every', type=int, default=200)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument(
    '--rows', default='muon@0.006,muon@0.006/0.0009,adamw@0.001'
  )
  options = parser.parse_args()
  config = config_lib.read(options.workdir / config_lib.FILE)
  run = run_lib.open_run(config, options.workdir)
  train = rows_of(run.loader('train'), NUM_TRAIN)
  held = rows_of(run.loader('validation'), NUM_HELD)
  names_N = kinds(run, held)
  common = [name for name, _ in collections.Counter(names_N).most_common(8)]
  model = run.model

  def loss(params, batch):
    sums = losses.model_sums(model, params, batch)
    return sums.objective / sums.weight

  @jax.jit
  def right(params, batch):
    _, scores = losses.model_scores(model, params, batch)
    return jnp.all(scores.is_best_BT | (batch.weights <= 0), axis=1)

  gradient = jax.jit(jax.value_and_grad(loss))

  def report(row: str, step: int, params):
    right_N = np.concatenate(
      [
        right(params, take(held, slice(i, i + CHUNK)))
        for i in range(0, len(names_N), CHUNK)
      ]
    )
    apart = told_apart(run, params, take(held, slice(CHUNK)))
    print(f'{row}, step {step}: {apart:.4f} of pictures differs', flush=True)
    for name in common:
      rows = np.flatnonzero(names_N == name)
      # One shape, so one compilation.
      value, grads = gradient(params, take(held, np.resize(rows, CHUNK)))
      stem = grads['perception']['encoders_image']['stem']
      norm = float(optax.tree.norm(stem))
      print(
        f'  {name:16} right {right_N[rows].mean():.3f}  loss '
        f'{float(value):.3f}  gradient {norm:.4f}',
        flush=True,
      )

  for row in options.rows.split(','):
    rule = optimizer_of(row, config)

    @jax.jit
    def step(params, opt_state, batch, rule=rule):
      value, grads = jax.value_and_grad(loss)(params, batch)
      updates, opt_state = rule.update(grads, opt_state, params, value=value)
      return optimizer_lib.apply_updates(params, updates), opt_state

    params = nn.unbox(
      jax.jit(lambda key: gemini.init_params(model, key))(jax.random.key(0))
    )
    opt_state = rule.init(params)
    rng = np.random.default_rng(0)
    for number in range(1, options.steps + 1):
      batch = take(train, rng.integers(len(train.targets), size=options.batch))
      params, opt_state = step(params, opt_state, batch)
      if number % options.every == 0 or number == options.steps:
        report(row, number, params)


if __name__ == '__main__':
  main()
