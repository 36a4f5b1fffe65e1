"""Published models and ours give the same logits, in both directions.

Tiny models of Hugging Face's `transformers` with random weights are saved as
folders, read by our importer, and written again.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
import warnings

import jax
import numpy as np
import pytest

import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.weights import (
  config_json,
  families,
  gguf_file,
  gguf_model,
  importing,
  published,
  safetensors_files,
)

VOCAB_SIZE, LENGTH = 61, 40
SIZES = {
  'vocab_size': VOCAB_SIZE,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'rope_theta': 500_000.0,
  'tie_word_embeddings': False,
  'attn_implementation': 'eager',
}
SMALL_HEADS = {'head_dim': 16}
GEMMA = SMALL_HEADS | {
  'query_pre_attn_scalar': 24,
  'sliding_window': 5,
  'tie_word_embeddings': True,
}
# By a name: their class without its ending, and fields beside SIZES.
CASES = {
  'llama': ('Llama', {}),
  'llama_tied': ('Llama', {'tie_word_embeddings': True}),
  'llama_single_kv_head': ('Llama', {'num_key_value_heads': 1}),
  'llama_mlp_bias': ('Llama', {'mlp_bias': True}),
  'llama3': (
    'Llama',
    {
      # Small enough for all three kinds of wavelength to occur.
      'rope_theta': 100.0,
      'rope_scaling': {
        'rope_type': 'llama3',
        'factor': 4.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 32,
      },
    },
  ),
  # As published, which is what a GGUF file can hold; all three kinds as well.
  'llama3_published': (
    'Llama',
    {
      'rope_scaling': {
        'rope_type': 'llama3',
        'factor': 32.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
      },
    },
  ),
  'mistral': ('Mistral', SMALL_HEADS | {'sliding_window': 5}),
  'mistral_full': ('Mistral', SMALL_HEADS | {'sliding_window': None}),
  'qwen2': ('Qwen2', {}),
  'qwen2_windows': (
    'Qwen2',
    {'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1},
  ),
  'qwen3': ('Qwen3', SMALL_HEADS),
  'qwen3_multi_head': (
    'Qwen3',
    SMALL_HEADS | {'num_key_value_heads': 4, 'tie_word_embeddings': True},
  ),
  'gemma2': (
    'Gemma2',
    GEMMA
    | {
      'num_hidden_layers': 5,
      'attn_logit_softcapping': 1.5,
      'final_logit_softcapping': 2.0,
    },
  ),
  'gemma3': (
    'Gemma3',
    GEMMA
    | {
      'num_hidden_layers': 7,
      'rope_theta': 1_000_000.0,
      'rope_local_base_freq': 10_000.0,
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
  ),
  'gemma3_short': (
    'Gemma3',
    GEMMA
    | {
      'num_hidden_layers': 2,
      'sliding_window_pattern': 2,
      'num_key_value_heads': 1,
      'rope_local_base_freq': 100.0,
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
  ),
}


@pytest.fixture(autouse=True, scope='module')
def _libraries():
  """Imported here, where tests need them: each takes seconds."""
  global torch, transformers
  torch = pytest.importorskip('torch', reason='needs gemini_jax[parity]')
  with warnings.catch_warnings():
    # What their imports warn of is theirs to mend.
    warnings.simplefilter('ignore')
    transformers = pytest.importorskip(
      'transformers', reason='needs gemini_jax[parity]'
    )


@dataclasses.dataclass(frozen=True)
class Reference:
  """Their model in a folder, and what it says of some tokens."""

  folder: str
  tokens_BT: np.ndarray
  logits_BTV: np.ndarray
  model: config_lib.Model
  params: dict


@functools.cache
def folder_of_tests():
  return tempfile.TemporaryDirectory(prefix='gemini_jax_parity_')


@functools.cache
def reference(name):
  """Their model, all of its weights drawn anew: norms are not ones."""
  kind, fields = CASES[name]
  config_name = {'Gemma3': 'Gemma3TextConfig'}.get(kind, f'{kind}Config')
  config = getattr(transformers, config_name)(**(SIZES | fields))
  model = getattr(transformers, f'{kind}ForCausalLM')(config).eval()
  generator = torch.Generator().manual_seed(0)
  # Gemma stores the scale of a norm as its difference from 1.
  center = 0.0 if 'Gemma' in kind else 1.0
  with torch.no_grad():
    for parameter_name, parameter in model.named_parameters():
      spread = 0.5 if 'embed' in parameter_name else 0.3
      parameter.copy_(
        center * ('norm' in parameter_name)
        + spread * torch.randn(parameter.shape, generator=generator)
      )
  folder = f'{folder_of_tests().name}/{name}'
  model.save_pretrained(folder)
  tokens_BT = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, LENGTH))
  return Reference(
    folder, tokens_BT, theirs_of(model, tokens_BT), *ours_of(folder)
  )


def theirs_of(model, tokens_BT):
  with torch.no_grad():
    return model(torch.from_numpy(tokens_BT)).logits.numpy()


def ours_of(path):
  """Our model of a folder or file, and its parameters."""
  source = published.open_source(pathlib.Path(path))
  config = source.config('float32')
  return config.model, source.params(config, toy.make_mesh())


@functools.cache
def _apply(model):
  return jax.jit(gemini.Gemini(model).apply)


def logits(model, params, tokens_BT):
  sequence = batch_lib.plain_sequence(tokens_BT, np.full(2, LENGTH))
  batch = batch_lib.Batch(sequence, tokens_BT, np.ones(tokens_BT.shape))
  logits_BTV, _ = _apply(model)({'params': params}, batch)
  return np.asarray(logits_BTV)


@pytest.mark.parametrize('name', CASES)
def test_logits_equal(name):
  case = reference(name)
  ours_BTV = logits(case.model, case.params, case.tokens_BT)
  np.testing.assert_allclose(ours_BTV, case.logits_BTV, rtol=0, atol=1e-4)
  # A flat reference would say nothing.
  assert np.std(case.logits_BTV) > 0.2


@pytest.mark.parametrize('kind', families.FAMILIES)
def test_what_config_json_leaves_out(kind):
  whole = transformers.AutoConfig.for_model(kind).to_dict()
  models = [
    families.to_model(values, 'float32')
    for values in (whole, {'model_type': kind})
  ]
  assert not config_json.differences(*models)


@pytest.mark.parametrize(
  'name', ['llama3', 'mistral', 'qwen3', 'gemma2', 'gemma3_short']
)
def test_decoding_with_a_cache_is_the_same(name):
  case = reference(name)
  model = gemini.Gemini(case.model)
  cache = gemini.init_cache(case.model, 2, LENGTH)
  whole = batch_lib.plain_sequence(case.tokens_BT, np.full(2, LENGTH))

  @jax.jit
  def decode(cache, part):
    logits_BTV, cache, _ = model.apply(
      {'params': case.params}, part, cache=cache, method='decode'
    )
    return logits_BTV, cache

  parts = []
  for begin, end in [(0, 9), *((i, i + 1) for i in range(9, LENGTH))]:
    part = jax.tree.map(lambda leaf: leaf[:, begin:end], whole)  # noqa: B023
    logits_BTV, cache = decode(cache, part)
    parts.append(logits_BTV)
  ours_BTV = np.concatenate(parts, axis=1)
  np.testing.assert_allclose(ours_BTV, case.logits_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('llama', {'rope_base': 10_000.0}),
    ('llama', {'norm_eps': 1e-2}),
    ('llama3', {'rope_llama3_context': 0}),
    ('mistral', {'window': 6}),
    ('qwen2_windows', {'attention_pattern': ('local',)}),
    ('qwen3', {'query_scale': 20.0}),
    ('gemma2', {'window': 6}),
    ('gemma2', {'attention_softcap': 50.0}),
    ('gemma3_short', {'rope_base_local': None}),
    ('gemma3_short', {'rope_scale': 1.0}),
    ('gemma3_short', {'activation': 'gelu_exact'}),
  ],
)
def test_each_subtle_field_matters(name, changes):
  """Parity would not survive a wrong value."""
  case = reference(name)
  wrong = dataclasses.replace(case.model, **changes)
  wrong_BTV = logits(wrong, case.params, case.tokens_BT)
  assert np.abs(wrong_BTV - case.logits_BTV).max() > 2e-4


@pytest.mark.parametrize('name', CASES)
def test_a_folder_that_is_written_again_is_the_same(name, tmp_path):
  """For us to the last bit, and for `transformers` in its logits."""
  case = reference(name)
  values = config_json.from_model(case.model)
  entries = published.export_entries(
    values, case.model, case.params, 'huggingface'
  )
  made = importing.export(entries, case.params)
  safetensors_files.write_folder(
    tmp_path, ((name, make()) for name, _, make in made), {'format': 'pt'}
  )
  (tmp_path / 'config.json').write_text(json.dumps(values))
  model, params = ours_of(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params, case.params)
  again_BTV = logits(model, params, case.tokens_BT)
  ours_BTV = logits(case.model, case.params, case.tokens_BT)
  np.testing.assert_array_equal(again_BTV, ours_BTV)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager'
  ).eval()
  theirs_BTV = theirs_of(theirs, case.tokens_BT)
  np.testing.assert_allclose(theirs_BTV, case.logits_BTV, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  'name',
  [
    *('llama', 'llama_tied', 'llama3_published', 'mistral_full', 'qwen2'),
    *('qwen3', 'qwen3_multi_head', 'gemma2', 'gemma3'),
  ],
)
def test_a_gguf_file_holds_the_same_model(name, tmp_path):
  case = reference(name)
  # llama.cpp has no field for what queries are divided by.
  original = dataclasses.replace(case.model, query_scale=None)
  values = config_json.from_model(original)
  entries = published.export_entries(values, original, case.params, 'gguf')
  made = importing.export(entries, case.params)
  factors_F = gguf_model.rope_factors(original)
  if factors_F is not None:
    made.append(('rope_freqs.weight', factors_F.shape, lambda: factors_F))
  path = tmp_path / 'model.gguf'
  gguf_file.write_gguf(
    path,
    gguf_model.metadata_of(values, name),
    [(name, shape, 'float32', make) for name, shape, make in made],
  )
  model, params = ours_of(path)
  for field, *pair in config_json.differences(model, original):
    # Such files hold numbers in float32.
    np.testing.assert_allclose(*pair, rtol=1e-6, err_msg=field)
  # Of a Gemma, 1 is added to the norms in such files, which rounds them.
  atol = 1e-6 if 'gemma' in name else 0
  near = functools.partial(np.testing.assert_allclose, rtol=0, atol=atol)
  jax.tree.map(near, params, case.params)
  near(
    logits(model, params, case.tokens_BT),
    logits(original, case.params, case.tokens_BT),
    atol=100 * atol,
  )


@pytest.mark.parametrize(
  ('name', 'field'),
  [
    ('mistral', 'attention_pattern'),
    ('gemma3', 'query_scale'),
    ('gemma3_short', 'attention_pattern'),
  ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(name, field):
  values = config_json.from_model(reference(name).model)
  with pytest.raises(config_lib.ConfigError, match=f'model.{field}='):
    gguf_model.metadata_of(values, name)
