"""Masks move by weights and gradients, and all that they prune is zero."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import tiny
import toy
from gemini_jax.adapt import enabled, pruning
from gemini_jax.models import parameter_groups
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib

NUM_STEPS = 16
EVERY = 4
SHAPES = {
  'decoder': {
    'layers': {
      'feedforward': {'up': {'kernel': (2, 8, 16), 'bias': (2, 16)}},
      'attention': {'output': {'kernel': (2, 2, 4, 8)}},
    }
  },
}
DYNAMIC = ('set', 'rigl', 'gradual', 'movement', 'ste')


def draw(seed):
  is_shape = lambda leaf: isinstance(leaf, tuple)
  return toy.random_tree(
    jax.tree.map(
      lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
      SHAPES,
      is_leaf=is_shape,
    ),
    seed,
  )


@functools.cache
def parts(method, rule='adamw', **fields):
  """(config, extensions, optimizer, jitted init, jitted update)."""
  sparsity = {'method': method, 'sparsity': 0.75, 'update_every': EVERY}
  average = {} if rule == 'schedule_free' else {'ema_decay': 0.9}
  config = tiny.config(
    sparsity=sparsity | fields,
    optimizer={'name': rule, 'learning_rate': 0.05} | average,
    train={'num_steps': NUM_STEPS},
  )
  extensions = enabled.extensions(config)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, NUM_STEPS)

  def init(params):
    return state_lib.TrainState(
      jnp.int32(0), params, optimizer.init(params), extensions.init(params)
    )

  def update(state, grads):
    """As a step, of a loss whose gradients are given."""
    updates, opt_state = optimizer.update(
      extensions.gradients(state, grads),
      state.opt_state,
      state.params,
      value=jnp.float32(1),
    )
    updates = extensions.updates(state, updates)
    new = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optimizer_lib.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return extensions.after_update(new, grads)

  return config, extensions, optimizer, jax.jit(init), jax.jit(update)


@functools.cache
def course(method, rule='adamw', **fields):
  """The states of all steps, on one device."""
  *_, init, update = parts(method, rule, **fields)
  states = [init(draw(0))]
  for step in range(NUM_STEPS):
    states.append(update(states[-1], draw(step + 100)))
  assert update._cache_size() == 1
  return states


def flat(tree):
  """The numbers of all matrices, [layer, number] each, in one row."""
  layers = tree['decoder']['layers']
  leaves = (
    layers['feedforward']['up']['kernel'],
    layers['attention']['output']['kernel'],
  )
  return np.concatenate([np.asarray(leaf).reshape(2, -1) for leaf in leaves], 1)


def matrices(tree):
  """(mask or number of one layer of one matrix), of all."""
  row = flat(tree)
  return [part for layer in row for part in np.split(layer, [128])]


def kept(state):
  return flat(pruning.of(state))


@pytest.mark.parametrize('method', [*DYNAMIC, 'static'])
def test_what_is_pruned_is_zero_everywhere(method):
  """In parameters, in what is evaluated, in averages and in moments."""
  config = parts(method)[0]
  for state in course(method)[1:]:
    pruned = ~kept(state)
    adam = optimizer_lib.find_state(state.opt_state, optax.ScaleByAdamState)
    trees = [
      state.params,
      state.extra['ema'],
      state_lib.evaluation_params(config, state),
    ]
    if method != 'ste':
      trees += [adam.mu, adam.nu]
    for tree in trees:
      assert not flat(tree)[pruned].any()
      # And what is kept is trained; where it has just grown it is zero.
      assert (flat(tree)[~pruned] != 0).mean() > 0.6
    # The rest is as it would be.
    assert np.asarray(
      adam.mu['decoder']['layers']['feedforward']['up']['bias']
    ).all()


def test_averages_of_schedule_free_are_zero_too():
  """Also as a reader of the checkpoint computes them."""
  config = parts('rigl', 'schedule_free')[0]
  for state in course('rigl', 'schedule_free')[1:]:
    pruned = ~kept(state)
    free = optimizer_lib.find_state(
      state.opt_state, optax.contrib.ScheduleFreeState
    )
    averaged = optimizer_lib.evaluation_params(state.params, state.opt_state)
    for tree in (free.z, averaged, state_lib.evaluation_params(config, state)):
      assert not flat(tree)[pruned].any()
      assert (flat(tree)[~pruned] != 0).mean() > 0.6


@pytest.mark.parametrize('method', ['set', 'rigl'])
def test_the_smallest_go_and_others_come(method):
  """RigL as in the paper, in numpy; SET takes any others."""
  states = course(method)
  grown = 0
  for step in range(1, NUM_STEPS + 1):
    old, new = states[step - 1], states[step]
    rows = zip(
      *map(matrices, (pruning.of(old), pruning.of(new), new.params)),
      strict=True,
    )
    grads = matrices(draw(step + 99))
    changes = step % EVERY == 0 and step <= 12
    share = 0.15 * (1 + np.cos(np.pi * step / 12))
    for (mask, after, param), grad in zip(rows, grads, strict=True):
      assert after.sum() == mask.sum() == mask.size // 4
      if not changes:
        np.testing.assert_array_equal(mask, after)
        continue
      drop = round(share * mask.sum())
      assert (mask & after).sum() >= mask.sum() - drop
      new_ones = after & ~mask
      grown += new_ones.sum()
      assert not param[new_ones].any()
      if method == 'rigl':
        candidates = np.abs(grad)[~mask]
        best = np.sort(candidates)[::-1][: new_ones.sum()]
        np.testing.assert_array_equal(
          np.sort(np.abs(grad)[new_ones])[::-1], best
        )
  assert grown > 20


def test_rigl_equals_its_formula():
  """One exchange, from weights, masks and gradients."""
  config = parts('rigl')[0]
  item = pruning.Pruning(config)
  state = course('rigl')[EVERY - 1]
  dense = dataclasses.replace(state, step=jnp.int32(EVERY))
  grads = draw(7)
  after = jax.jit(item.after_update)(dense, grads)
  share = 0.15 * (1 + np.cos(np.pi * EVERY / 12))
  rows = map(
    matrices, (pruning.of(dense), pruning.of(after), dense.params, grads)
  )
  for mask, found, param, grad in zip(*rows, strict=True):
    count, drop = mask.sum(), round(share * mask.sum())
    assert drop > 0
    expected = np.zeros_like(mask)
    order = np.argsort(np.where(mask, -np.abs(param), np.inf))
    expected[order[: count - drop]] = True
    # What has just gone may come back.
    order = np.argsort(np.where(expected, np.inf, -np.abs(grad)))
    expected[order[:drop]] = True
    np.testing.assert_array_equal(found, expected)


def test_gradual_pruning_follows_its_course():
  states = course('gradual')
  assert kept(states[0]).all()
  for step in range(1, NUM_STEPS + 1):
    old, new = states[step - 1], states[step]
    at = EVERY * (min(step, 12) // EVERY)
    share = 0.75 * (1 - (1 - at / 12) ** 3)
    for mask, before in zip(
      matrices(pruning.of(new)), matrices(pruning.of(old)), strict=True
    ):
      assert (~mask).sum() == round(share * mask.size)
      assert not (mask & ~before).any()
  state = states[EVERY]
  magnitudes = zip(
    matrices(pruning.of(state)), matrices(state.params), strict=True
  )
  for mask, param in magnitudes:
    assert np.abs(param)[mask].all()


def test_of_all_matrices_together_the_smallest_go():
  config, *_, init, _ = parts('gradual', distribution='global')
  item, state = pruning.Pruning(config), init(draw(0))
  # Each beside the root mean square of its parameter.
  scale = lambda leaf: jnp.abs(leaf) / jnp.sqrt(jnp.mean(jnp.square(leaf)))
  magnitude = flat(jax.tree.map(scale, state.params))
  for step, share in ((EVERY, 0.75 * (1 - (2 / 3) ** 3)), (12, 0.75)):
    state = dataclasses.replace(state, step=jnp.int32(step))
    state = jax.jit(item.after_update)(state, draw(7))
    mask = kept(state)
    assert (~mask).sum() == round(share * mask.size)
    if step == EVERY:
      assert magnitude[mask].min() > magnitude[~mask].max()
    assert len({part.sum() for part in matrices(pruning.of(state))}) > 2


def test_movement_keeps_what_moves_away_from_zero():
  """Scores by the formula; what was pruned waits, and may return."""
  states, scores = course('movement'), 0.0
  returned = 0
  for step in range(1, NUM_STEPS + 1):
    state, old = states[step], states[step - 1]
    latent = flat(state.extra['masks']['latent'])
    weights = flat(state.params) + latent
    scores = scores - weights * flat(draw(step + 99))
    np.testing.assert_allclose(
      flat(state.extra['masks']['scores']), scores, rtol=1e-4, atol=1e-6
    )
    mask = kept(state)
    assert not latent[mask].any() and latent[~mask].all()
    waiting = ~mask & ~kept(old)
    np.testing.assert_array_equal(
      latent[waiting], flat(old.extra['masks']['latent'])[waiting]
    )
    returned += (mask & ~kept(old)).sum()
  assert (kept(states[-1]).mean(), returned > 0) == (0.25, True)
  for mask, score in zip(
    matrices(pruning.of(states[12])),
    matrices(states[12].extra['masks']['scores']),
    strict=True,
  ):
    assert score[mask].min() >= score[~mask].max()


def test_straight_through_trains_what_is_pruned():
  """As AdamW would without masks, but for decay; the largest count."""
  states = course('ste')
  *_, optimizer, _, _ = parts('ste')
  params = draw(0)
  opt_state = optimizer.init(params)
  for step in range(1, 4):
    updates, opt_state = optimizer.update(
      draw(step + 99), opt_state, params, value=jnp.float32(1)
    )
    params = optax.apply_updates(params, updates)
    state = states[step]
    dense = flat(state.params) + flat(state.extra['masks']['latent'])
    np.testing.assert_allclose(dense, flat(params), rtol=0.03, atol=3e-3)
  for state in states[EVERY:12:EVERY]:
    for mask, param, latent in zip(
      *map(
        matrices,
        (pruning.of(state), state.params, state.extra['masks']['latent']),
      ),
      strict=True,
    ):
      assert np.abs(param)[mask].min() >= np.abs(latent)[~mask].max()
  returned = kept(states[8]) & ~kept(states[7])
  assert returned.any()
  np.testing.assert_array_less(0, np.abs(flat(states[8].params)[returned]))


@pytest.mark.parametrize(
  ('method', 'fields'),
  [
    ('static', {'n_m': '2:4'}),
    ('rigl', {'n_m': '1:4'}),
    ('gradual', {'n_m': '2:4'}),
    ('rigl', {'block': 4}),
  ],
)
def test_groups_and_blocks(method, fields):
  """Of every group N are kept; of every block all or nothing."""
  states = course(method, **fields)
  for state in (states[0], states[-1]):
    up = np.asarray(
      pruning.of(state)['decoder']['layers']['feedforward']['up']['kernel']
    )
    if 'block' in fields:
      blocks = up.reshape(2, 2, 4, 4, 4).transpose(0, 1, 3, 2, 4)
      blocks = blocks.reshape(2, 2, 4, 16)
      assert (blocks.all(-1) == blocks.any(-1)).all()
      # As many for every block of outputs.
      assert (blocks.any(-1).sum(1) == 1).all()
    elif method != 'gradual' or state is states[-1]:
      n = int(fields['n_m'][0])
      assert (up.reshape(2, 2, 4, 16).sum(2) == n).all()
  moved = (kept(states[0]) != kept(states[-1])).any()
  assert moved == (method != 'static')


def test_the_first_mask():
  """Random by the seed, the largest, or what is not zero."""
  params = draw(0)
  random = parts('static')[3](params)
  assert random.extra['masks'].keys() == {'masks'}
  largest = parts('static', first='magnitude')[3](params)
  for state, are_largest in ((random, False), (largest, True)):
    for mask, param in zip(
      matrices(pruning.of(state)), matrices(params), strict=True
    ):
      assert mask.sum() == mask.size // 4
      least, most = np.abs(param)[mask].min(), np.abs(param)[~mask].max()
      assert (least >= most) == are_largest
  config = parts('static')[0]
  train = dataclasses.replace(config.train, seed=1, init_from='/base')
  sparsity = dataclasses.replace(config.sparsity, first='nonzero')
  other = pruning.Pruning(dataclasses.replace(config, train=train))
  # A run that starts from another's parameters keeps their largest.
  found = jax.jit(other.init)(params)
  np.testing.assert_array_equal(flat(found['masks']), kept(largest))
  other = pruning.Pruning(
    dataclasses.replace(config, train=train, sparsity=sparsity)
  )
  found = jax.jit(other.init)(
    jax.tree.map(lambda leaf: jnp.maximum(leaf, 0), params)
  )
  np.testing.assert_array_equal(flat(found['masks']), flat(params) > 0)


@pytest.mark.parametrize('method', DYNAMIC)
def test_masks_do_not_depend_on_the_mesh(method):
  """They lie as the parameters do, and are the same to the last bit."""
  *_, init, update = parts(method)
  mesh = toy.make_mesh(data=2, fsdp=2, tensor=2)
  place = lambda leaf: NamedSharding(
    mesh,
    {
      (2, 8, 16): P(None, 'fsdp', 'tensor'),
      (2, 2, 4, 8): P(None, 'tensor', None, 'fsdp'),
      (2, 16): P(None, 'tensor'),
    }[leaf.shape],
  )
  put = lambda tree: jax.device_put(tree, jax.tree.map(place, tree))
  params = put(draw(0))
  shapes = jax.eval_shape(init, params)
  where = parameter_groups.like_params(
    mesh, shapes, params, jax.tree.map(place, params)
  )
  state = jax.jit(init, out_shardings=where)(params)
  update = jax.jit(update, out_shardings=where)
  for step in range(NUM_STEPS):
    expected = course(method)[step]
    np.testing.assert_array_equal(kept(state), kept(expected))
    state = update(state, put(draw(step + 100)))
  for mask, param in zip(
    jax.tree.leaves(pruning.of(state)),
    jax.tree.leaves(
      jax.tree.map(
        lambda is_on, leaf: leaf if is_on else None,
        parameter_groups.matching('kernel', state.params),
        state.params,
      )
    ),
    strict=True,
  ):
    assert mask.dtype == bool
    assert mask.sharding == param.sharding == place(param)
  assert update._cache_size() == 1


def test_seeds_make_other_masks_and_steps_grow_others():
  config, *_ = parts('set')
  params = draw(0)
  train = dataclasses.replace(config.train, seed=3)
  other = pruning.Pruning(dataclasses.replace(config, train=train))
  assert (
    flat(jax.jit(other.init)(params)['masks']) != kept(course('set')[0])
  ).any()
  # The control of RigL: what grows has no larger gradient than the rest.
  ratios = {}
  for method in ('set', 'rigl'):
    states, found = course(method), []
    for step in (4, 8):
      grown = kept(states[step]) & ~kept(states[step - 1])
      grads = np.abs(flat(draw(step + 99)))
      found.append(grads[grown].mean() / grads[~kept(states[step])].mean())
    ratios[method] = np.mean(found)
  assert ratios['set'] < 1.5 < 2 < ratios['rigl']
