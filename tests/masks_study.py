r"""Sparse training of a small network on Fashion-MNIST, method by method.

  python tests/masks_study.py DATA_DIR [--epochs=6] [--seeds=3] \
      [--sparsity=0.98] [--methods=static,rigl]

784-300-100-10 with ERK. Prints the test accuracy of each method: the mean over
seeds, and its spread. `set` is the control of `rigl`: what grows is drawn.
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
from gemini_jax.adapt import masks, pruning
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


def trained(method, seed, train, epochs, sparsity):
  """The state at the end."""
  num_steps = epochs * (len(train[0]) // ROWS)
  extension = pruning.from_config(
    config_lib.from_config_dict(
      {
        'sparsity': {
          'method': method,
          'sparsity': sparsity,
          'distribution': 'erk',
          'pattern': '@matrix$',
        },
        'train': {'num_steps': num_steps, 'seed': seed},
      }
    )
  )
  items = [] if extension is None else [extension]
  optimizer = optax.adam(1e-3)
  rng = np.random.default_rng(seed)
  params = {
    str(i): {
      'kernel': jnp.asarray(rng.normal(0, (2 / d) ** 0.5, (d, f)), jnp.float32),
      'bias': jnp.zeros(f),
    }
    for i, (d, f) in enumerate(itertools.pairwise(WIDTHS))
  }
  state = state_lib.TrainState(
    jnp.int32(0),
    params,
    optimizer.init(params),
    {item.name: jax.jit(item.init)(params) for item in items},
  )

  def step(state, rows):
    read_params = state.params
    for item in items:
      read_params = item.forward_params(state, read_params)
    dense = jax.grad(loss)(read_params, train[0][rows], train[1][rows])
    grads = dense
    for item in items:
      grads = item.gradients(state, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    for item in items:
      updates = item.updates(state, updates)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    for item in items:
      state = item.after_update(state, dense)
    return state, None

  epoch = jax.jit(lambda state, rows: jax.lax.scan(step, state, rows)[0])
  for _ in range(epochs):
    order = rng.permutation(len(train[0]))[: num_steps // epochs * ROWS]
    state = epoch(state, order.reshape(-1, ROWS))
  return state


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('folder')
  parser.add_argument('--epochs', type=int, default=6)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--sparsity', type=float, default=0.98)
  parser.add_argument('--methods', default=','.join(METHODS))
  options = parser.parse_args()
  train, test = read(options.folder, 'train'), read(options.folder, 'test')
  train = tuple(map(jnp.asarray, train))
  accuracy = jax.jit(
    lambda p: jnp.mean(logits(p, test[0]).argmax(-1) == test[1])
  )
  print('method     sparsity   accuracy   spread   seconds a run', flush=True)
  for method in options.methods.split(','):
    start, found, share = time.time(), [], 0.0
    for seed in range(options.seeds):
      state = trained(method, seed, train, options.epochs, options.sparsity)
      if method != 'none':
        share = float(masks.sparsity(pruning.of(state)))
      found.append(100 * float(accuracy(state.params)))
    seconds = (time.time() - start) / options.seeds
    print(
      f'{method:10} {share:8.3f} {np.mean(found):10.2f} {np.std(found):8.2f} '
      f'{seconds:15.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
