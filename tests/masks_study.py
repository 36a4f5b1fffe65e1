r"""Sparse training of a small network on Fashion-MNIST, method by method.

  python tests/masks_study.py DATA_DIR [--epochs=6] [--seeds=3] \
      [--sparsity=0.98] [--update_every=100] [--b2=0.999] \
      [--methods=static,rigl]

784-300-100-10 with ERK. Prints the test accuracy of each method: the mean over
seeds, and its spread. `set` is the control of `rigl`: what grows is drawn.

Others, such as in --epochs=14 --methods=none,gated,oneshot,momo_adam@0.1
[--tolerance=0.05]:
`gated` finds its own sparsity by the last twentieth of the training split, on
which no method trains. `oneshot` is the dense model, pruned in its last step to
the sparsity of a `gated` before it in the list. The control `shuffled` is
`gated` whose validation labels are those of other pictures. A method with a
rate is dense; adamw has no weight decay here.
"""

import argparse
import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow_datasets as tfds

from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled, masks, pruning
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib

METHODS = ('none', 'static', 'set', 'rigl', 'gradual', 'movement', 'ste')
WIDTHS = (784, 300, 100, 10)
ROWS = 128


def read(folder, split):
  source = tfds.data_source('fashion_mnist', split=split, data_dir=folder)
  images = np.stack([row['image'] for row in source])
  labels = np.asarray([row['label'] for row in source])
  return images.reshape(-1, 784).astype(np.float32) / 255, labels


def logits(params, x):
  for i in range(len(WIDTHS) - 1):
    x = x @ params[str(i)]['kernel'] + params[str(i)]['bias']
    if i < len(WIDTHS) - 2:
      x = jax.nn.relu(x)
  return x


def loss(params, x, labels):
  return jnp.mean(
    optax.softmax_cross_entropy_with_integer_labels(logits(params, x), labels)
  )


def configure(method, seed, num_rows, options, sparsity):
  """The config of a run of one method."""
  kind, _, rate = method.partition('@')
  name, method = (kind, 'none') if rate else ('adamw', kind)
  method = {'oneshot': 'gradual', 'shuffled': 'gated'}.get(method, method)
  num_steps = options.epochs * (num_rows // ROWS)
  last = {'begin': 1 - 1 / num_steps, 'end': 1.0, 'distribution': 'global'}
  return config_lib.from_config_dict(
    {
      'sparsity': {
        'method': method,
        'sparsity': sparsity,
        'distribution': 'erk',
        'pattern': '@matrix$',
        'update_every': options.update_every,
        # The loss has a standard error of about 4 % of it.
        'gate': {'first_epochs': 5, 'tolerance': options.tolerance},
        **(last | {'update_every': num_steps} if kind == 'oneshot' else {}),
      },
      'optimizer': {
        'name': name,
        'learning_rate': float(rate or 1e-3),
        'schedule': 'constant',
        'b2': options.b2,
        'weight_decay': 0.0,
        'clip_norm': 0.0,
      },
      'data': {'batch_size': ROWS, 'validation': ('tfds:x',)},
      'train': {
        'epoch_examples': num_rows // ROWS * ROWS,
        'epochs': options.epochs,
        'eval_every': num_rows // ROWS,
        'seed': seed,
      },
    }
  )


def trained(config, train, validation):
  """The state at the end."""
  num_steps, epochs = config.train.num_steps, config.train.epochs
  seed = config.train.seed
  on = enabled.extensions(config)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, num_steps)
  rng = np.random.default_rng(seed)
  params = {
    str(i): {
      'kernel': jnp.asarray(rng.normal(0, (2 / d) ** 0.5, (d, f)), jnp.float32),
      'bias': jnp.zeros(f),
    }
    for i, (d, f) in enumerate(itertools.pairwise(WIDTHS))
  }
  opt_state = optimizer.init(params)
  extra = jax.jit(on.init)(params, opt_state)
  state = state_lib.TrainState(jnp.int32(0), params, opt_state, extra)

  def step(state, rows):
    value, dense = jax.value_and_grad(loss)(
      on.forward_params(state), train[0][rows], train[1][rows]
    )
    updates, opt_state = optimizer.update(
      on.gradients(state, dense), state.opt_state, state.params, value=value
    )
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, on.updates(state, updates)),
      opt_state=opt_state,
    )
    return on.after_update(state, dense), None

  epoch = jax.jit(lambda state, rows: jax.lax.scan(step, state, rows)[0])
  validate = jax.jit(lambda params: loss(params, *validation))
  for _ in range(epochs):
    order = rng.permutation(len(train[0]))[: num_steps // epochs * ROWS]
    state = epoch(state, order.reshape(-1, ROWS))
    evaluated = on.evaluation_params(state, state.params)
    state = on.after_validation(state, np.float32(validate(evaluated)))
  return state


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('folder')
  parser.add_argument('--epochs', type=int, default=6)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--sparsity', type=float, default=0.98)
  parser.add_argument('--b2', type=float, default=0.999)
  parser.add_argument('--update_every', type=int, default=100)
  parser.add_argument('--tolerance', type=float, default=0.05)
  parser.add_argument('--methods', default=','.join(METHODS))
  options = parser.parse_args()
  train, test = read(options.folder, 'train'), read(options.folder, 'test')
  held_out = len(train[0]) // 20
  train, validation = (
    tuple(jnp.asarray(part[rows]) for part in train)
    for rows in (slice(None, -held_out), slice(-held_out, None))
  )
  shuffled = validation[0], jnp.roll(validation[1], held_out // 2)
  accuracy = jax.jit(
    lambda p: jnp.mean(logits(p, test[0]).argmax(-1) == test[1])
  )
  print('method     sparsity   accuracy   spread   seconds a run', flush=True)
  gated = options.sparsity
  for method in options.methods.split(','):
    start, found, share = time.time(), [], 0.0
    wanted = gated if method == 'oneshot' else options.sparsity
    judges = shuffled if method == 'shuffled' else validation
    for seed in range(options.seeds):
      config = configure(method, seed, len(train[0]), options, wanted)
      state = trained(config, train, judges)
      if pruning.NAME in state.extra:
        share = float(masks.sparsity(pruning.of(state)))
      found.append(100 * float(accuracy(state.params)))
    if method == 'gated':
      gated = share
    seconds = (time.time() - start) / options.seeds
    print(
      f'{method:16} {share:8.3f} {np.mean(found):10.2f} {np.std(found):8.2f} '
      f'{seconds:15.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
