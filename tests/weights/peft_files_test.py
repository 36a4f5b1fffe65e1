"""Folders of PEFT mean what PEFT makes of them, and come back as they were."""

import functools
import json

import jax
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.weights import (
  families,
  importing,
  peft_files,
  published,
  safetensors_files,
  tuning,
)

LLAMA = {
  'model_type': 'llama',
  'vocab_size': 32,
  'hidden_size': 12,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 6,
  'max_position_embeddings': 16,
}


@functools.cache
def parts():
  """(model, base parameters, where they are in the published model)."""
  model = families.to_model(LLAMA, 'float32')
  base = toy.model_params(gemini.Gemini(model))
  entries = published.export_entries(LLAMA, model, base, 'huggingface')
  return model, base, entries


def tuned(method='lora', **fields):
  """(config, parameters with random updates)."""
  model, base, _ = parts()
  config = config_lib.Config(
    model=model,
    data=config_lib.Data(sequence_length=16),
    tune=config_lib.Tune(method=method, rank=2, **fields),
    train=config_lib.Train(init_from='/runs/base'),
  )
  params = tuning.wrapped(config.tune, base)
  own = parameter_groups.own(config.tune, params)
  drawn = toy.random_tree(jax.eval_shape(lambda: own), 5)
  return config, parameter_groups.merged(drawn, params)


def exported(params):
  """Tensors of the published model by name."""
  made = importing.export(parts()[2], params)
  return {name: make() for name, _, make in made}


def applied(folder):
  """The base's tensors with the updates, as PEFT says that it adds them."""
  arrays = exported(parts()[1])
  values = json.loads((folder / 'adapter_config.json').read_text())
  found = {
    name: np.asarray(tensor.read(), np.float64)
    for name, tensor in safetensors_files.open_file(
      folder / 'adapter_model.safetensors'
    ).items()
  }
  modules = {name.rpartition('.lora_')[0] for name in found}
  for name in modules:
    module = name.removeprefix('base_model.model.')
    assert any(module.endswith(t) for t in values['target_modules'])
    rank = values['rank_pattern'].get(module, values['r'])
    alpha = values['alpha_pattern'].get(module, values['lora_alpha'])
    a, b = (found[f'{name}.lora_{x}.weight'] for x in 'AB')
    assert a.shape[0] == b.shape[1] == rank
    scale = alpha / (rank**0.5 if values['use_rslora'] else rank)
    arrays[f'{module}.weight'] = arrays[f'{module}.weight'] + scale * b @ a
  assert len(modules) * 2 == len(found)
  return arrays


def write(folder, config, params):
  peft_files.write(folder, config, params, parts()[2], 'a base', '/models/base')


def assert_near(arrays, others):
  assert arrays.keys() == others.keys()
  for name, array in arrays.items():
    np.testing.assert_allclose(array, others[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize('stabilized', [False, True])
def test_an_update_is_what_peft_adds(stabilized, tmp_path):
  config, params = tuned(rank_stabilized=stabilized, alpha=3.0)
  write(tmp_path / 'out', config, params)
  merged = exported(tuning.merged(params))
  assert_near(applied(tmp_path / 'out'), merged)
  base = exported(parts()[1])
  assert np.abs(base['model.layers.1.self_attn.o_proj.weight']).max() > 0
  changed = {
    name for name in merged if not np.array_equal(merged[name], base[name])
  }
  assert len(changed) == 14
  values = json.loads((tmp_path / 'out/adapter_config.json').read_text())
  assert values['base_model_name_or_path'] == '/models/base'


def test_what_was_written_is_read_as_it_was(tmp_path):
  config, params = tuned(alpha=3.0, pattern='attention/(query|output)')
  write(tmp_path / 'out', config, params)
  adapter = read(tmp_path / 'out')
  assert adapter.tune.rank == 2 and adapter.tune.alpha == 3.0
  own = parameter_groups.own(config.tune, params)
  jax.tree.map(np.testing.assert_array_equal, adapter.own, own)
  # With its pattern it is put where it was.
  again = tuning.wrapped(adapter.tune, parts()[1])
  assert jax.tree.structure(again) == jax.tree.structure(params)


@pytest.mark.parametrize(
  ('source', 'warns'),
  [
    ('/models/smol-135m.Q4_1.gguf', False),
    ('/hub/models--a--Smol-135M/snapshots/1', False),
    ('/models/Smol-360M', True),
    (None, False),
  ],
)
def test_another_name_of_the_base_is_told(source, warns, caplog):
  adapter = peft_files.Adapter(config_lib.Tune(), {}, None, 'a/Smol-135M')
  peft_files.check_base(adapter, {}, source)
  assert ('were tuned from a/Smol-135M' in caplog.text) == warns


def test_dropout_goes_both_ways(tmp_path):
  write(tmp_path / 'out', *tuned(dropout=0.25))
  values = json.loads((tmp_path / 'out/adapter_config.json').read_text())
  assert values['lora_dropout'] == 0.25
  assert read(tmp_path / 'out').tune.dropout == 0.25


def read(folder):
  _, base, entries = parts()
  return peft_files.read(folder, jax.eval_shape(lambda: base), entries)


def test_ranks_that_were_cut_are_left_out(tmp_path):
  """Down to none of one matrix."""
  config, params = tuned('adalora')
  layers = params['decoder']['layers']
  query = layers['attention']['query']['kernel']
  keep = np.array([[1, 0, 1], [0, 0, 0]], np.float32)
  layers['attention']['query']['kernel'] = query.replace(
    gains=query.gains * keep
  )
  write(tmp_path / 'out', config, params)
  values = json.loads((tmp_path / 'out/adapter_config.json').read_text())
  assert values['rank_pattern'] == {'model.layers.0.self_attn.q_proj': 2}
  assert len(values['target_modules']) == 13
  merged = exported(tuning.merged(params))
  assert_near(applied(tmp_path / 'out'), merged)
  # What is read has one rank, and zeros.
  adapter = read(tmp_path / 'out')
  assert adapter.tune.rank == 3 and adapter.tune.method == 'lora'
  mesh = toy.make_mesh()
  model = gemini.Gemini(parts()[0])
  wrap = functools.partial(tuning.wrapped, adapter.tune)
  again = tuning.attached(
    adapter.tune,
    adapter.own,
    parts()[1],
    build.abstract_params(model, mesh, wrap),
  )
  assert_near(exported(tuning.merged(again)), merged)


def change(folder, arrays=None, **values):
  """Writes the files of a folder anew."""
  path = folder / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))
  file = folder / 'adapter_model.safetensors'
  found = {
    name: tensor.read()
    for name, tensor in safetensors_files.open_file(file).items()
  }
  found = {n: a for n, a in (found | (arrays or {})).items() if a is not None}
  safetensors_files.write_file(file, found.items())


MODULE = 'base_model.model.model.layers.0.self_attn.k_proj'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'use_dora': True}, 'use_dora=True is not supported; accepted: False'),
    ({'peft_type': 'IA3'}, "peft_type='IA3' is not supported"),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights='pissa' is not"),
    ({'init_lora_weights': 'loftq'}, "init_lora_weights='loftq' is not"),
    ({'alora_invocation_tokens': [5]}, r'alora_invocation_tokens=\[5\] is not'),
    ({'target_parameters': ['experts']}, 'target_parameters=.* is not'),
    ({'lora_dropout': 1.0}, 'lora_dropout=1.0 must be a share below 1'),
    ({'r': 5}, 'r=5 of model.layers'),
    ({'lora_alpha': 'x'}, 'adapter_config.json: lora_alpha of model'),
    ({'lora_alpha': 10**400}, 'must be a number of float32, not 1000000'),
    ({'rank_pattern': [1]}, 'rank_pattern must be an object'),
    (
      {'arrays': {f'{MODULE}.lora_A.weight': None}},
      'k_proj has not two factors of one rank',
    ),
    (
      {'arrays': {f'{MODULE}.lora_B.weight': np.ones((5, 2), np.float32)}},
      r'k_proj.lora_B.weight. has the shape \[5, 2\], and the base \[12, 12\]',
    ),
    (
      {'arrays': {f'{MODULE}.lora_C.weight': np.ones(3, np.float32)}},
      'is no update of a projection of this base',
    ),
  ],
)
def test_what_is_no_plain_update_of_this_base_is_refused(
  changes, message, tmp_path
):
  write(tmp_path / 'out', *tuned())
  change(tmp_path / 'out', **changes)
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    read(tmp_path / 'out')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('method', 'pattern', 'message'),
  [
    ('adapter', '', 'has no updates of low rank'),
    ('lora', '^token/', 'token/embedding is no projection of the published'),
  ],
)
def test_what_peft_cannot_hold_is_refused(method, pattern, message, tmp_path):
  config, params = tuned(method, pattern=pattern)
  with pytest.raises(config_lib.ConfigError, match=message):
    write(tmp_path / 'out', config, params)
