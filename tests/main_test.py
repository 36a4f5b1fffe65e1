"""A mistake costs exit code 2 and one line that says what is accepted."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import main
from gemini_jax.checkpoint import checkpointer
from gemini_jax.parallel import compilation
from gemini_jax.train import loop


def refused(capsys, *argv):
  """The one line that `main` refuses these arguments with."""
  capsys.readouterr()
  assert main.main(['main', *map(str, argv)]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1, lines
  assert lines[0].startswith('error: ')
  return lines[0].removeprefix('error: ')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(experiment, workdir) of a run that is done."""
  folder = tmp_path_factory.mktemp('trained')
  file = tiny.experiment(folder, 'train.num_steps = 2')
  assert tiny.run(file, folder / 'run') == 0
  return file, folder / 'run'


# The fields of a command line, and all of the message that they lead to.
OVERRIDES = {
  'model.num_headz=3': 'model.num_headz is not a field of model; did you mean '
  'num_heads',
  'modle.width=3': 'modle is not a field of config; did you mean model?',
  'model.num_layers=two': 'two',
  'model.num_layers=0': 'model.num_layers=0 must be at least 1',
  'model.num_heads=3': 'model.num_heads=3 must divide model.width=32 unless '
  'model.head_dim is set',
  'model.num_kv_heads=4': 'model.num_kv_heads=4 must divide model.num_heads=2',
  'model.position=rotry': "model.position='rotry' must be one of rotary, "
  'learned, none',
  'optimizer.learning_rate=-1.0': 'optimizer.learning_rate=-1.0 must be above '
  '0',
  'optimizer.frozen=(': "optimizer.frozen='(' is not a regular expression",
  'data.objective=seq2seq': "data.objective='seq2seq' does not go with "
  "model.architecture='decoder'; encoder_decoder goes with seq2seq, decoder "
  'with causal or prefix',
  'data.sequence_length=99': 'data.sequence_length=99 must be at most '
  'model.max_length=24',
  'parallel.data=3': 'parallel.data=3 is a mesh of 3 devices; there are 8; '
  'set one axis to -1 to take them all',
  'parallel.fsdp=3': 'parallel.data=-1, parallel.fsdp=3: 3 does not divide '
  'the 8 devices',
  'parallel.tensor=8': 'parallel.tensor=8 does not divide kv_heads=2 '
  '(decoder/layers/attention/key/kernel); use 1, 2',
  'data.batch_size=12': 'data.batch_size=12 must be a multiple of '
  'parallel.data = 8',
  'evaluate.batch_size=3': 'evaluate.batch_size=3 must be a multiple of '
  'parallel.data = 8',
  'model.vocab_size=100': 'model.vocab_size=100 must be at least 259: 259 of '
  'the tokenizer and a placeholder for each kind of media',
  'sparsity.gate.alpha=1.5': 'sparsity.gate.alpha=1.5 must be above 0 and '
  'below 1',
  'sparsity.sparsity=-0.1': 'sparsity.sparsity=-0.1 must be at least 0 and '
  'below 1',
  'sparsity.method=rigl sparsity.distribution=global': 'sparsity.distribution='
  'global is for single weights of sparsity.method=gradual, not rigl',
  'sparsity.method=static sparsity.pattern=none': "sparsity.pattern='none' "
  'matches the path of no parameter; the nearest are ',
  'sparsity.method=static sparsity.n_m=2:5': "sparsity.n_m='2:5': 5 does "
  'not divide the 32 inputs of decoder/layers/',
  'sparsity.method=static sparsity.block=5': 'sparsity.block=5 does not divide '
  'the 32 inputs of decoder/layers/',
}


@pytest.mark.parametrize('override', OVERRIDES)
def test_a_wrong_value_is_named_with_what_is_accepted(
  override, tmp_path, capsys
):
  file = tiny.experiment(tmp_path)
  argv = tiny.arguments(file, tmp_path / 'run', *override.split())
  assert OVERRIDES[override] in refused(capsys, *argv)
  assert not (tmp_path / 'run' / 'checkpoints').exists()


# What an experiment sets, and the message.
SOURCES = {
  "tfds:tiny_shakespear#train'": 'tiny_shakespear',
  "text:{folder}/none.txt'": 'data.train[0]=text:{folder}/none.txt: no file '
  "matches '{folder}/none.txt'",
  "text:{folder}/tokens_here'": 'no file matches',
  "text:{folder}/latin.txt'": '{folder}/latin.txt is not UTF-8 at byte 3',
  "text:{folder}/empty.txt'": "no record is usable, 1 unusable: 1 'text' is "
  'empty',
  "txt:{folder}/0.txt'": "'txt' is not a kind of source; did you mean text?",
  "jsonl:{folder}/0.txt'": 'unusable',
}


@pytest.mark.parametrize('source', SOURCES)
def test_a_source_that_cannot_be_read(source, tmp_path, capsys):
  (tmp_path / 'latin.txt').write_bytes(b'abc\xff')
  (tmp_path / 'empty.txt').touch()
  (tmp_path / 'tokens_here').mkdir()
  line = f"data.train = ('{source.format(folder=tmp_path)},)"
  file = tiny.experiment(tmp_path, line, f"data.data_dir = '{tmp_path}'")
  message = refused(capsys, *tiny.arguments(file, tmp_path / 'run'))
  assert message.startswith('data.train[0]=')
  assert SOURCES[source].format(folder=tmp_path) in message


@pytest.mark.skipif(
  not hasattr(os, 'geteuid') or os.geteuid() == 0,
  reason='a superuser reads everything',
)
def test_a_file_without_permission(tmp_path, capsys):
  file = tiny.experiment(tmp_path)
  (tmp_path / '0.txt').chmod(0)
  message = refused(capsys, *tiny.arguments(file, tmp_path / 'run'))
  assert message.endswith('0.txt: Permission denied')


def test_a_misspelt_field_inside_an_experiment(tmp_path, capsys):
  file = tiny.experiment(tmp_path, 'model.num_headz = 3')
  message = refused(capsys, *tiny.arguments(file, tmp_path / 'run'))
  assert 'num_headz' in message
  assert 'did you mean' in message
  assert 'num_heads' in message


def test_wrong_flags(tmp_path, capsys):
  file = tiny.experiment(tmp_path)
  config, workdir = f'--config={file}', f'--workdir={tmp_path / "run"}'
  assert refused(capsys, workdir) == (
    f'--config=... is missing, and {workdir} has no config.json of a run'
  )
  assert refused(capsys, config) == '--workdir=... is missing'
  assert refused(capsys, config, workdir, '--mode=trian') == (
    '--mode=trian must be one of train, eval, generate, predict, compress, plan'
  )
  assert refused(capsys, config, workdir, '--wrkdir=x') == (
    '--wrkdir is not a flag; did you mean workdir?'
  )
  assert refused(capsys, config, workdir, 'train') == (
    'unexpected arguments: train'
  )
  assert not (tmp_path / 'run').exists()


def test_half_a_group_of_processes(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAX_PROCESS_ID', '0')
  file = tiny.experiment(tmp_path)
  assert refused(capsys, *tiny.arguments(file, tmp_path / 'run')).startswith(
    'JAX_PROCESS_ID set without JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES; '
  )
  assert not (tmp_path / 'run').exists()


def test_an_experiment_that_cannot_be_read(tmp_path, capsys):
  workdir = f'--workdir={tmp_path / "run"}'
  missing = tmp_path / 'missing.py'
  assert refused(capsys, f'--config={missing}', workdir) == (
    f'--config={missing} cannot be read: No such file or directory'
  )
  assert refused(capsys, f'--config={tmp_path}', workdir) == (
    f'--config={tmp_path} cannot be read: Is a directory'
  )
  broken = tmp_path / 'broken.py'
  broken.write_text('def get_config(\n')
  message = refused(capsys, f'--config={broken}', workdir)
  assert message.startswith(f'{broken}, line 1: ')
  empty = tmp_path / 'empty.py'
  empty.write_text('')
  assert 'get_config' in refused(capsys, f'--config={empty}', workdir)


def test_a_workdir_that_cannot_be_used(tmp_path, trained, capsys):
  file, done = trained
  blocked = tmp_path / 'blocked'
  blocked.touch()
  assert refused(capsys, *tiny.arguments(file, blocked)) == (
    f'--workdir={blocked} cannot be written: File exists'
  )
  inside = blocked / 'run'
  assert refused(capsys, *tiny.arguments(file, inside)) == (
    f'--workdir={inside} cannot be written: Not a directory'
  )
  for mode in ('eval', 'generate'):
    missing = tmp_path / 'missing'
    argv = tiny.arguments(file, missing, mode=mode)
    assert refused(capsys, *argv) == f'--workdir={missing} does not exist'
    empty = tmp_path / 'empty'
    empty.mkdir(exist_ok=True)
    argv = tiny.arguments(file, empty, mode=mode)
    assert f'--workdir={empty} holds no' in refused(capsys, *argv)
  before = (done / 'config.json').read_text()
  assert refused(capsys, *tiny.arguments(file, done, 'model.mlp_dim=64')) == (
    f'--workdir={done} holds another model: model.mlp_dim is 48 there and 64 '
    'here; use another --workdir or the same config'
  )
  assert (done / 'config.json').read_text() == before


def test_a_checkpoint_of_other_arrays(tmp_path, trained, capsys):
  """Another optimizer, whose state the checkpoint does not hold."""
  file, done = trained
  workdir = shutil.copytree(done, tmp_path / 'run')
  message = refused(
    capsys,
    *tiny.arguments(file, workdir, 'optimizer.name=lion', 'train.num_steps=4'),
  )
  assert 'optimizer.name is adamw there and lion here' in message


def test_other_data_than_those_of_the_checkpoint(tmp_path, trained, capsys):
  file, done = trained
  workdir = shutil.copytree(done, tmp_path / 'run')
  message = refused(
    capsys,
    *tiny.arguments(file, workdir, 'data.batch_size=16', 'train.num_steps=4'),
  )
  assert 'data.batch_size was 8, is 16' in message
  kept = (workdir / 'config.json').read_text()
  assert kept == (done / 'config.json').read_text()


def generated(capsys, workdir, *flags):
  """What is shown of a prompt; a greedy text."""
  capsys.readouterr()
  argv = [f'--workdir={workdir}', '--mode=generate']
  argv += ['--config.generate.prompt=one', '--config.generate.temperature=0']
  assert main.main(['main', *argv, *flags]) == 0
  return capsys.readouterr().out.split('written to')[0]


def test_a_run_knows_its_own_config(tmp_path, capsys):
  """No flag of the training has to be typed again, nor the experiment."""
  file = tiny.experiment(tmp_path, 'train.num_steps = 1')
  workdir = tmp_path / 'run'
  flags = 'optimizer.name=lion', 'model.num_layers=1', 'data.validation=()'
  assert tiny.run(file, workdir, *flags) == 0
  assert generated(capsys, workdir).startswith('one')
  assert main.main(['main', f'--workdir={workdir}']) == 0
  assert 'is done: step 1 of 1' in capsys.readouterr().out
  message = refused(
    capsys,
    f'--workdir={workdir}',
    '--mode=generate',
    '--config.model.num_layers=2',
  )
  assert 'model.num_layers is 1 there and 2 here' in message


def test_samples_that_cannot_be_written(trained, tmp_path, capsys):
  """The text is shown all the same."""
  workdir = shutil.copytree(trained[1], tmp_path / 'run')
  text = generated(capsys, workdir)
  shutil.rmtree(workdir / 'samples')
  (workdir / 'samples').touch()
  again = generated(capsys, workdir)
  assert again == f'{text}not '


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{', 'is not JSON: '),
    (b'\xff', 'is not JSON: '),
    (b'[' * 100_000, 'is nested too deeply'),
    (b'[]', 'config=[] must be a section'),
    (b'{"model": 3}', 'model=3 must be a section of the config'),
    (b'{"model": {"wings": 2}}', 'model.wings is not a field of model'),
    (None, 'not a regular file'),
  ],
)
def test_a_config_json_that_is_none(content, message, tmp_path, capsys):
  file = tmp_path / 'config.json'
  os.mkfifo(file) if content is None else file.write_bytes(content)
  for mode in main.MODES:
    shown = refused(capsys, f'--workdir={tmp_path}', f'--mode={mode}')
    assert shown.startswith(f'{file}')
    assert message in shown


def test_a_home_folder_is_expanded(tmp_path, monkeypatch, capsys):
  """Of the folder and of the experiment."""
  monkeypatch.setenv('HOME', str(tmp_path))
  tiny.experiment(tmp_path)
  workdirs = []
  train = lambda config, workdir: workdirs.append(workdir)
  monkeypatch.setattr(loop, 'train', train)
  assert tiny.run('~/experiment.py', '~/run') == 0
  assert workdirs == [tmp_path / 'run']
  message = refused(capsys, '--workdir=~nobody_of_this_name/run')
  assert 'no such home folder is known' in message


def test_help(tmp_path, capsys):
  for asked in ('--help', '-h', '--helpfull', '-help'):
    assert main.main(['main', asked]) == 0
    shown = capsys.readouterr().out
    for part in ('--config=', '--workdir=', *main.MODES, 'config/', 'Exit'):
      assert part in shown
  assert main.main(['main']) == 2
  captured = capsys.readouterr()
  assert captured.err == shown and not captured.out
  file = tiny.experiment(tmp_path)
  for argv in (['--help', f'--config={file}'], [f'--config={file}', '-h']):
    assert main.main(['main', *argv, '--config.model.norm=pre_post']) == 0
    shown = capsys.readouterr().out
    assert 'model.width = 32  (int, at least 1)  Width of' in shown
    assert "model.norm = 'pre_post'  (one of pre, pre_post)" in shown
  (tmp_path / 'config.json').write_text('{"train": {"seed": 7}}')
  argv = ['main', f'--workdir={tmp_path}', '--help=train.s']
  assert main.main(argv) == 0
  shown = capsys.readouterr().out
  assert 'train.seed = 7  (int)  All' in shown
  assert 'model.' not in shown
  assert main.main(['main', '--help=optimizer']) == 0
  assert 'optimizer.name' in capsys.readouterr().out
  assert 'did you mean optimizer' in refused(capsys, '--help=optimize_r')
  message = refused(capsys, '--help', f'--config={file}', '--config.modl.x=1')
  assert message == 'modl is not a field of config; did you mean model?'


def test_help_is_fast_and_ends_with_its_reader():
  """Without jax; a pager that closes is no error."""
  code = (
    'import os, sys; from gemini_jax import main\n'
    'code = main.main(["main", "--help=model"])\n'
    'assert "jax" not in sys.modules\n'
    'sys.exit(code)'
  )
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, '-c', code], stdout=writer, stderr=subprocess.PIPE
  )
  os.close(writer)
  assert (done.returncode, done.stderr) == (0, b'')


# What is asked for at the end of a run, and what it is refused with at once.
ENDINGS = {
  "evaluate.samples.prompts=('a','{long}')|evaluate.evaluators=('samples',)": (
    'evaluate.samples.prompts[1] has 41 tokens; with model.max_length=24 at '
    'most 23 fit'
  ),
  "evaluate.samples.prompts=('\\udcff',)": 'is not Unicode text in UTF-8',
  "data.train=('reverse:9',)|data.validation=()|data.inputs_field=inputs|"
  'data.targets_field=targets|data.sequence_length=64|model.max_length=64|'
  "evaluate.evaluators=('exact_match',)": (
    'exact_match needs data.validation or data.test'
  ),
  'train.wandb_project=p': "train.wandb_project='p' needs wandb",
}


@pytest.mark.parametrize('asked', ENDINGS)
def test_what_the_end_needs_is_checked_first(
  asked, tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  file = tiny.experiment(tmp_path)
  argv = tiny.arguments(
    file, tmp_path / 'run', *asked.format(long='x' * 40).split('|')
  )
  assert ENDINGS[asked] in refused(capsys, *argv)
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_without_compilation(tmp_path, capsys):
  file = tiny.experiment(tmp_path)
  with jax.disable_jit():
    message = refused(capsys, *tiny.arguments(file, tmp_path / 'run'))
  assert message.startswith('JAX_DISABLE_JIT is set')
  assert not (tmp_path / 'run').exists()


def test_an_interrupt_is_one_line(tmp_path, monkeypatch, capsys):
  """Before the loop takes the signal for a wish to save."""

  def interrupted(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(compilation, 'timed', interrupted)
  file = tiny.experiment(tmp_path)
  assert tiny.run(file, tmp_path / 'run') == 130
  assert capsys.readouterr().err == 'interrupted\n'


def test_a_prompt_longer_than_the_context(trained, capsys):
  file, done = trained
  prompt = f'generate.prompt={"x" * 40}'
  argv = tiny.arguments(file, done, prompt, mode='generate')
  assert refused(capsys, *argv) == (
    'generate.prompt has 41 tokens; with model.max_length=24 at most 23 fit'
  )


def test_a_run_that_is_not_finite_stops_and_names_the_tensor(tmp_path, capsys):
  """Exit code 1; the last checkpoint is the last good state."""
  file = tiny.experiment(
    tmp_path,
    'model.num_layers = 1',
    'train.num_steps = 12',
    'train.save_every = 1',
    'optimizer.learning_rate = 1e16',
    'optimizer.clip_norm = 0.0',
  )
  messages = []
  for _ in range(2):
    capsys.readouterr()
    assert tiny.run(file, tmp_path / 'run') == 1
    lines = capsys.readouterr().err.splitlines()
    messages.append(lines[-1])
    assert len(lines) == 1, lines
  assert messages[0] == messages[1]
  checkpoints = checkpointer.Checkpointer(tmp_path / 'run' / 'checkpoints')
  last = checkpoints.steps()[-1]
  assert messages[0].startswith(f'error: step {last + 1} is not finite (loss ')
  assert ': first in ' in messages[0]
  assert messages[0].endswith(
    f'; last good checkpoint: {checkpoints.path(last)}'
  )
  state = tiny.arrays(tmp_path / 'run')
  assert all(np.isfinite(leaf).all() for leaf in state.values())
  lines = tiny.metrics(tmp_path / 'run')
  assert all(line['step'] <= last for line in lines)


def test_parameters_that_overflow_are_not_saved(tmp_path, capsys):
  """The loss of that step was finite."""
  file = tiny.experiment(
    tmp_path,
    'train.num_steps = 12',
    'train.save_every = 1',
    'optimizer.learning_rate = 3e38',
    'optimizer.weight_decay = 10.0',
  )
  assert tiny.run(file, tmp_path / 'run') == 1
  message = capsys.readouterr().err
  # Its own step, though the next one would have seen it.
  assert message.startswith('error: step 1 is not finite (loss ')
  assert ': first in parameter ' in message
  assert message.endswith('last good checkpoint: none yet\n')
  assert not list((tmp_path / 'run' / 'checkpoints').glob('*/manifest.json'))


def contents(folder):
  """The bytes of every file in a folder."""
  return {
    path: path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


@pytest.mark.parametrize(
  ('how', 'problem'),
  [
    ('no record', 'metrics.jsonl is missing'),
    ('half a record', 'metrics.jsonl has '),
    ('all damaged', 'every checkpoint in '),
    ('all set aside', 'holds damaged checkpoints alone, 00000002.damaged'),
    ('no checkpoints', 'metrics.jsonl goes to step 2, but there is no'),
  ],
)
def test_what_was_lost_is_not_overwritten(
  how, problem, trained, tmp_path, capsys
):
  """Nothing begins at step 0 in silence, and nothing changes."""
  file, done = trained
  workdir = pathlib.Path(shutil.copytree(done, tmp_path / 'run'))
  record = workdir / 'metrics.jsonl'
  newest = workdir / 'checkpoints' / '00000002'
  if how == 'no record':
    record.unlink()
  elif how == 'half a record':
    record.write_bytes(record.read_bytes()[:9])
  elif how == 'all damaged':
    (newest / checkpointer.MANIFEST).write_text('{}')
  elif how == 'all set aside':
    newest.rename(newest.with_name('00000002.damaged'))
  else:
    shutil.rmtree(newest.parent)
  before = contents(workdir)
  arguments = tiny.arguments(file, workdir)
  for _ in range(2):
    message = refused(capsys, *arguments)
    assert problem in message
    assert 'put a copy' in message
    assert contents(workdir) == before


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number, trained, tmp_path, capsys, monkeypatch):
  def fail(config, workdir):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(loop, 'train', fail)
  file, done = trained
  for workdir, saved in (
    (done, 'step 2 is saved'),
    (tmp_path, 'no step is saved yet'),
  ):
    assert tiny.run(file, workdir) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: the disk of --workdir={workdir} is full')
    assert saved in line
