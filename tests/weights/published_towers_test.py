"""Published encoders of media and our towers give the same hidden states."""

import dataclasses
import functools
import pathlib
import tempfile
import warnings

import jax
import numpy as np
import pytest

import photo
import tiny
import toy
import tuned_runs
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import convert
from gemini_jax.layers import whisper_features
from gemini_jax.models import build, gemini, media_encoders, towers
from gemini_jax.train import session as session_lib
from gemini_jax.weights import published_towers, tuning

SIZES = {
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 2,
  'num_attention_heads': 3,
  'image_size': 16,
  'patch_size': 4,
}
WHISPER = {
  'd_model': 24,
  'encoder_layers': 2,
  'encoder_attention_heads': 3,
  'encoder_ffn_dim': 40,
  'num_mel_bins': 16,
  'max_source_positions': 50,
  'decoder_layers': 1,
  'decoder_attention_heads': 3,
  'decoder_ffn_dim': 8,
  'vocab_size': 30,
  'max_target_positions': 8,
  'pad_token_id': 0,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'decoder_start_token_id': 1,
}
VIT = ('ViT', SIZES | {'hidden_act': 'gelu'})
CASES = {
  'vit': (*VIT, 'ViTModel'),
  'vit_classifier': (*VIT, 'ViTForImageClassification'),
  'siglip': ('SiglipVision', SIZES, 'SiglipVisionModel'),
  'whisper': ('Whisper', WHISPER, 'WhisperForConditionalGeneration'),
}
BY_NAME = pytest.mark.parametrize('name', CASES)


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


@functools.cache
def reference(name):
  """(their model, the folder that it is saved in)."""
  config, fields, kind = CASES[name]
  torch.manual_seed(0)
  config = getattr(transformers, f'{config}Config')(
    **fields, attn_implementation='eager'
  )
  model = getattr(transformers, kind)(config).eval()
  with torch.no_grad():
    for path, parameter in model.named_parameters():
      is_scale = 'norm' in path and path.endswith('weight')
      parameter.normal_(mean=float(is_scale), std=0.3)
  folder = tempfile.TemporaryDirectory(prefix='towers_')
  # Removed when the process ends.
  model.folder = folder
  model.save_pretrained(folder.name)
  return model, pathlib.Path(folder.name)


@functools.cache
def media(kind):
  rng = np.random.default_rng(0)
  if kind == 'image':
    return rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
  steps = rng.integers(-2000, 2000, (2, 16_000))
  return np.clip(np.cumsum(steps, axis=1), -30_000, 30_000).astype(np.int16)


@functools.cache
def theirs(name):
  """Hidden states of patches or frames, [B, N, D]."""
  model, _ = reference(name)
  with torch.no_grad():
    if name == 'whisper':
      features = torch.tensor(extracted())
      return model.get_encoder()(features).last_hidden_state.numpy()
    pixels = torch.tensor(media('image') / 127.5 - 1, dtype=torch.float32)
    model = getattr(model, 'vit', model)
    states = model(pixels.permute(0, 3, 1, 2)).last_hidden_state.numpy()
    return states[:, 1:] if name.startswith('vit') else states


@functools.cache
def extracted():
  """Their features of the sounds, [B, M, F]."""
  extractor = transformers.WhisperFeatureExtractor(
    feature_size=WHISPER['num_mel_bins'], chunk_length=1
  )
  sounds = list(media('audio') / 2**15)
  found = extractor(sounds, sampling_rate=16_000, return_tensors='np')
  return found['input_features']


def with_section(tower):
  """A model that reads media through a tower."""
  config = toy.model().config
  return dataclasses.replace(
    config, vocab_size=32, text_vocab_size=20, **{tower.kind: tower.section}
  )


def features(audio):
  return whisper_features.log_mel(
    media('audio'),
    np.full(2, 16_000),
    sample_rate=audio.sample_rate,
    window_samples=audio.window_samples,
    hop_samples=audio.hop_samples,
    num_mels=audio.num_mels,
    f_min=audio.f_min,
    f_max=audio.top,
  )


def ours(tower, section=None):
  """Hidden states by the tensors of a tower, of a section of our config."""
  config = with_section(tower)
  abstract = build.abstract_params(gemini.Gemini(config), toy.make_mesh())
  part = abstract['perception'][f'encoders_{tower.kind}']['tower']
  params = tower.params(part)
  config = dataclasses.replace(config, **{tower.kind: section or tower.section})
  values, sizes = media(tower.kind), np.full((2, 2), 16)
  if tower.kind == 'audio':
    values, sizes = features(section or tower.section), np.full((2, 1), 9_000)
  model = towers.Tower(config, tower.kind)
  run = jax.jit(lambda params: model.apply({'params': params}, values, sizes))
  states, positions = run(params)
  return np.asarray(states), np.asarray(positions.count_B)


@BY_NAME
def test_hidden_states_equal(name):
  _, folder = reference(name)
  states, count_B = ours(published_towers.open_tower(folder))
  expected = theirs(name)
  assert states.shape == expected.shape and expected.std() > 0.1
  np.testing.assert_allclose(states, expected, atol=1e-4)
  # A token for 320 samples; silence is heard, and is none of the sound's.
  assert count_B.tolist() == ([29, 29] if name == 'whisper' else [16, 16])


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('vit', {'activation': 'gelu'}),
    ('vit', {'norm_eps': 0.01}),
    ('siglip', {'activation': 'gelu_exact'}),
    ('siglip', {'norm_eps': 0.01}),
    ('whisper', {'norm_eps': 0.01}),
    ('whisper', {'activation': 'relu'}),
  ],
)
def test_each_subtle_field_matters(name, fields):
  tower = published_towers.open_tower(reference(name)[1])
  wrong = dataclasses.replace(tower.section.tower, **fields)
  section = dataclasses.replace(tower.section, tower=wrong)
  assert np.abs(ours(tower, section)[0] - theirs(name)).max() > 5e-4


def test_features_are_whispers():
  """Up to the rounding of float32; not with the bands of another scale."""
  tower = published_towers.open_tower(reference('whisper')[1])
  expected = extracted().swapaxes(1, 2)
  np.testing.assert_allclose(features(tower.section), expected, atol=1e-4)
  other = features(dataclasses.replace(tower.section, f_min=20.0))
  assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize('num_tokens', [0, 5])
def test_soft_tokens_are_of_the_hidden_states(num_tokens):
  """Projected, or resampled and projected, to the model's width."""
  tower = published_towers.open_tower(reference('siglip')[1])
  section = dataclasses.replace(tower.section, num_tokens=num_tokens)
  config = dataclasses.replace(with_section(tower), image=section)
  encoder = media_encoders.Encoder(config, 'image')
  values, sizes = media('image'), np.array([[16, 16], [0, 0]])
  params = toy.random_params(encoder, values, sizes)
  run = jax.jit(lambda params: encoder.apply({'params': params}, values, sizes))
  soft, count_B = run(params)
  assert soft.shape == (2, num_tokens or 16, config.width)
  assert count_B.tolist() == [num_tokens or 16, 0]
  assert np.abs(soft[0]).min(axis=1).max() > 0 and not np.any(soft[1])
  if not num_tokens:
    alone = towers.Tower(config, 'image')
    states = alone.apply({'params': params['tower']}, values, sizes)[0]
    expected = states[0] @ params['projector']['kernel']
    toy.assert_near(soft[0], expected, 1e-4)


def test_an_encoder_is_added_to_a_language_model(tmp_path, capsys):
  """Which is as it was; a training with pictures begins from both."""
  config = tuned_runs.base_config(tmp_path)
  tuned_runs.save(config, tmp_path / 'base')
  vit, both = reference('vit')[1], tmp_path / 'both'
  flags = f'--source={vit}', f'--base={tmp_path}/base', f'--target={both}'
  assert convert.main(['convert', *flags]) == 0
  made = config_lib.read(both / 'config.json')
  assert made.model.kinds == ('image',)
  base, params = (
    run_lib.open_run(config_lib.read(path / 'config.json'), path)
    .restore_params()
    .params
    for path in (tmp_path / 'base', both)
  )
  same = lambda a, b: np.testing.assert_array_equal(a, b)
  jax.tree.map(same, params['decoder'], base['decoder'])
  rows = base['token']['embedding'].shape[0]
  same(params['token']['embedding'][:rows], base['token']['embedding'])
  start = dataclasses.replace(
    config,
    model=made.model,
    train=dataclasses.replace(config.train, init_from=str(both)),
  )
  session = session_lib.open_session(start, tmp_path / 'run')
  state = session.init_state()
  jax.tree.map(same, state.params['perception'], params['perception'])
  # Without a base, and a second time.
  assert convert.main(['convert', flags[0], f'--target={tmp_path}/no']) == 2
  again = flags[0], f'--base={both}', f'--target={tmp_path}/no'
  assert convert.main(['convert', *again]) == 2
  errors = capsys.readouterr().err.strip().splitlines()[-2:]
  assert '--base= is the workdir' in errors[0]
  assert 'already reads media of the kind image' in errors[1]


def test_a_training_goes_through_an_encoder(tmp_path):
  """Frozen, and by updates of low rank, from what convert made."""
  config = tuned_runs.base_config(tmp_path)
  tuned_runs.save(config, tmp_path / 'base')
  both, vit = tmp_path / 'both', reference('vit')[1]
  flags = f'--source={vit}', f'--base={tmp_path}/base', f'--target={both}'
  assert convert.main(['convert', *flags]) == 0
  records = photo.write(tmp_path)
  overrides = (
    f"data.train=('jsonl:{records}',)",
    f"data.validation=('jsonl:{records}#[:4]',)",
    "data.tasks=('name = {image:picture} -> {word}',)",
    'data.pack=False',
    'data.batch_size=8',
    'data.sequence_length=24',
    'train.num_steps=2',
    'train.eval_every=2',
    'train.save_every=2',
    'optimizer.learning_rate=0.01',
    'optimizer.warmup_steps=0',
  )
  file = tiny.ROOT / 'experiments/fine_tune.py'
  tower = 'perception/encoders_image/tower/'

  def changed(name, method, *more):
    """Paths of the parameters that are not as before, when merged."""
    run = tmp_path / name
    options = f'{file}:base={both},method={method}'
    assert tiny.run(options, run, *overrides, *more) == 0
    read = lambda path: (
      run_lib.open_run(config_lib.read(path / 'config.json'), path)
      .restore_params()
      .params
    )
    before = jax.tree_util.tree_leaves_with_path(read(both))
    after = jax.tree.leaves(tuning.merged(read(run)))
    return {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for (path, old), new in zip(before, after, strict=True)
      if np.abs(np.asarray(new) - old).max() > 1e-6
    }

  parts = lambda paths: {path.startswith(tower) for path in paths}
  frozen = changed('frozen', 'full', f'optimizer.frozen=^{tower}')
  assert 'perception/encoders_image/projector/kernel' in frozen
  assert parts(frozen) == {False}
  low_rank = changed('low_rank', 'lora')
  assert f'{tower}layers/layers/attention/query/kernel' in low_rank
  assert 'decoder/layers/attention/query/kernel' in low_rank
  assert all('layers/' in path for path in low_rank)


@pytest.mark.parametrize(
  ('name', 'file', 'old', 'new', 'message'),
  [
    ('vit', 'config', '"hidden_act": "gelu"', '"hidden_act": "quick_gelu"',
     "hidden_act='quick_gelu' is not supported"),
    ('vit', 'config', '"image_size": 16', '"image_size": 20',
     'positions has the shape'),
    ('vit', 'config', '"num_hidden_layers": 2', '"num_hidden_layers": 3',
     'tensors are missing: '),
    ('siglip', 'config', '"num_hidden_layers": 2', '"num_hidden_layers": 1',
     'tensors have no place in this model: '),
    ('siglip', 'config', 'siglip_vision_model', 'clip_vision_model',
     'as encoders of media vit, siglip and whisper'),
    ('vit', 'preprocessor_config', '', '{"image_mean": [0.4, 0.4, 0.4]}',
     'image_mean=[0.4, 0.4, 0.4] is not supported'),
    ('vit', 'preprocessor_config', '', '{"image_mean": [[0.5]]}',
     'image_mean=[[0.5]] is not supported'),
    ('vit', 'config', '"hidden_act": "gelu"', '"hidden_act": []',
     'hidden_act=[] is not supported'),
    ('whisper', 'config', '"max_source_positions": 50',
     f'"max_source_positions": {10**400}', 'is too large: int too large'),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
  name, file, old, new, message, tmp_path, capsys
):
  for source in reference(name)[1].iterdir():
    (tmp_path / source.name).write_bytes(source.read_bytes())
  path = tmp_path / f'{file}.json'
  text = path.read_text() if path.exists() else ''
  assert old in text
  path.write_text(text.replace(old, new) if old else new)
  with pytest.raises(config_lib.ConfigError) as error:
    if published_towers.is_tower(tmp_path):
      ours(published_towers.open_tower(tmp_path))
    else:
      published_towers.families.family_of({'model_type': 'clip_vision_model'})
  assert message in str(error.value) and '\n' not in str(error.value)
