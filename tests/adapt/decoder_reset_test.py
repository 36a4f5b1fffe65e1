"""The decoder starts anew at one step, with all that mirrors it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tiny
import toy
from gemini_jax.models import gemini
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib


def config_of(**fields):
  return tiny.config(
    **{
      'model': {'latent': {'dim': 3}},
      'data': {'pack': False, 'batch_size': 4},
      'train': {'num_steps': 10, 'kl_annealing': {'pretrain_fraction': 0.2}},
    }
    | fields
  )


def test_the_decoder_starts_anew_once():
  """The encoder and the tokens stay; so do the moments of what stays."""
  config = config_of(optimizer={'schedule': 'constant', 'name': 'adamw'})
  network = gemini.Gemini(config.model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  state = state_lib.fresh_state(config, network, rule, jax.random.key(1))
  step = jax.jit(
    functools.partial(
      step_lib.train_step, config=config, model=network, optimizer=rule
    )
  )
  batch = toy.batch(rows=4)
  for index in range(2):
    state, _ = step(state, batch, index)
  after, metrics = step(state, batch, 2)
  assert metrics['finite']

  def change(name):
    """Of one update, at most about the learning rate of 1e-3."""
    pairs = zip(
      jax.tree.leaves(state.params[name]),
      jax.tree.leaves(after.params[name]),
      strict=True,
    )
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)

  assert change('decoder') > 0.1 and change('latent_embedding') > 0.1
  for name in ('encoder', 'token', 'latent'):
    assert 0 < change(name) < 0.01
  # And never again.
  state, after = after, step(after, batch, 3)[0]
  assert 0 < change('decoder') < 0.01


def test_the_reset_leaves_decoders_of_media_alone():
  """Of an autoencoder's `decoder_norm`, too, and of what mirrors it."""
  config = config_of(
    model={
      'latent': {'dim': 3},
      'image': {'height': 4, 'width': 4, 'patch': 2, 'autoencoder': {'dim': 2}},
      'tie_embeddings': False,
    },
    optimizer={'name': 'adafactor', 'ema_decay': 0.9},
  )
  network = gemini.Gemini(config.model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  fresh = functools.partial(state_lib.fresh_state, config, network, rule)
  state = toy.random_tree(jax.eval_shape(fresh, jax.random.key(0)))
  state = state.replace(step=jnp.int32(2))
  after, _ = step_lib.begin(state, config=config, model=network, optimizer=rule)
  changed = {'params': set(), 'opt_state': set(), 'extra': set()}
  kept = set()
  flat, _ = jax.tree_util.tree_flatten_with_path(state)
  for (path, before), new in zip(flat, jax.tree.leaves(after), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    part = name.partition('/')[0]
    if np.array_equal(before, new):
      kept.add(name)
    else:
      changed[part].add(name)
  assert any('perception/' in n and '/decoder_norm/' in n for n in kept)
  for part, names in changed.items():
    assert not any('perception/' in name for name in names)
    for module in ('decoder', 'decoder_norm', 'head', 'latent_embedding'):
      assert any(f'/{module}/' in name for name in names), (part, module)
