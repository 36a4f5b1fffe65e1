"""Plans against what really happens on eight devices, and their refusals."""

import dataclasses
import importlib.util
import json
import shlex
import types

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax.parallel import sharding
from gemini_jax.plan import abstract as abstract_lib
from gemini_jax.plan import compile as compile_lib
from gemini_jax.plan import page, plan, report, suggestions, topology
from gemini_jax.train import flops
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib

CONFIG = tiny.config(
  model={
    'vocab_size': 64,
    'max_length': 32,
    'width': 64,
    'mlp_dim': 128,
    'num_layers': 4,
    'scan_layers': True,
  },
  data={'batch_size': 16, 'sequence_length': 32},
  parallel={'data': 2, 'fsdp': 4},
  plan={'decode_batch_size': 0},
)


@pytest.fixture(scope='module')
def measured():
  return compile_lib.measure(CONFIG, jax.devices())


def on_first_device(tree):
  """Bytes that the arrays of a tree have on the first device."""
  first = jax.devices()[0]
  return sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
    if shard.device == first
  )


def test_bytes_of_the_state_and_the_batch_are_those_of_arrays(measured):
  model, optimizer, abstract = abstract_lib.layout(CONFIG, jax.devices())[1]
  with sharding.use(measured.mesh):
    state = state_lib.init_state(CONFIG, model, optimizer, abstract)
    batch = jax.tree.map(
      lambda leaf: jax.device_put(
        np.zeros(leaf.shape, leaf.dtype), leaf.sharding
      ),
      abstract_lib.batch(CONFIG, measured.mesh),
    )
  outputs = measured.train.arguments
  assert outputs['parameters'] == on_first_device(state.params)
  assert outputs['optimizer'] == on_first_device(state.opt_state)
  assert outputs['batch'] == on_first_device(batch)
  # Far less than all of it: the plan knows that it is split.
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert outputs['parameters'] < whole / 3


def test_the_peak_is_what_the_compiled_step_needs(measured):
  model, optimizer, abstract = abstract_lib.layout(CONFIG, jax.devices())[1]
  with sharding.use(measured.mesh):
    batch = abstract_lib.batch(CONFIG, measured.mesh)
    step = step_lib.jitted(CONFIG, model, optimizer, abstract)
    memory = step.lower(abstract, batch, np.int32(0)).compile()
  analysis = memory.memory_analysis()
  needed = (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )
  assert measured.train.peak == pytest.approx(needed, rel=0.1)
  assert measured.train.temporaries > 0


def test_the_products_are_those_of_the_closed_form(measured):
  """Causal pairs once, where attention in blocks computes a few more."""
  executed = measured.train.flops * 8
  assert executed == pytest.approx(flops.step_flops(CONFIG), rel=0.1)


def test_remat_computes_more_and_loops_count_in_full(measured):
  config = tiny.replace(CONFIG, 'model.remat', True)
  again = compile_lib.measure(config, jax.devices())
  ratio = again.train.flops / measured.train.flops
  assert 1.2 < ratio < 4 / 3


def test_collectives_are_named_by_their_axes(measured):
  found = {(c.kind, c.axes) for c in measured.train.collectives}
  assert ('all-gather', ('fsdp',)) in found
  kinds = {kind for kind, axes in found if axes == ('data',)}
  assert kinds & {'all-reduce', 'reduce-scatter'}
  result = report.build(measured, [])
  assert result['step_seconds_bound'] is None
  assert 'not in the table of chips' in result['assumptions'][-1]


def test_the_decode_step_is_planned():
  config = tiny.replace(CONFIG, 'plan.decode_batch_size', 8)
  decode = compile_lib.measure(config, jax.devices()).decode
  assert decode is not None and decode.peak is not None
  model = config.model
  cache = 2 * model.num_layers * 8 * 32 * model.kv_heads * model.head_width * 4
  assert decode.arguments['cache'] == cache / 8
  assert decode.peak > sum(decode.arguments.values())


EXPERIMENT = (
  'model.vocab_size = 64',
  'model.num_layers = 6',
  'data.sequence_length = 24',
  'plan.decode_batch_size = 0',
)


def read(folder):
  return json.loads((folder / 'plan.json').read_text())


def test_a_plan_is_written_without_data_or_tokenizer(tmp_path, capsys):
  file = tiny.experiment(tmp_path, "data.train = ('text:/nowhere',)")
  assert tiny.run(file, tmp_path / 'run', mode='plan') == 0
  result = read(tmp_path / 'run')
  assert result['fits']
  assert result['num_devices'] == 8
  # 259 bytes and special ids, in rows of 64.
  assert 'no tokenizer is trained; 320 rows' in result['assumptions'][0]
  assert result['mfu_bound'] is None
  assert result['decode']['bytes_per_device'] > 0
  assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == [
    'plan.json'
  ]
  shown = capsys.readouterr().out
  assert all(line in shown for line in result['assumptions'])


def test_what_does_not_fit_is_refused_with_changes_that_fit(tmp_path, capsys):
  file = tiny.experiment(tmp_path, *EXPERIMENT)
  assert tiny.run(file, tmp_path / 'a', mode='plan') == 0
  limit = int(read(tmp_path / 'a')['bytes_per_device'] * 0.8)
  capsys.readouterr()
  too_small = f'plan.device_memory_bytes={limit}'
  assert tiny.run(file, tmp_path / 'b', too_small, mode='plan') == 1
  result = read(tmp_path / 'b')
  assert not result['fits']
  shown = capsys.readouterr().out
  assert 'DOES NOT FIT' in shown
  flags = result['suggestions'][0]['flags']
  assert flags in shown
  # Typed as it was suggested, it fits.
  changes = [flag.removeprefix('--config.') for flag in shlex.split(flags)]
  assert tiny.run(file, tmp_path / 'c', too_small, *changes, mode='plan') == 0
  assert (
    read(tmp_path / 'c')['bytes_per_device']
    == result['suggestions'][0]['bytes_per_device']
  )


def test_suggestions_keep_the_batch_and_the_mesh_whole():
  mesh = {'data': 4, 'fsdp': 2, 'tensor': 1, 'expert': 1}
  for changes in suggestions.candidates(CONFIG, mesh):
    config = suggestions.apply(CONFIG, changes)
    assert config != CONFIG
    assert suggestions.flags(changes).startswith('--config.')
  assert len(list(suggestions.candidates(CONFIG, mesh))) >= 5


def test_what_remat_keeps_may_go_to_the_host_of_a_tpu():
  mesh = {'data': 4, 'fsdp': 2, 'tensor': 1, 'expert': 1}
  config = tiny.replace(CONFIG, 'model.remat', True)
  config = tiny.replace(config, 'model.remat_save', ('attended', 'residual'))
  config = tiny.replace(config, 'model.remat_offload', ('query',))
  changes = next(suggestions.candidates(config, mesh, offloads=True))
  model = suggestions.apply(config, changes).model
  assert model.remat_save == ()
  assert sorted(model.remat_offload) == ['attended', 'query', 'residual']
  assert all(
    'model.remat_offload' not in changes
    for changes in suggestions.candidates(config, mesh)
  )


def test_what_cannot_be_enough_is_not_compiled(measured):
  state = {'parameters': 10, 'optimizer': 20}
  train = compile_lib.Compiled(0.0, 1000, state)
  spread = {'parallel.data': 1, 'parallel.fsdp': 8}
  steps = measured.config.optimizer.accumulation_steps
  halves = {'optimizer.accumulation_steps': 2 * steps}
  for limit, changes, expected in (
    (940, spread, False),
    (939, spread, True),
    (515, halves, False),
    (514, halves, True),
    (1, {'model.remat': True}, False),
    (1, spread | {'model.remat': True}, False),
  ):
    config = tiny.replace(CONFIG, 'plan.device_memory_bytes', limit)
    large = dataclasses.replace(measured, config=config, train=train)
    assert suggestions.is_not_enough(changes, large) == expected
    # Where nothing is known, nothing is left out.
    unknown = dataclasses.replace(train, peak=None)
    large = dataclasses.replace(large, train=unknown)
    assert not suggestions.is_not_enough(changes, large)


def test_suggestions_can_be_typed(tmp_path):
  """Through a shell, tuples too."""
  file = tiny.experiment(tmp_path, 'model.remat = True')
  changes = {
    'model.remat_save': (),
    'model.remat_offload': ('attended', 'residual'),
    'optimizer.accumulation_steps': 2,
    'plan.topology': 'v5e:2x4',
  }
  typed = shlex.split(suggestions.flags(changes))
  config = command.parse(['main', f'--config={file}', *typed], {}).config
  assert suggestions.apply(config, changes) == config


def test_a_mistake_costs_exit_code_2(tmp_path, capsys):
  file = tiny.experiment(tmp_path, *EXPERIMENT)
  for override, message in {
    'plan.topology=v5p:3x3x3': 'plan.topology=v5p:3x3x3 is not a slice',
    'plan.topology=h100:2x16': 'plan.topology=h100:2x16 must be hosts x GPUs',
    'plan.decode_batch_size=3': 'plan.decode_batch_size=3 must be a multiple',
    'data.batch_size=12': 'data.batch_size=12 must be a multiple',
  }.items():
    assert tiny.run(file, tmp_path / 'run', override, mode='plan') == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_larger_topologies_have_more_devices():
  for name, expected in {
    'h100:1x4': ['h100:1x8', 'h100:2x8'],
    'h100:3x4': ['h100:2x8', 'h100:3x8'],
    'v5e:4x8': ['v5e:8x8', 'v5e:8x16'],
  }.items():
    config = tiny.replace(CONFIG, 'plan.topology', name)
    found = [changes['plan.topology'] for changes in suggestions.larger(config)]
    assert found == expected


def test_without_cudnn_it_says_what_to_install(measured, monkeypatch):
  def lower(*args):
    raise RuntimeError('cuDNN not found.')

  step = types.SimpleNamespace(lower=lower)
  monkeypatch.setattr(step_lib, 'jitted', lambda *args: step)
  with pytest.raises(config_lib.ConfigError, match='nvidia-cudnn-cu12'):
    compile_lib.measure(CONFIG, measured.devices)


def test_the_vocabulary_comes_from_the_config_first(tmp_path):
  assumed = []
  assert plan.with_vocab(CONFIG, tmp_path, assumed) == CONFIG
  assert not assumed
  config = tiny.replace(CONFIG, 'model.vocab_size', None)
  config = tiny.replace(config, 'tokenizer.kind', 'sentencepiece')
  config = tiny.replace(config, 'tokenizer.vocab_size', 100)
  assert plan.with_vocab(config, tmp_path, assumed).model.vocab_size == 128
  assert 'sentencepiece' in assumed[0]


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs libtpu: gemini_jax[tpu]',
)
def test_a_tpu_slice_has_times_and_an_end():
  config = tiny.replace(CONFIG, 'plan.topology', 'v5p:2x2x2')
  config = tiny.replace(config, 'model.dtype', 'bfloat16')
  before = compile_lib.measure(config, plan.find_devices(config))
  result = report.build(before, [])
  assert result['num_devices'] == 8
  assert result['device_memory_bytes'] > 90 * 2**30
  assert result['step_seconds_bound'] == max(result['step_seconds'].values())
  assert 0 < result['mfu_bound'] < 1
  assert not topology.is_here(before.devices)


@pytest.mark.skipif(
  not any(
    importlib.util.find_spec(f'jax_cuda{version}_plugin')
    for version in (12, 13)
  ),
  reason="needs JAX's CUDA plug-in: jax-cuda12-plugin, jax-cuda12-pjrt",
)
def test_hosts_of_gpus_have_times_and_an_end():
  """Gradients over both hosts take the slower network, parameters do not."""
  seconds = []
  for name, parallel in {
    'h100:1x8': {'data': 1, 'fsdp': 8},
    'h100:2x8': {'data': 2, 'fsdp': 8},
  }.items():
    config = dataclasses.replace(
      tiny.replace(CONFIG, 'plan.topology', name),
      parallel=dataclasses.replace(CONFIG.parallel, **parallel),
    )
    config = tiny.replace(config, 'model.dtype', 'bfloat16')
    found = compile_lib.measure(config, plan.find_devices(config))
    result = report.build(found, [])
    assert result['num_devices'] == len(found.devices)
    assert result['device_memory_bytes'] == int(0.75 * 84_942_979_072)
    assert 0 < result['bytes_per_device'] < 2**30
    assert 0 < result['mfu_bound'] < 1
    # One step of the model, however it is split.
    executed = found.train.flops * len(found.devices)
    assert executed == pytest.approx(flops.step_flops(config), rel=0.1)
    assert not topology.is_here(found.devices)
    seconds.append({c.axes: c.seconds for c in found.train.collectives})
    shown = page.spell(result)
    assert '75% of the 79.1 GiB of a GPU' in shown
  assert ('data',) not in seconds[0]
  assert seconds[1]['data',] > 0
