"""What earlier versions wrote is read under the names of this one."""

import json
import pathlib

import pytest

import tiny
from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax.config import legacy

# The config.json of a run of text_vae, as the first version wrote it.
FIRST_VERSION = pathlib.Path(__file__).with_name('first_version.json')


def upgraded(**sections):
  """The section `evaluate` of the first version's run with other values."""
  values = json.loads(FIRST_VERSION.read_text())
  for name, fields in sections.items():
    values[name] |= fields
  return config_lib.from_json(json.dumps(values)).evaluate


def test_a_run_of_the_first_version_opens():
  config = config_lib.read(FIRST_VERSION)
  assert config.model.latent.dim == 8
  assert config.train.kl_annealing.free_bits == 0.4
  assert config.evaluate.max_batches == 3
  # It was measured where a row was one sequence.
  assert config.evaluate.evaluators == ('likelihood',)
  assert config.evaluate.likelihood.importance_samples == 500
  # As this version writes it, it is read as it is.
  assert config_lib.from_json(config_lib.to_json(config)) == config


def test_fields_of_the_second_version_are_read():
  text = '{"sparsity": {"n_of_m": "2:4"}, "generate": {"int8_kernel": "xla"}}'
  config = config_lib.from_json(text)
  assert config.sparsity.n_m == '2:4'
  assert config.generate.cpu_kernel == 'xla'


def test_an_old_run_by_muon_keeps_the_rate_that_it_had():
  values = json.loads(FIRST_VERSION.read_text())
  values['optimizer'] |= {'name': 'muon', 'learning_rate': None}
  config = config_lib.from_json(json.dumps(values))
  assert config.optimizer.peak == 3e-3
  values['optimizer']['learning_rate'] = 0.5
  assert config_lib.from_json(json.dumps(values)).optimizer.peak == 0.5
  values['optimizer'] |= {'name': 'adamw', 'learning_rate': None}
  assert config_lib.from_json(json.dumps(values)).optimizer.peak == 1e-3
  muon = config_lib.from_config_dict({'optimizer': {'name': 'muon'}})
  assert config_lib.from_json(config_lib.to_json(muon)) == muon


@pytest.mark.parametrize(
  ('sections', 'names'),
  [
    ({'data': {'pack': True}, 'model': {'latent': {'dim': 0}}}, ()),
    ({'data': {'test': []}}, ()),
    ({'eval': {'latent_examples': 0}}, ()),
    (
      {'eval': {'exact_match': 5, 'retrieval': 6, 'captions': 7}},
      ('likelihood', 'exact_match', 'retrieval', 'captions'),
    ),
  ],
)
def test_numbers_above_0_become_names(sections, names):
  evaluate = upgraded(**sections)
  assert evaluate.evaluators == names
  for section, name in (
    (evaluate.exact_match, 'exact_match'),
    (evaluate.retrieval, 'retrieval'),
    (evaluate.captions, 'captions'),
  ):
    if name in names:
      assert section.num_examples == sections['eval'][name]


def test_evaluators_keep_what_they_took_from_generate():
  evaluate = upgraded(
    eval={'judged': 24, 'samples': ['a'], 'latent_examples': 0},
    generate={
      'temperature': 0.3,
      'guidance': 2.0,
      'max_tokens': 9,
      'checkpoint': 'best',
    },
  )
  assert evaluate.evaluators == ('judged_media', 'samples')
  assert evaluate.judged_media.num_examples == 24
  assert evaluate.judged_media.temperature == 0.3
  assert evaluate.judged_media.guidance == 2.0
  assert evaluate.samples.prompts == ('a',)
  assert evaluate.samples.temperature == 0.3
  assert evaluate.samples.max_tokens == 9
  assert evaluate.checkpoint == 'best'


def test_what_is_wrong_in_an_old_config_is_refused():
  with pytest.raises(config_lib.ConfigError) as error:
    upgraded(eval={'exact_match': -1})
  assert str(error.value) == (
    'evaluate.exact_match.num_examples=-1 must be at least 1'
  )
  with pytest.raises(config_lib.ConfigError, match=r'evaluate\.wings is not'):
    upgraded(eval={'wings': 2})


def test_the_values_of_a_caller_stay():
  values = json.loads(FIRST_VERSION.read_text())
  legacy.upgrade(values)
  assert values == json.loads(FIRST_VERSION.read_text())


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    (
      '--config.eval.exact_match=500',
      'eval.exact_match is now evaluate.exact_match.num_examples, for an '
      'evaluator in evaluate.evaluators',
    ),
    (
      '--config.eval.batch_size=8',
      'eval.batch_size is now evaluate.batch_size',
    ),
    (
      '--config.model.audio.rate=8000',
      'model.audio.rate is now model.audio.sample_rate',
    ),
  ],
)
def test_a_flag_of_an_earlier_version_is_told_its_name(flag, message):
  base = config_lib.to_config_dict()
  with pytest.raises(config_lib.ConfigError) as error:
    command.override(base, command.Arguments('', {}, ['main', flag]))
  assert str(error.value) == message


def test_metrics_have_the_names_of_this_version():
  line = {'step': 5, 'validation/rate': 2.0, 'validation/accuracy': 0.5}
  assert legacy.metrics(line) == {
    'step': 5,
    'validation/kl': 2.0,
    'validation/token_accuracy': 0.5,
  }


@pytest.mark.parametrize(
  ('line', 'told'),
  [
    ('eval.batch_size = 4', 'eval is now evaluate'),
    (
      'train.bottleneck.off = 0.1',
      'train.bottleneck is now train.kl_annealing',
    ),
  ],
)
def test_an_experiment_with_an_old_name_is_told_the_new_one(
  line, told, tmp_path
):
  file = tiny.experiment(tmp_path, line)
  with pytest.raises(config_lib.ConfigError, match=told):
    command.load(str(file))
