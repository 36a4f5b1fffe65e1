"""Stages give what layers in a row give.

B rows, T length, D width, L layers.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import toy
from gemini_jax.parallel import pipeline, sharding, stages

ROWS = 8
SHAPES = [(s, r) for s in (2, 4) for r in (1, 2, 3, 4)]


@pytest.mark.parametrize(('num_stages', 'repeats'), SHAPES)
def test_every_stage_fetches_the_layers_that_it_runs(num_stages, repeats):
  """By permutes alone, each of one chunk; the gradient goes back the same."""
  mesh, size = toy.make_mesh(pipeline=num_stages), 2
  num_layers = num_stages * repeats * size
  layers_LD = toy.normal((num_layers, 3))
  scale_LD = toy.normal((num_layers, 3), 1)

  def fetch(layers_LD):
    stage = jax.lax.axis_index('pipeline')
    own_LD, slots = stages.by_repeat(layers_LD, stage, num_stages, repeats)
    own = own_LD.reshape(repeats, size, 3)[slots]
    # Chunk r S + s, which stage s runs in its repeat r, beside its stage.
    return own[:, None]

  def objective(layers_LD):
    chunks = jax.shard_map(
      fetch,
      in_specs=P('pipeline'),
      out_specs=P(None, 'pipeline'),
      check_vma=False,
    )(layers_LD)
    return jnp.sum(chunks.reshape(-1, 3) * scale_LD), chunks

  with jax.set_mesh(mesh):
    placed_LD = jax.device_put(
      layers_LD, NamedSharding(mesh, P('pipeline', None))
    )
    compiled = (
      jax.jit(jax.grad(objective, has_aux=True)).lower(placed_LD).compile()
    )
    grad_LD, chunks = compiled(placed_LD)
  np.testing.assert_array_equal(chunks.reshape(-1, 3), layers_LD)
  np.testing.assert_array_equal(grad_LD, scale_LD)
  program = compiled.as_text()
  assert 'all-gather' not in program and 'all-to-all' not in program
  assert ('collective-permute' in program) == (repeats > 1)


def test_reading_an_element_has_the_gradient_of_indexing():
  tree = {'a': toy.normal((3, 4)), 'b': toy.normal((3,), 1)}
  ids = jnp.arange(3)

  def read(tree, index):
    frozen = jax.lax.stop_gradient(tree)
    part, _ = stages.read((frozen, ids), (tree, ids), index)
    return jnp.sum(part[0]['a'] ** 2 * part[0]['b'] * part[1])

  plain = lambda tree, i: jnp.sum(tree['a'][i] ** 2 * tree['b'][i] * ids[i])
  for index in (1, 2):
    actual, expected = (jax.grad(f)(tree, index) for f in (read, plain))
    assert np.abs(expected['a']).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def toy_layer(params, x_BTD, rows, shared, index, microbatch, kind):
  """Reads all that a layer may read; gives all that a layer may give."""
  del microbatch
  update_BTD = jnp.tanh(jnp.einsum('BTD,DE->BTE', x_BTD, params['kernel']))
  update_BTD += rows['memory'] * shared * (1 + index)
  scalars = {'count': jnp.ones(()), 'size': jnp.mean(x_BTD**2)}
  output = {'update': update_BTD}
  x_BTD = x_BTD + {'plus': 0.5, 'minus': -0.5}[kind] * update_BTD
  return x_BTD, scalars, output


def toy_arguments(num_layers, width=4):
  return (
    {'kernel': toy.normal((num_layers, width, width), 1)},
    toy.normal((ROWS, 3, width), 2),
    {'memory': toy.normal((ROWS, 3, width), 3), 'ids': np.arange(ROWS)},
  )


SHARED = 0.25


def in_a_row(layer, params, x_BTD, rows, kinds):
  total, outputs = {'count': 0, 'size': 0}, []
  for index, kind in enumerate(kinds):
    own = jax.tree.map(lambda leaf, i=index: leaf[i], params)
    x_BTD, scalars, output = layer(own, x_BTD, rows, SHARED, index, 0, kind)
    total = jax.tree.map(jnp.add, total, scalars)
    outputs.append(output)
  outputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
  return x_BTD, total, outputs


def in_stages(layer, params, x_BTD, rows, **options):
  x_BTD, scalars, outputs = stages.run(
    layer, params, x_BTD, rows, jnp.float32(SHARED), **options
  )
  return x_BTD, scalars, jax.tree.map(jax.vmap(stages.join), outputs)


def objective(run, params, x_BTD, memory_BTD, rows):
  x_BTD, scalars, outputs = run(params, x_BTD, rows | {'memory': memory_BTD})
  value = jnp.sum(x_BTD * toy.normal(x_BTD.shape, 5)) + scalars['size']
  value += jnp.sum(outputs['update'] * toy.normal(outputs['update'].shape, 6))
  return value, (x_BTD, scalars, outputs)


def gradient(run, params, x_BTD, rows):
  function = jax.value_and_grad(
    functools.partial(objective, run), argnums=(0, 1, 2), has_aux=True
  )
  return function(params, x_BTD, rows['memory'], rows)


@pytest.mark.parametrize(
  ('sizes', 'microbatches', 'repeats', 'options'),
  [
    ({'pipeline': 2}, None, 1, {}),
    ({'pipeline': 2}, 8, 1, {'remat': jax.checkpoint}),
    ({'pipeline': 2}, 2, 4, {'scan': False}),
    ({'pipeline': 4}, 2, 1, {}),
    ({'pipeline': 4}, 4, 3, {'remat': jax.checkpoint}),
    ({'pipeline': 4}, 8, 2, {'remat': jax.checkpoint, 'scan': False}),
    ({'pipeline': 2, 'data': 4}, None, 2, {}),
  ],
)
def test_stages_are_layers_in_a_row(sizes, microbatches, repeats, options):
  """Values, gradients of all that has one, scalars and other outputs."""
  pattern = ('plus', 'minus')
  # Two periods of the pattern in a chunk, and one where there are many chunks.
  num_layers = sizes['pipeline'] * repeats * (4 if repeats == 1 else 2)
  args = toy_arguments(num_layers)
  kinds = pattern * (num_layers // 2)
  plain = functools.partial(in_a_row, toy_layer, kinds=kinds)
  staged = functools.partial(
    in_stages,
    toy_layer,
    schedule=pipeline.Schedule(microbatches, repeats),
    pattern=pattern,
    **options,
  )
  expected = jax.jit(functools.partial(gradient, plain))(*args)
  mesh = toy.make_mesh(**sizes)
  with sharding.use(mesh):
    actual = jax.jit(functools.partial(gradient, staged))(*args)
  assert actual[0][1][1]['count'] == num_layers
  toy.assert_near(actual, expected)


def test_a_layer_may_run_device_by_device():
  """sharding.per_device inside a stage, with a collective over tensor."""

  def layer(params, x_BTD, rows, shared, index, microbatch, kind):
    def local(x_BTD, kernel_DE, out_ED):
      hidden_BTE = jnp.tanh(jnp.einsum('BTD,DE->BTE', x_BTD, kernel_DE))
      part_BTD = jnp.einsum('BTE,ED->BTD', hidden_BTE, out_ED)
      if kernel_DE.shape[1] < 4:
        part_BTD = jax.lax.psum(part_BTD, 'tensor')
      return part_BTD

    names = ('batch', 'length', None)
    update_BTD = sharding.per_device(
      local, [names, (None, 'mlp'), ('mlp', None)], names
    )(x_BTD, params['kernel'], params['kernel'].T)
    rest_BTD, scalars, output = toy_layer(
      params, x_BTD, rows, shared, index, microbatch, kind
    )
    return rest_BTD + update_BTD, scalars, output

  args = toy_arguments(4)
  plain = functools.partial(in_a_row, layer, kinds=('plus',) * 4)
  staged = functools.partial(
    in_stages,
    layer,
    schedule=pipeline.Schedule(repeats=2),
    pattern=('plus',),
    remat=jax.checkpoint,
  )
  expected = jax.jit(functools.partial(gradient, plain))(*args)
  with sharding.use(toy.make_mesh(pipeline=2, data=2, tensor=2)):
    actual = jax.jit(functools.partial(gradient, staged))(*args)
  toy.assert_near(actual, expected)


def test_bfloat16_goes_through_stages():
  params, x_BTD, rows = jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.bfloat16), toy_arguments(4)
  )

  def layer(*args):
    x_BTD, scalars, output = toy_layer(*args)
    return x_BTD.astype(jnp.bfloat16), scalars, output

  plain = functools.partial(in_a_row, layer, kinds=('plus',) * 4)
  staged = functools.partial(
    in_stages, layer, schedule=pipeline.Schedule(), pattern=('plus',)
  )
  expected = jax.jit(functools.partial(gradient, plain))(params, x_BTD, rows)
  with sharding.use(toy.make_mesh(pipeline=2, data=2)):
    actual = jax.jit(functools.partial(gradient, staged))(params, x_BTD, rows)
  to_float32 = lambda leaf: np.asarray(leaf, np.float32)
  assert actual[0][1][0].dtype == jnp.bfloat16
  toy.assert_near(
    jax.tree.map(to_float32, actual[1]),
    jax.tree.map(to_float32, expected[1]),
    rtol=0.1,
  )


@pytest.mark.parametrize('repeats', [1, 2])
def test_no_iteration_keeps_parameters_or_the_stream(repeats):
  """Under remat the backward pass finds the inputs of layers, no more."""
  num, width = 4, 16
  iterations = repeats * num + 1
  staged = functools.partial(
    in_stages,
    toy_layer,
    schedule=pipeline.Schedule(num, repeats),
    pattern=('plus',),
    remat=jax.checkpoint,
  )
  with sharding.use(toy.make_mesh(pipeline=2)):
    compiled = (
      jax.jit(functools.partial(gradient, staged))
      .lower(*toy_arguments(4, width))
      .compile()
    )
  kept = {
    tuple(map(int, shape.split(',')))
    for shape in re.findall(
      rf'f32\[({iterations},[\d,]+)\]', compiled.as_text()
    )
  }
  inputs = (iterations, 4 // (2 * repeats), ROWS // num, 3, width)
  assert inputs in kept
  # A row of the memory as well, but no kernel, of 16 by 16, and no stream.
  assert all(math.prod(shape) <= math.prod(inputs) for shape in kept), kept
  assert all(shape[-2:] == (3, width) for shape in kept), kept
