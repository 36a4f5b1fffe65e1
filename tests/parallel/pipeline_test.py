"""A model in stages is the model, and a stage holds only its own layers.

B rows, T length, S encoder length, D width, L layers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import contexts, gemini, transformer
from gemini_jax.objectives import losses
from gemini_jax.parallel import pipeline, sharding
from gemini_jax.train import gradient as gradient_lib
from gemini_jax.train import loop
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib

ROWS, LAYERS = 8, 8


MODEL = {'vocab_size': 24, 'num_layers': LAYERS, 'qk_norm': True}
RUNS = {
  'one': ({}, {}),
  'stages_2': ({'pipeline': 2}, {}),
  'stages_4': ({'pipeline': 4, 'microbatches': 8}, {'remat': True}),
  'circular_2': (
    {'pipeline': 2, 'microbatches': 4, 'pipeline_repeats': 2},
    {'remat': True, 'remat_save': ('attended', 'residual')},
  ),
  'circular_4': (
    {'pipeline': 4, 'pipeline_repeats': 2},
    {'remat': True, 'scan_layers': False},
  ),
  'data': ({'pipeline': 2, 'data': 4}, {}),
  'fsdp_tensor': ({'pipeline': 2, 'fsdp': 2, 'tensor': 2}, {'remat': True}),
  'offload': (
    {'pipeline': 2, 'fsdp': 2, 'tensor': 2},
    {'remat': True, 'remat_offload': ('attended', 'residual')},
  ),
}


def configure(name, **model):
  parallel, fields = RUNS[name]
  model = toy.model(**(MODEL | fields | model)).config
  return config_lib.Config(
    model=model,
    data=config_lib.Data(
      batch_size=ROWS,
      sequence_length=toy.T,
      objective='seq2seq' if model.encoder_layers else 'causal',
    ),
    optimizer=config_lib.Optimizer(schedule='constant'),
    parallel=config_lib.Parallel(**({'data': 1} | parallel)),
  )


def parts(config):
  sizes = {axis: getattr(config.parallel, axis) for axis in config_lib.AXES}
  mesh = toy.make_mesh(**sizes)
  pipeline.check(config, mesh)
  model = gemini.Gemini(config.model, pipeline.make_schedule(config.parallel))
  return mesh, model


def batch_of(number):
  """Rows of unequal weight: a mean over microbatches would be another one."""
  batch = toy.batch(rows=ROWS, seed=number, segments=[1] * 7 + [2] * 4 + [0])
  return batch.replace(weights=batch.weights * np.arange(1, ROWS + 1)[:, None])


@functools.cache
def trained(name):
  """Four steps: the compiled step, the last state, the metrics of each."""
  config = configure(name)
  mesh, model = parts(config)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, 100)
  abstract = state_lib.abstract_state(config, model, optimizer, mesh)
  put = lambda batch: jax.device_put(batch, sharding.batch_sharding(mesh))
  with sharding.use(mesh):
    state = state_lib.init_state(config, model, optimizer, abstract)
    update = loop.compile_step(
      config, model, optimizer, abstract, put(batch_of(0))
    )
    records = []
    for number in range(4):
      state, metrics = update(state, put(batch_of(number)), np.int32(number))
      records.append(jax.tree.map(float, metrics))
  return update, state, records


@pytest.mark.parametrize('name', [name for name in RUNS if name != 'one'])
def test_stages_do_not_change_the_run(name):
  plain = trained('one')
  _, state, records = trained(name)
  for ours, expected in zip(records, plain[2], strict=True):
    assert ours['finite']
    for metric in ('loss', 'grad_norm', 'token_accuracy', 'tokens'):
      assert ours[metric] == pytest.approx(expected[metric], rel=1e-5), metric
  assert len({record['loss'] for record in records}) == 4
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
    state.params,
    plain[1].params,
  )


@pytest.mark.parametrize('name', ['stages_4', 'circular_4'])
def test_a_stage_holds_only_its_layers(name):
  """Of parameters and moments; neither is ever gathered."""
  update, state, _ = trained(name)
  layers = state.params['decoder']['layers']
  for leaf in jax.tree.leaves(layers):
    assert leaf.addressable_shards[0].data.shape[0] == LAYERS // 4
    assert len({shard.index[0].start for shard in leaf.addressable_shards}) == 4
  program = update.as_text()
  assert 'collective-permute' in program
  assert 'all-gather' not in program
  # No program of a device has a tensor of all the layers.
  up = layers['feedforward']['up']['kernel'].shape
  assert f'f32[{up[0] // 4},{up[1]},{up[2]}]' in program
  assert f'f32[{up[0]},{up[1]},{up[2]}]' not in program


def test_parts_along_other_axes_stay_parts():
  """Inside the stages too: no device has a whole matrix of a layer stack."""
  update, state, _ = trained('fsdp_tensor')
  up = state.params['decoder']['layers']['feedforward']['up']['kernel']
  assert up.addressable_shards[0].data.shape == (LAYERS // 2, 8, 12)
  program = update.as_text()
  assert f'f32[{LAYERS // 2},8,12]' in program
  assert f'f32[{LAYERS // 2},16,24]' not in program


@functools.cache
def forward(name, **fields):
  """Logits as a function of a batch and of a key for dropout, or None."""
  mesh, model = parts(configure(name, num_layers=4, **fields))
  params = toy.model_params(model)

  def apply(batch, key):
    rngs = {} if key is None else {'dropout': key}
    return model.apply({'params': params}, batch, key is None, rngs=rngs)[0]

  jitted = jax.jit(apply)

  def logits(batch, key=None):
    with sharding.use(mesh):
      return jitted(batch, key)

  return logits


def test_dropout_is_a_function_of_its_key_and_of_the_microbatch():
  mesh, model = parts(configure('stages_2', num_layers=4, dropout=0.3))
  params = toy.model_params(model)
  sequence = toy.sequence(ROWS)
  # All rows are the same; the even ones are the first microbatch.
  x_BTD = jnp.tile(toy.normal((1, toy.T, model.config.width)), (ROWS, 1, 1))

  @jax.jit
  def decoder(x_BTD, key):
    def apply(model):
      context = transformer.Context(
        contexts.views(model.config, sequence, sequence, causal=True),
        sequence.positions,
      )
      deterministic = key is None
      return model.decoder(x_BTD, context, deterministic=deterministic)[0]

    rngs = {} if key is None else {'dropout': key}
    return model.apply({'params': params}, method=apply, rngs=rngs)

  keys = jax.random.split(jax.random.key(0), 2)
  with sharding.use(mesh):
    first, again, other, off = (
      decoder(x_BTD, key) for key in (keys[0], keys[0], keys[1], None)
    )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1
  for row in range(1, ROWS):
    assert np.abs(first[0] - first[row]).max() > 0.1
    np.testing.assert_allclose(off[0], off[row], rtol=1e-5, atol=1e-5)


def test_the_memory_goes_with_its_microbatch():
  """An encoder in stages, and a decoder in stages that attends to it."""
  fields = {
    'architecture': 'encoder_decoder',
    'attention_pattern': ('local', 'global'),
    'num_layers': 4,
  }
  batch = batch_of(0).replace(encoder=toy.sequence(ROWS, toy.S, seed=4))
  results = []
  for name in ('one', 'stages_2'):
    config = configure(name, **fields)
    mesh, model = parts(config)
    params = toy.model_params(model)
    grads = functools.partial(
      gradient_lib.accumulated_gradient,
      config,
      model,
      loss_weights=losses.weights_at(config, 0),
    )
    with sharding.use(mesh):
      results.append(jax.jit(grads)(params, batch, jax.random.key(0)))
  toy.assert_near(results[1], results[0], rtol=1e-4)


def test_what_makes_no_microbatches_runs_layer_by_layer():
  """Three rows, or rows that are decoded with a cache."""
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  three = toy.batch(rows=3, seed=1)
  near(forward('stages_2')(three), forward('one')(three))
  mesh, model = parts(configure('stages_2', num_layers=4))
  params = toy.model_params(model)
  cache = gemini.init_cache(model.config, ROWS, toy.T)
  decode = jax.jit(functools.partial(model.apply, method='decode'))
  batch = toy.batch(ROWS, seed=2)
  with sharding.use(mesh):
    logits_BTV, cache, _ = decode(
      {'params': params}, batch.decoder, cache=cache
    )
  assert cache is not None
  near(logits_BTV, forward('one')(batch))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'parallel': {'pipeline_repeats': 2, 'microbatches': 1}},
      'parallel.microbatches=1 must be at least parallel.pipeline=2 when '
      'parallel.pipeline_repeats=2 is above 1',
    ),
    (
      {'parallel': {'pipeline_repeats': 2}, 'model': {'remat': False}},
      'parallel.pipeline_repeats=2 needs model.remat=True: without it each '
      'iteration would keep the parameters that it used',
    ),
    (
      {'model': {'num_layers': 6}, 'parallel': {'pipeline_repeats': 2}},
      'model.num_layers=6 must be a multiple of parallel.pipeline (2) * '
      'parallel.pipeline_repeats (2) = 4',
    ),
    (
      {'model': {'num_layers': 6, 'attention_pattern': ('local', 'global')}},
      'model.attention_pattern has 2 layers, which must divide the 3 '
      'consecutive layers of a stage (model.num_layers=6, parallel.pipeline=2, '
      'parallel.pipeline_repeats=1)',
    ),
    (
      {'data': {'batch_size': 12}, 'parallel': {'data': 4}},
      'data.batch_size=12 must be a multiple of parallel.microbatches (2) * '
      'parallel.data (4) = 8',
    ),
    (
      {'optimizer': {'accumulation_steps': 4}, 'parallel': {'data': 2}},
      'data.batch_size=8 must be a multiple of optimizer.accumulation_steps '
      '(4) * parallel.microbatches (2) * parallel.data (2) = 16',
    ),
    (
      {'evaluate': {'batch_size': 6}, 'parallel': {'data': 2}},
      'evaluate.batch_size=6 must be a multiple of parallel.microbatches (2) * '
      'parallel.data (2) = 4',
    ),
  ],
)
def test_what_does_not_split(changes, message):
  config = configure('stages_2', remat=True)
  sections = {
    name: dataclasses.replace(getattr(config, name), **fields)
    for name, fields in changes.items()
  }
  config = dataclasses.replace(config, **sections)
  mesh = toy.make_mesh(data=config.parallel.data, pipeline=2)
  with pytest.raises(config_lib.ConfigError) as error:
    pipeline.check(config, mesh)
  assert str(error.value) == message
  # Without stages nothing has to split.
  pipeline.check(config, toy.make_mesh())


@pytest.mark.parametrize('kind', ['image', 'audio'])
def test_layers_that_read_media_split_as_well(kind):
  section = {'image': config_lib.Image, 'audio': config_lib.Audio}[kind]
  config = configure('stages_2', **{kind: section(num_layers=3)})
  with pytest.raises(
    config_lib.ConfigError, match=rf'model.{kind}.num_layers=3 must be'
  ):
    pipeline.check(config, toy.make_mesh(pipeline=2))


def test_layers_of_an_encoder_split_as_well():
  config = configure(
    'stages_2',
    architecture='encoder_decoder',
    num_encoder_layers=6,
    attention_pattern=('global',) * 4,
  )
  with pytest.raises(
    config_lib.ConfigError, match=r'\(model.num_encoder_layers=6'
  ):
    pipeline.check(config, toy.make_mesh(pipeline=2))
