"""Command lines: flags, experiments and help."""

import dataclasses
import json

import pytest

from gemini_jax import command, help_page
from gemini_jax import config as config_lib
from gemini_jax.commands import bench, diversity, steered, steered_options

EXPERIMENT = """
from experiments import base


def get_config(arg=''):
  config = base.get_config()
  config.model.width = int(arg or 64)
  return config
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'experiment.py'
  path.write_text(EXPERIMENT)
  return path


def parse(*argv):
  return command.parse(['main', *map(str, argv)], {'mode': 'train'})


def message(*argv):
  with pytest.raises(config_lib.ConfigError) as error:
    parse(*argv)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_flags_stand_in_any_order(file):
  for argv in (
    ['--config.model.num_heads=2', '--mode=eval', f'--config={file}:32'],
    ['--mode', 'eval', '--config', f'{file}:32', '-config.model.num_heads=2'],
    ['--config.model.num_heads', '2', '--config', f'{file}:32', '-mode=eval'],
    [f'--config={file}:32', '--mode=eval', '--config.model.num_heads', '2'],
  ):
    parsed = parse(*argv)
    assert parsed.values == {'mode': 'eval'}
    assert parsed.config.model.width == 32
    assert parsed.config.model.num_heads == 2


@pytest.mark.parametrize(
  'name', ['a#b.py', 'lr=[1e-3].py', 'a:b.py', 'a b.py', 'ä.txt', '-x.py']
)
@pytest.mark.parametrize('arg', ['', ':32'])
def test_an_experiment_may_have_any_name(file, name, arg):
  path = file.rename(file.with_name(name))
  assert parse(f'--config={path}{arg}').config.model.width == int(arg[1:] or 64)


@pytest.mark.parametrize(
  ('source', 'expected'),
  [
    ('', '--config={file} has no function get_config'),
    ('get_config = 3', '--config={file} has no function get_config'),
    ('def get_config(', "{file}, line 1: '(' was never closed"),
    ('import absent_module', '{file}, line 1: ModuleNotFoundError: No module'),
    ('x = 1\nx / 0', '{file}, line 2: ZeroDivisionError: division by zero'),
    ('def get_config():\n  return None', 'gives NoneType, not a ConfigDict'),
    ('def get_config():\n  raise ValueError("no\\nway")', 'no'),
    ('def get_config(a):\n  return 1', '{file}: TypeError: get_config() missi'),
    ('\0', '{file}: source code string cannot contain null bytes'),
    (
      f'{EXPERIMENT.rstrip()[: -len("return config")]}config.modl = 1\n'
      '  return config',
      'modl is not a field of config; did you mean model?',
    ),
  ],
)
def test_a_wrong_experiment_costs_one_line(file, source, expected):
  file.write_text(source)
  assert expected.format(file=file) in message(f'--config={file}')


def test_what_is_said_of_wrong_arguments(file):
  config = f'--config={file}'
  assert message('--mode=eval') == '--config=... is missing'
  assert message('--config=') == '--config=... is missing'
  assert 'Missing value' in message('--config')
  assert message(config, '--md=a') == '--md is not a flag; did you mean mode?'
  assert message(config, 'x', 'y') == 'unexpected arguments: x y'
  assert message(config, '--mode=\udcff') == '--mode=\\udcff is not UTF-8'
  assert message(config, '--noconfig.model.remt') == (
    'model.remt is not a field of model; did you mean remat or remat_save?'
  )


@pytest.fixture
def run(tmp_path):
  """The folder of a run, with its config.json."""
  config = config_lib.to_config_dict()
  config.model.vocab_size = 320
  config.model.norm = 'pre_post'
  config.data.test = ('reverse:9',)
  config.evaluate.judged_media.num_examples = 5
  config = config_lib.from_config_dict(config)
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'config.json').write_text(config_lib.to_json(config))
  return folder, config


def run_config(folder, mode, *argv):
  arguments = command.split(['main', *argv], {})
  return command.run_config(arguments, mode, folder)


@pytest.mark.parametrize('mode', ['train', 'eval', 'generate', 'plan'])
def test_without_an_experiment_the_run_gives_its_config(run, mode):
  folder, config = run
  assert run_config(folder, mode) == config
  changed = run_config(folder, mode, '--config.model.norm=pre')
  assert changed.model == dataclasses.replace(config.model, norm='pre')
  with pytest.raises(config_lib.ConfigError, match='did you mean norm'):
    run_config(folder, mode, '--config.model.norn=pre')
  with pytest.raises(config_lib.ConfigError) as error:
    run_config(folder.parent, mode)
  assert str(error.value) == (
    f'--config=... is missing, and --workdir={folder.parent} has no '
    'config.json of a run'
  )


def test_an_experiment_says_how_a_run_is_used(run, file, caplog):
  """And not what it is: flags of the training need not be typed again."""
  folder, config = run
  lines = "config.generate.prompt = 'a'", "config.data.test = ('text:b',)"
  body = '\n  '.join((*lines, 'return config'))
  file.write_text(EXPERIMENT.replace('return config', body))
  for mode in ('eval', 'generate'):
    caplog.clear()
    flags = f'--config={file}', '--config.model.width=256'
    used = run_config(folder, mode, *flags)
    assert used.model == config.model
    assert used.data == config.data
    assert used.generate.prompt == 'a'
    assert used.evaluate.judged_media.num_examples == 300
    # What is not used is said, save what a flag decides.
    assert 'than the run in data.test, model.norm: those' in caplog.text
  for mode in ('train', 'plan'):
    asked = run_config(folder, mode, f'--config={file}')
    assert asked.model == config_lib.Model(width=64)
  # There is no run yet.
  asked = run_config(folder.parent, 'eval', f'--config={file}')
  assert asked.model == config_lib.Model(width=64)


def test_the_experiment_of_a_run_is_no_other_one(run):
  saved = config_lib.to_config_dict(run[1])
  asked = config_lib.to_config_dict(run[1])
  asked.model.vocab_size = None
  assert not list(command._differences(asked, saved, command._OF_USE))


def test_a_run_of_another_version(run):
  folder, config = run
  file = folder / 'config.json'
  values = json.loads(file.read_text())
  del values['model']['latent'], values['plan']
  file.write_text(json.dumps(values))
  assert run_config(folder, 'eval') == config
  file.write_text(json.dumps(values | {'wings': {}}))
  with pytest.raises(config_lib.ConfigError) as error:
    run_config(folder, 'eval')
  assert str(error.value).startswith(f'{file}: wings is not a field of config')


TOOLS = {
  'bench': (bench, ('config', 'what', 'nanogpt', 'gguf', 'huggingface')),
  'diversity': (diversity, diversity.FLAGS),
  'steered': (steered, steered_options.FLAGS),
}


@pytest.mark.parametrize('name', TOOLS)
def test_every_command_says_how_it_is_used(name, capsys):
  """By its docstring and its flags."""
  tool, flags = TOOLS[name]
  assert tool.main([name, '--help']) == 0
  shown = capsys.readouterr().out
  assert shown.startswith(tool.__doc__.strip())
  for flag in flags:
    assert f'\n  --{flag}=' in shown
  assert tool.main([name]) == 2
  assert capsys.readouterr().err == shown


def test_help_is_no_value():
  assert help_page.topic_of(['main', '--config.generate.prompt=--help']) is None
  assert help_page.topic_of(['main', '--helper']) is None
  assert help_page.topic_of(['--help']) is None
  assert help_page.topic_of(['main', '--help=data.t']) == 'data.t'


def test_a_home_that_nobody_knows():
  with pytest.raises(config_lib.ConfigError, match='no such home folder'):
    command.folder('out', '~nobody_of_this_name/x')
  with pytest.raises(config_lib.ConfigError, match=r'^--out=\.\.\. is missing'):
    command.folder('out', '')
  assert str(command.folder('out', './~x')) == '~x'
