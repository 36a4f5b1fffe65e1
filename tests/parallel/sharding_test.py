"""Shardings that are real, and runs that do not notice them.

Eight CPU devices stand for eight chips (see conftest.py).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fake_devices
import toy
from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.models import gemini
from gemini_jax.objectives import losses as losses_lib
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import placement, sharding
from gemini_jax.plan import collectives, execution, hlo, network
from gemini_jax.train import gradient as gradient_lib
from gemini_jax.train import loop
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib

NUM_DEVICES = 8


def make_mesh(**sizes):
  sizes = {'data': 1} | sizes
  num = math.prod(sizes.values())
  return mesh_lib.make_mesh(
    config_lib.Parallel(**sizes), jax.devices()[:num] if num > 0 else None
  )


@pytest.mark.parametrize('num_processes', [1, 2, 4])
@pytest.mark.parametrize(
  ('sizes', 'shares'),
  [
    ({}, True),
    ({'data': 4, 'tensor': 2}, True),
    ({'data': 2, 'fsdp': 2, 'expert': 2}, True),
    ({'data': 1, 'tensor': 8}, False),
    ({'data': 2, 'pipeline': 4}, False),
    ({'data': 2, 'fsdp': 2, 'pipeline': 2}, False),
    ({'fsdp': 2, 'sequence': 4, 'data': 1}, False),
    ({'data': 4, 'fsdp': 2, 'slices': 2, 'slice_axis': 'fsdp'}, True),
  ],
)
def test_a_process_loads_the_rows_that_its_devices_hold(
  sizes, shares, num_processes
):
  parallel = config_lib.Parallel(**sizes)
  real = mesh_lib.make_mesh(parallel)
  fake = mesh_lib.make_mesh(parallel, fake_devices.cpus(num_processes))
  spans = sharding.batch_sharding(real).devices_indices_map((16, 8))
  held = [set() for _ in range(num_processes)]
  for device, other in zip(real.devices.flat, fake.devices.flat, strict=True):
    assert device.id == other.id
    held[other.process_index].update(range(16)[spans[device][0]])
  for process in range(num_processes):
    rows = sharding.local_rows(fake, 16, process)
    assert rows.tolist() == sorted(held[process])
    if shares:
      assert len(rows) == 16 // num_processes


@pytest.mark.parametrize(
  'sizes', [{}, {'data': 2, 'sequence': 4}, {'data': 1, 'tensor': 8}]
)
def test_a_batch_on_the_devices_is_the_batch(sizes):
  mesh, batch = make_mesh(**sizes), toy.batch(rows=16)
  if not sizes:
    mesh = mesh_lib.make_mesh(config_lib.Parallel())
  placed = sharding.put_batch(mesh, batch, sharding.local_rows(mesh, 16), 16)
  for leaf, expected in zip(
    jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True
  ):
    assert leaf.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize(
  ('sizes', 'names', 'expected'),
  [
    ({'fsdp': 2}, ('embed', 'heads', None), P('fsdp', None, None)),
    ({'fsdp': 2, 'tensor': 2}, ('embed', 'heads', None), P('fsdp', 'tensor')),
    ({'fsdp': 2, 'tensor': 2}, ('mlp', 'embed'), P('tensor', 'fsdp')),
    ({'data': 2, 'fsdp': 2}, ('batch', 'length'), P(('data', 'fsdp'), None)),
    ({'data': 2}, ('batch', 'length'), P('data', None)),
    ({'pipeline': 2}, ('layers', 'embed'), P('pipeline', None)),
    ({'tensor': 8}, ('embed', None), P()),
  ],
)
def test_names_become_axes_by_the_rules(sizes, names, expected):
  mesh, shape = make_mesh(**sizes), (16,) * len(names)
  actual = sharding.spec(mesh, names, shape, 'x')
  assert NamedSharding(mesh, actual).is_equivalent_to(
    NamedSharding(mesh, expected), len(shape)
  )


def test_one_axis_cannot_split_two_dims():
  with pytest.raises(config_lib.ConfigError) as error:
    sharding.spec(
      make_mesh(tensor=2), ('heads', 'mlp'), (4, 4), 'decoder/x/kernel'
    )
  assert str(error.value) == (
    "parallel.tensor=2 would split both 'heads' and 'mlp' of decoder/x/kernel"
  )
  # An axis of size 1 splits nothing.
  sharding.spec(make_mesh(fsdp=2), ('heads', 'mlp'), (4, 4), 'x')


@pytest.mark.parametrize(
  ('sizes', 'name', 'size', 'message'),
  [
    (
      {'tensor': 4},
      'kv_heads',
      2,
      'parallel.tensor=4 does not divide kv_heads=2 (key/kernel); use 1, 2',
    ),
    (
      {'data': 2, 'fsdp': 4},
      'batch',
      12,
      'parallel.data * parallel.fsdp=8 does not divide batch=12 (key/kernel); '
      'use 1, 2, 3, 4, 6',
    ),
  ],
)
def test_a_dim_that_an_axis_does_not_divide(sizes, name, size, message):
  with pytest.raises(config_lib.ConfigError) as error:
    sharding.spec(make_mesh(**sizes), (name,), (size,), 'key/kernel')
  assert str(error.value) == message


def test_a_batch_that_the_devices_do_not_divide():
  mesh = make_mesh(data=2, fsdp=4)
  sharding.check_batch(mesh, 16, 'data.batch_size')
  with pytest.raises(config_lib.ConfigError) as error:
    sharding.check_batch(mesh, 12, 'data.batch_size')
  assert str(error.value) == (
    'data.batch_size=12 must be a multiple of parallel.data * parallel.fsdp = 8'
  )


ROWS = 8
FIELDS = {'vocab_size': 24, 'qk_norm': True, 'norm': 'pre_post'}
# What differs from the plain model, by kind.
KINDS = {
  'plain': {},
  'experts': {'num_experts': 8, 'expert_dim': 6, 'shared_expert_dim': 4},
  'latent': {'latent': config_lib.Latent(dim=4, memory=2)},
}


def configure(fields=FIELDS, **optimizer):
  return config_lib.Config(
    model=toy.model(**fields).config,
    data=config_lib.Data(batch_size=ROWS, sequence_length=toy.T, pack=False),
    optimizer=config_lib.Optimizer(**({'schedule': 'constant'} | optimizer)),
  )


def abstract_state(mesh, config):
  model = gemini.Gemini(config.model)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, 100)
  return (
    model,
    optimizer,
    state_lib.abstract_state(config, model, optimizer, mesh),
  )


@pytest.mark.parametrize(
  ('optimizer', 'mirrors'),
  [
    ({'name': 'adamw'}, 2),
    ({'name': 'adafactor'}, 1),
    ({'name': 'schedule_free'}, 2),
    ({'name': 'momo_adam'}, 2),
    # With the parameters at first, or a sum of gradients, or both.
    ({'name': 'dog'}, 1),
    ({'name': 'dadapt_adamw'}, 3),
    ({'name': 'prodigy'}, 4),
    # One moment of a matrix, Adam's two of the rest.
    ({'name': 'muon'}, None),
    ({'name': 'adamw', 'frozen': 'head'}, 2),
  ],
  ids=lambda value: str(value),
)
def test_what_mirrors_parameters_lies_like_them(optimizer, mirrors):
  _, _, state = abstract_state(
    make_mesh(fsdp=4, tensor=2), configure(**optimizer)
  )
  moments = jax.tree_util.tree_leaves_with_path(state.opt_state)
  split = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    suffix = jax.tree_util.keystr(path)
    same = [
      other
      for where, other in moments
      if jax.tree_util.keystr(where).endswith(suffix)
      and other.shape == leaf.shape
    ]
    assert len(same) in ((1, 2) if mirrors is None else (mirrors,)), suffix
    for other in same:
      assert other.sharding == leaf.sharding, suffix
    split += not leaf.sharding.is_fully_replicated
  assert split >= 8


def test_an_average_lies_like_its_parameters():
  _, _, state = abstract_state(make_mesh(fsdp=8), configure(ema_decay=0.9))
  jax.tree.map(
    lambda a, b: (a.sharding == b.sharding) or pytest.fail(f'{a} {b}'),
    state.extra['ema'],
    state.params,
  )


MESHES = {
  'one': {},
  'data': {'data': 8},
  'fsdp': {'fsdp': 8},
  'data_fsdp': {'data': 2, 'fsdp': 4},
  'tensor': {'tensor': 2},
  'sequence': {'sequence': 4},
  'ring': {'sequence': 4},
  'data_fsdp_tensor': {'data': 2, 'fsdp': 2, 'tensor': 2},
  'fsdp_sequence': {'fsdp': 2, 'sequence': 4},
  'fsdp_tensor_sequence': {'fsdp': 2, 'tensor': 2, 'sequence': 2},
  'pipeline_fsdp': {'pipeline': 2, 'fsdp': 4},
}


def batch_of(number):
  """Rows of unequal weight: a mean over parts would be another one."""
  batch = toy.batch(rows=ROWS, seed=number)
  return batch.replace(weights=batch.weights * np.arange(1, ROWS + 1)[:, None])


EXPERT_MESHES = {
  'data_expert': {'data': 2, 'expert': 4},
  'fsdp_expert_tensor': {'fsdp': 2, 'expert': 2, 'tensor': 2},
}


@functools.cache
def compiled(name, accumulation_steps=1, kind='plain'):
  """(makes the first state, the state's places, one update by its number)."""
  fields = FIELDS | KINDS[kind]
  if name == 'ring':
    fields = fields | {'context_parallel': 'ring'}
  config = configure(fields, accumulation_steps=accumulation_steps)
  mesh = make_mesh(**(MESHES | EXPERT_MESHES)[name])
  model, optimizer, abstract = abstract_state(mesh, config)
  put = lambda batch: jax.device_put(batch, sharding.batch_sharding(mesh))
  init = functools.partial(
    state_lib.init_state, config, model, optimizer, abstract
  )
  with sharding.use(mesh):
    compiled_step = loop.compile_step(
      config, model, optimizer, abstract, put(batch_of(0))
    )

  def update(state, number):
    batch = put(batch_of(number))
    state, metrics = compiled_step(state, batch, np.int32(number))
    return state, batch, jax.tree.map(float, metrics)

  return init, abstract, update


@functools.cache
def trained(name, accumulation_steps=1, kind='plain'):
  """Five steps: (first state, last state, batch, metrics of each step)."""
  init, abstract, update = compiled(name, accumulation_steps, kind)
  state, records, batch = init(), [], None
  # A copy: the step takes its argument's memory.
  initial = jax.tree.map(np.array, state.params)
  for number in range(5):
    state, batch, record = update(state, number)
    records.append(record)
  return initial, abstract, state, batch, records


def same_numbers(a, b):
  """Adam divides what is small by what is small, so not quite the same."""
  np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


METRICS = 'loss', 'grad_norm', 'token_accuracy', 'tokens'


def assert_same_run(name, kind='plain', metrics=METRICS, rel=1e-5):
  """That of one device, its state in the places that were meant for it."""
  initial, abstract, state, _, records = trained(name, kind=kind)
  plain = trained('one', kind=kind)
  jax.tree.map(np.testing.assert_array_equal, initial, plain[0])
  for ours, one in zip(records, plain[-1], strict=True):
    assert ours['finite'] and one['finite']
    for metric in metrics:
      assert ours[metric] == pytest.approx(one[metric], rel=rel), metric
  assert len({record[metrics[0]] for record in records}) == 5
  jax.tree.map(
    lambda leaf, expected: (
      leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
      or pytest.fail(f'{leaf.sharding} is not {expected.sharding}')
    ),
    state,
    abstract,
  )
  assert int(state.step) == 5
  jax.tree.map(same_numbers, state.params, plain[2].params)


@pytest.mark.parametrize('name', [name for name in MESHES if name != 'one'])
def test_a_mesh_does_not_change_the_run(name):
  batch = trained(name)[3]
  # It is another run than the one on a single device.
  assert len(batch.targets.sharding.device_set) == math.prod(
    MESHES[name].values()
  )
  count = math.prod(
    MESHES[name].get(axis, 1) for axis in ('data', 'fsdp', 'sequence')
  )
  assert batch.targets.addressable_shards[0].data.size * count == (
    batch.targets.size
  )
  assert_same_run(name)


@pytest.mark.parametrize('source', MESHES)
def test_a_checkpoint_goes_on_on_every_mesh(source, tmp_path):
  """The sixth step is the same one, wherever the first five were made.

  Each mesh hands on to the next one and to a single device.
  """
  checkpoints = checkpointer.Checkpointer(tmp_path)
  checkpoints.save(5, trained(source)[2], {})
  checkpoints.wait()
  losses = {}
  names = list(MESHES)
  targets = {'one', names[(names.index(source) + 1) % len(names)]}
  for target in targets:
    _, abstract, update = compiled(target)
    restored = checkpoints.restore(abstract)
    kernel = restored.state.params['decoder']['layers']['attention']['query']
    wanted = abstract.params['decoder']['layers']['attention']['query']
    assert kernel['kernel'].sharding == wanted['kernel'].sharding
    losses[target] = update(restored.state, 5)[2]['loss']
  expected = plain_sixth_loss()
  assert losses == pytest.approx(dict.fromkeys(targets, expected), rel=1e-4)


@functools.cache
def plain_sixth_loss():
  copy = jax.tree.map(jnp.copy, trained('one')[2])
  return compiled('one')[2](copy, 5)[2]['loss']


@pytest.mark.parametrize('name', EXPERT_MESHES)
def test_a_mesh_does_not_change_a_run_with_experts(name):
  _, _, state, batch, _ = trained(name, kind='experts')
  assert len(batch.targets.sharding.device_set) == NUM_DEVICES
  assert batch.targets.addressable_shards[0].data.shape[0] == (
    ROWS * EXPERT_MESHES[name].get('tensor', 1) // NUM_DEVICES
  )
  sizes = EXPERT_MESHES[name]
  kernel = state.params['decoder']['layers']['feedforward']['expert_up'][
    'kernel'
  ]
  assert kernel.addressable_shards[0].data.shape == (
    2,
    8 // sizes['expert'],
    16 // sizes.get('fsdp', 1),
    6 // sizes.get('tensor', 1),
  )
  assert_same_run(name, 'experts')


@pytest.mark.parametrize(
  'name', ['data_fsdp_tensor', 'sequence', 'pipeline_fsdp']
)
def test_a_mesh_does_not_change_a_run_with_a_latent(name):
  """The noise of z, too, is that of one device."""
  batch = trained(name, kind='latent')[3]
  assert not batch.targets.sharding.is_fully_replicated
  assert_same_run(name, 'latent', ('kl', 'loss', 'grad_norm'), rel=1e-4)


def test_a_split_length_is_not_gathered():
  """Each device computes its part of every row's positions, and no other.

  Only attention reads other devices' positions: keys, values and their masks.
  """

  def compile_for(name):
    # Unrolled: XLA counts the body of a loop once.
    config = configure(FIELDS | {'num_layers': 1, 'scan_layers': False})
    mesh = make_mesh(**MESHES[name])
    model, optimizer, abstract = abstract_state(mesh, config)
    batch = jax.device_put(batch_of(0), sharding.batch_sharding(mesh))
    with sharding.use(mesh):
      program = loop.compile_step(config, model, optimizer, abstract, batch)
    return program, network.Network(mesh, None)

  program, links = compile_for('sequence')
  gathered = []
  for operation, _, _ in execution.walk(hlo.parse(program.as_text())):
    kind = operation.opcode.removesuffix('-start')
    if kind not in hlo.COLLECTIVES:
      continue
    devices = collectives.groups(operation.attributes, 4)
    if 'sequence' not in links.axes(devices):
      continue
    if 'attention.attend' in operation.source:
      if kind == 'all-gather':
        gathered += [shape.kind for shape in operation.shapes]
      continue
    assert kind == 'all-reduce', operation.source
    for shape in operation.shapes:
      assert shape.dims[:2] != (ROWS, toy.T), operation.source
  # Keys and values, once: the gradient of a gather is a sum.
  assert gathered.count('f32') == 2
  one, _ = compile_for('one')
  flops = [p.cost_analysis()['flops'] for p in (program, one)]
  assert 0.2 < flops[0] / flops[1] < 0.3


@pytest.mark.parametrize(
  ('name', 'count'), [('fsdp', 8), ('data_fsdp', 4), ('data', 1)]
)
def test_parameters_are_really_distributed(name, count):
  state = trained(name)[2]
  kernel = state.params['decoder']['layers']['feedforward']['up']['kernel']
  shape = kernel.addressable_shards[0].data.shape
  assert shape == (2, 16 // count, 24)
  total = local = 0
  for leaf in jax.tree.leaves((state.params, state.opt_state)):
    total += leaf.nbytes
    local += leaf.addressable_shards[0].data.nbytes
  # All but the norms.
  assert local <= 1.3 * total / count
  table = placement.describe((state.params, state.opt_state))
  assert f'{local / 2**20:,.1f} MiB on each device' in table
  rows = [line.split() for line in table.splitlines()[1:]]
  # Of the parameters and of the moments, what is split and what is not.
  num = len(jax.tree.leaves((state.params, state.opt_state)))
  assert sum(int(row[row.index('tensors') - 1]) for row in rows) == num
  assert ('fsdp' in table) == ('fsdp' in name)
  if 'fsdp' in name:
    split = next(row for row in rows if row[:2] == ['0', 'fsdp'])
    whole, part = (float(split[split.index(unit) - 1]) for unit in ('MiB', 'a'))
    assert part <= whole / count + 0.1


@pytest.mark.parametrize('accumulation_steps', [2, 4])
def test_accumulation_does_not_change_the_run(accumulation_steps):
  parts = trained('one', accumulation_steps)
  for ours, plain in zip(parts[-1], trained('one')[-1], strict=True):
    assert ours == pytest.approx(plain, rel=1e-5)
  jax.tree.map(same_numbers, parts[2].params, trained('one')[2].params)


def test_accumulation_reads_one_part_at_a_time():
  """The product with the table is of a part's rows, in a scan."""
  shapes = []
  for accumulation_steps in (1, 4):
    config = configure(accumulation_steps=accumulation_steps)
    model = toy.model(**FIELDS)
    grads = functools.partial(
      gradient_lib.accumulated_gradient,
      config,
      model,
      loss_weights=losses_lib.weights_at(config, 0),
    )
    program = jax.make_jaxpr(grads)(
      toy.model_params(model), batch_of(0), jax.random.key(0)
    )
    shapes.append(f'f32[{ROWS},{toy.T},24]' in str(program))
  assert shapes == [True, False]


def test_names_are_unboxed_before_training():
  state = trained('one')[2]
  leaves = jax.tree.leaves(
    state, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
  )
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
