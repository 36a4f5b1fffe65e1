"""The loop from end to end, through the command line, in this process."""

import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.evaluate import evaluators, held_out
from gemini_jax.infer import beam, decoding
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.train import (
  diagnosis,
  loop,
  metric_writer,
  metrics_file,
  preemption,
  run_report,
)
from gemini_jax.train import progress as progress_lib

# An evaluator that writes without a held-out split.
SAMPLES = (
  "evaluate.evaluators=('samples',)",
  "evaluate.samples.prompts=('one two',)",
  'evaluate.samples.max_tokens=6',
)


class Compilations(logging.Handler):
  """Names of the functions that JAX compiles while it is open."""

  def __init__(self):
    super().__init__()
    self.names = []

  def emit(self, record):
    message = record.getMessage()
    if message.startswith('Compiling '):
      self.names.append(message.split()[1])

  def __enter__(self):
    self.logging = jax.log_compiles()
    self.logging.__enter__()
    # Its own handler prints every one of them.
    self.logger = logging.getLogger('jax')
    self.before = self.logger.handlers, self.logger.propagate
    self.logger.handlers, self.logger.propagate = [self], False
    return self

  def __exit__(self, *error):
    self.logger.handlers, self.logger.propagate = self.before
    self.logging.__exit__(*error)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('loop')


@pytest.fixture(scope='module')
def file(folder):
  return tiny.experiment(folder)


@pytest.fixture(scope='module')
def done(folder, file):
  """(workdir of a run of 20 steps, what was compiled at each line)."""
  counts = []
  write = metric_writer.Writer.write
  with pytest.MonkeyPatch.context() as patch, Compilations() as compiled:

    def note(writer, step, values):
      counts.append((step, len(compiled.names)))
      write(writer, step, values)

    patch.setattr(metric_writer.Writer, 'write', note)
    assert tiny.run(file, folder / 'run', *SAMPLES) == 0
  return folder / 'run', compiled.names, counts


def test_the_folder_of_a_run(done):
  workdir, *_ = done
  config = json.loads((workdir / 'config.json').read_text())
  assert config['model']['vocab_size'] == 320, '259 bytes, rounded up to 64s'
  assert (workdir / 'tokenizer').exists()
  assert list((workdir / 'tensorboard').iterdir())
  checkpoints = checkpointer.Checkpointer(workdir / 'checkpoints')
  assert checkpoints.steps() == [10, 20]
  assert checkpoints.best() == 20
  samples = (workdir / 'samples' / '00000020.jsonl').read_text().splitlines()
  assert [json.loads(line)['prompt'] for line in samples] == ['one two']


def test_lines_of_metrics(done):
  lines = tiny.metrics(done[0])
  assert [line['step'] for line in lines] == [4, 8, 10, 12, 16, 20, 20]
  training = {
    'step',
    'train/loss',
    'train/token_accuracy',
    'train/grad_norm',
    'train/learning_rate',
    'train/tokens',
    'train/tokens_per_second',
    'train/step_seconds',
    'train/mfu',
  }
  validation = {
    'step',
    'validation/loss',
    'validation/perplexity',
    'validation/token_accuracy',
    'validation/bits_per_byte',
  }
  for line in lines:
    names = validation if 'validation/loss' in line else training
    assert set(line) == names
    assert all(value is None or np.isfinite(value) for value in line.values())
    assert line.get('train/mfu') is None, 'nobody knows the peak of this CPU'
  first, last = (
    [line[name] for line in lines if name in line]
    for name in ('train/loss', 'validation/loss')
  )
  assert first[-1] < first[0] - 1
  assert last[1] < last[0]


def test_a_run_that_is_done_stays_as_it_is(done, file, capsys):
  workdir, *_ = done
  paths = [
    path
    for path in workdir.rglob('*')
    if path.is_file() and path.name != 'config.json'
  ]
  before = {
    path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths
  }
  assert tiny.run(file, workdir) == 0
  out = capsys.readouterr().out
  assert f'{workdir} is done: step 20 of 20  validation/loss' in out
  for path, (time, content) in before.items():
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == time
  after = {path for path in workdir.rglob('*') if path.is_file()}
  assert after == {*paths, workdir / 'config.json'}


def test_everything_compiles_once(done):
  _, names, counts = done
  for name in ('train_step', 'eval_step'):
    assert sum(name in other for other in names) == 1, names
  at = dict(counts)
  # Orbax cuts replicated arrays into slices when it first saves them.
  assert set(names[at[10] : at[16]]) <= {'jit(slice)'}, 'between the steps'


def test_the_next_step_is_sent_before_a_step_is_looked_at(
  file, tmp_path, monkeypatch
):
  events = []
  compile_step = loop.compile_step

  def logged(*args):
    step = compile_step(*args)

    def run(state, batch, index):
      events.append(('step', int(index)))
      state, values = step(state, batch, index)
      assert all(isinstance(value, jax.Array) for value in values.values())
      return state, values

    return run

  device_get = jax.device_get

  def get(values):
    if isinstance(values, dict) and 'grad_norm' in values:
      events.append(('look', int(sum(e[0] == 'look' for e in events))))
    return device_get(values)

  monkeypatch.setattr(loop, 'compile_step', logged)
  monkeypatch.setattr(loop.jax, 'device_get', get)
  assert tiny.run(file, tmp_path / 'run') == 0
  expected = [('step', 0)]
  for index in range(20):
    # Evaluations and checkpoints are of a state that was looked at.
    if index not in (9, 19):
      expected += [('step', index + 1), ('look', index)]
    else:
      expected += [('look', index)] + [('step', index + 1)] * (index < 19)
  assert events == expected


# What is switched on, and what must then be in the state.
OPTIONS = {
  'average': (
    (
      'optimizer.ema_decay=0.5',
      'optimizer.accumulation_steps=2',
      'data.batch_size=16',
      'model.dropout=0.2',
      'optimizer.name=muon',
      'parallel.data=2',
      'parallel.fsdp=4',
    ),
    'extra/ema/',
  ),
  'plateau': (
    (
      'optimizer.plateau_patience=1',
      'optimizer.learning_rate=1e-12',
      'train.eval_every=5',
    ),
    'extra/plateau/scale',
  ),
  'schedule_free': (('optimizer.name=schedule_free',), 'opt_state/1/z/'),
  **{
    name: ((f'optimizer.name={name}',), f'opt_state/{held}')
    for name, held in {
      'momo_adam': '1/barf',
      'prodigy': '1/estim_lr',
      'dadapt_adamw': '1/estim_lr',
      'dog': '1/1/1/sum_sq_norm_grads',
    }.items()
  },
}


@pytest.mark.parametrize('name', OPTIONS)
def test_options_survive_a_restart(name, file, tmp_path):
  """From the checkpoint in the middle: the same lines, the same arrays."""
  overrides, held = OPTIONS[name]
  workdir = tmp_path / 'run'
  assert tiny.run(file, workdir, *overrides) == 0
  expected = tiny.arrays(workdir)
  lines = tiny.metrics(workdir, *metrics_file.TIMINGS)
  assert any(path.startswith(held) for path in expected), sorted(expected)
  shutil.rmtree(workdir / 'checkpoints' / '00000020')
  assert tiny.run(file, workdir, *overrides) == 0
  assert tiny.metrics(workdir, *metrics_file.TIMINGS) == lines
  for path, leaf in tiny.arrays(workdir).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  rates = [
    line['train/learning_rate'] for line in lines if 'train/loss' in line
  ]
  if name == 'plateau':
    # A rate this small improves nothing: halved at every evaluation but one.
    assert expected['extra/plateau/scale'] <= 0.25
    assert rates[-1] < 0.5 * rates[0]
  if name == 'average':
    average, param = (
      expected[f'{kind}/token/embedding'] for kind in ('extra/ema', 'params')
    )
    assert not np.array_equal(average, param)


FAILS = pytest.mark.parametrize(
  ('module', 'calls', 'step'),
  # Of evaluations every 5 steps, the last of them with evaluators.
  [(held_out, 2, 10), (evaluators, 1, 20), (run_report, 4, 20)],
)


@pytest.fixture(scope='module')
def plateau(folder, file):
  """(overrides, workdir) of a run with a rate that evaluations change."""
  overrides = (
    'optimizer.plateau_patience=1',
    'optimizer.learning_rate=1e-12',
    'train.eval_every=5',
    *SAMPLES,
  )
  assert tiny.run(file, folder / 'plateau', *overrides) == 0
  return overrides, folder / 'plateau'


def fail_at(patch, module, name, number):
  """Lets the call of that number raise an error."""
  function, calls = getattr(module, name), itertools.count(1)

  def fail(*args):
    if next(calls) == number:
      raise ZeroDivisionError
    return function(*args)

  patch.setattr(module, name, fail)


@FAILS
def test_a_step_is_saved_before_it_is_evaluated(
  module, calls, step, plateau, file, tmp_path, monkeypatch, capsys
):
  """What failed is done at the next start, with no step trained again."""
  overrides, whole = plateau
  workdir = tmp_path / 'run'
  name = 'write' if module is run_report else 'evaluate'
  with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
    fail_at(patch, module, name, calls)
    tiny.run(file, workdir, *overrides)
  assert checkpointer.Checkpointer(workdir / 'checkpoints').steps()[-1] == step
  capsys.readouterr()
  assert tiny.run(file, workdir, *overrides) == 0
  assert f'resuming at step {step}\n' in capsys.readouterr().out
  assert tiny.metrics(workdir, *metrics_file.TIMINGS) == tiny.metrics(
    whole, *metrics_file.TIMINGS
  )
  expected = tiny.arrays(whole)
  for path, leaf in tiny.arrays(workdir).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  names = 'step', 'metric', 'results', 'due', 'observed'
  last, wanted = (
    checkpointer.Checkpointer(path / 'checkpoints').manifest(20)
    for path in (workdir, whole)
  )
  assert [last[name] for name in names] == [wanted[name] for name in names]
  assert last['metric'] == last['results']['validation/loss']
  assert last['metrics_bytes'] == (workdir / 'metrics.jsonl').stat().st_size
  assert (workdir / 'samples' / '00000020.jsonl').exists()
  # Now there is nothing left to do.
  assert tiny.run(file, workdir, *overrides) == 0
  assert 'is done: step 20 of 20  validation/loss' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('module', 'calls'), [(held_out, 3), (evaluators, 1), (None, 0)]
)
def test_validation_ends_a_run_as_its_last_step_would(
  module, calls, file, tmp_path, monkeypatch, capsys
):
  """At the third of four validations; also where that one fails at first."""
  overrides = (
    'optimizer.learning_rate=1e-12',
    'train.early_stopping.patience=2',
    'train.early_stopping.min_improvement=0.1',
    'train.eval_every=5',
    'train.save_every=6',
    *SAMPLES,
  )
  workdir = tmp_path / 'run'
  if module is not None:
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
      fail_at(patch, module, 'evaluate', calls)
      tiny.run(file, workdir, *overrides)
  assert tiny.run(file, workdir, *overrides) == 0
  said = capsys.readouterr().out
  assert ('resuming at step 15' in said) == (module is not None)
  assert f'{workdir} is done: 15 steps  validation/loss ' in said
  lines = tiny.metrics(workdir, *metrics_file.TIMINGS)
  assert [line['step'] for line in lines] == [4, 5, 8, 10, 12, 15]
  checkpoints = checkpointer.Checkpointer(workdir / 'checkpoints')
  assert checkpoints.steps()[-2:] == [12, 15]
  assert (workdir / 'samples' / '00000015.jsonl').exists()
  report = (workdir / 'report.md').read_text()
  assert 'Step 15 of 20, on ' in report
  reason = 'Ended by train.early_stopping: none of the last 2 validation losses'
  assert reason in report
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert tiny.run(file, workdir, *overrides) == 0
  said = capsys.readouterr().out
  assert 'is done: step 15 of 20' in said and reason in said
  assert (workdir / 'metrics.jsonl').read_bytes() == before
  if module is None:
    # From a checkpoint between two validations.
    shutil.rmtree(checkpoints.path(15))
    assert tiny.run(file, workdir, *overrides) == 0
    assert 'resuming at step 12' in capsys.readouterr().out
    assert tiny.metrics(workdir, *metrics_file.TIMINGS) == lines
    # A longer patience makes of it the run that it would have been.
    patient = (*overrides, 'train.early_stopping.patience=4')
    assert tiny.run(file, workdir, *patient) == 0
    assert tiny.metrics(workdir)[-1]['step'] == 20
    assert checkpoints.steps()[-1] == 20


def test_times_are_of_steps_alone(file, tmp_path, monkeypatch):
  """By a clock that moves on by 1 at a step and far at everything else."""
  now = 0.0

  def takes(owner, name, seconds):
    function = getattr(owner, name)

    def taking(*args, **kwargs):
      nonlocal now
      now += seconds
      return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, taking)

  compile_step = loop.compile_step

  def compiled(*args):
    step = compile_step(*args)

    def run(*args):
      nonlocal now
      now += 1
      return step(*args)

    return run

  clock = types.SimpleNamespace(monotonic=lambda: now, time=lambda: now)
  monkeypatch.setattr(loop, 'compile_step', compiled)
  monkeypatch.setattr(progress_lib, 'time', clock)
  defaults = (clock.monotonic,)
  monkeypatch.setattr(progress_lib.Stopwatch.__init__, '__defaults__', defaults)
  takes(held_out, 'evaluate', 1000)
  takes(checkpointer.Checkpointer, 'save', 1000)
  assert tiny.run(file, tmp_path / 'run', 'train.save_every=7') == 0
  lines = [
    line for line in tiny.metrics(tmp_path / 'run') if 'train/mfu' in line
  ]
  # A step ahead of the first line, and at the end none: 20 in all.
  assert [line['train/step_seconds'] for line in lines] == [
    *(1.25, 1.0, 1.0, 1.0),
    0.75,
  ]
  for line in lines:
    tokens = line['train/tokens_per_second'] * line['train/step_seconds']
    assert 7 * 16 < tokens <= 8 * 16


def at_step_four(monkeypatch, action):
  """Calls `action` in the middle of the runs that follow."""
  update = progress_lib.Progress.update

  def updated(progress, step, values):
    update(progress, step, values)
    if step == 4:
      action()

  monkeypatch.setattr(progress_lib.Progress, 'update', updated)


def test_a_folder_is_trained_in_once(file, tmp_path, monkeypatch, capsys):
  codes = []
  start = lambda: codes.append(tiny.run(file, tmp_path / 'run'))

  def again():
    # Without the mesh of the first.
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

  at_step_four(monkeypatch, again)
  assert tiny.run(file, tmp_path / 'run') == 0
  assert codes == [2]
  captured = capsys.readouterr()
  assert captured.err.startswith(
    f'error: --workdir={tmp_path / "run"} is in use: process {os.getpid()} on '
  )
  assert captured.err.count('\n') == 1
  assert [line['step'] for line in tiny.metrics(tmp_path / 'run')] == [
    *(4, 8, 10, 12, 16, 20, 20)
  ]


def test_a_folder_that_is_removed_meanwhile(
  file, tmp_path, monkeypatch, capsys
):
  at_step_four(monkeypatch, lambda: shutil.rmtree(tmp_path / 'run'))
  assert tiny.run(file, tmp_path / 'run') == 1
  captured = capsys.readouterr()
  assert 'is done' not in captured.out
  assert captured.err.startswith(
    f'error: {tmp_path / "run"} was removed or replaced during the run'
  )
  assert captured.err.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_another_course_is_announced(done, file, tmp_path, capsys):
  workdir = shutil.copytree(done[0], tmp_path / 'run')
  longer = 'train.num_steps=21', 'optimizer.schedule=cosine'
  assert tiny.run(file, workdir, *longer) == 0
  out = capsys.readouterr().out
  outputs = re.search(
    r'the learning rate at step 21 is (\S+); the run before would have had '
    r'(\S+)\n',
    out,
  )
  assert outputs, out
  rates = [line.get('train/learning_rate') for line in tiny.metrics(workdir)]
  assert float(outputs[1]) == pytest.approx(
    [rate for rate in rates if rate is not None][-1], rel=1e-4
  )
  assert outputs[1] != outputs[2]
  # The same config goes on as planned.
  shutil.rmtree(workdir / 'checkpoints' / '00000021')
  assert tiny.run(file, done[0], *SAMPLES) == 0
  assert 'would have had' not in capsys.readouterr().out


def test_ignored_signals_stay_ignored(monkeypatch):
  """As under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    guard = preemption.PreemptionGuard(
      mesh_lib.make_mesh(config_lib.Parallel())
    )
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == guard._wish
    guard.close()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_nobody_reads_along(file, tmp_path):
  """The reader leaves after a line, and its encoding lacks the prompt."""
  prompt = "evaluate.samples.prompts=('\u4e00',)"
  command = tiny.arguments(file, tmp_path / 'run', SAMPLES[0], prompt)
  with subprocess.Popen(
    [sys.executable, '-m', 'gemini_jax.main', *command],
    cwd=tiny.ROOT,
    env=os.environ | tiny.ENVIRONMENT | {'PYTHONIOENCODING': 'latin-1'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as process:
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(120) == 0, errors
  assert 'Error' not in errors
  assert [line['step'] for line in tiny.metrics(tmp_path / 'run')][-1] == 20
  samples = tmp_path / 'run' / 'samples' / '00000020.jsonl'
  assert json.loads(samples.read_text())['prompt'] == '\u4e00'


def test_the_report_survives_a_search_that_fails(monkeypatch):
  """With what is known; the failure stays in the traceback."""

  def fail(*args):
    raise NotImplementedError('no such operation')

  monkeypatch.setattr(diagnosis, 'first_not_finite', fail)
  monkeypatch.setattr(
    diagnosis.run_lib, 'device_batches', lambda *args: iter([None])
  )
  checkpoints = types.SimpleNamespace(
    close=lambda: None, steps=lambda: [3], path='checkpoints/{}'.format
  )
  run = types.SimpleNamespace(config=None, model=None, checkpoints=checkpoints)
  session = types.SimpleNamespace(run=run, optimizer=None)
  state = types.SimpleNamespace(step=np.int32(4))
  values = {'loss': np.nan, 'grad_norm': 2.0}
  with pytest.raises(FloatingPointError) as error:
    diagnosis.raise_not_finite(session, state, [None] * 5, 5, values)
  assert str(error.value) == (
    'step 5 is not finite (loss nan, gradient norm 2.0): first in unknown, the '
    "search failed: NotImplementedError('no such operation'); last good "
    'checkpoint: checkpoints/3'
  )
  assert isinstance(error.value.__context__, NotImplementedError)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_so(
  number, file, done, tmp_path, monkeypatch, capsys
):
  update = progress_lib.Progress.update

  def kill(progress, step, values):
    update(progress, step, values)
    if step == 4:
      os.kill(os.getpid(), number)

  # So that a failure does not end the tests.
  before = lambda *args: None
  original = signal.signal(number, before)
  with monkeypatch.context() as patch:
    patch.setattr(progress_lib.Progress, 'update', kill)
    assert tiny.run(file, tmp_path / 'run') == 0
  assert signal.signal(number, original) == before
  steps = checkpointer.Checkpointer(tmp_path / 'run' / 'checkpoints').steps()
  assert len(steps) == 1
  assert 4 < steps[0] < 10
  assert f'stopped by a signal; step {steps[0]} is saved' in (
    capsys.readouterr().out
  )
  assert tiny.run(file, tmp_path / 'run') == 0
  assert f'resuming at step {steps[0]}' in capsys.readouterr().out
  assert tiny.metrics(tmp_path / 'run', *metrics_file.TIMINGS) == tiny.metrics(
    done[0], *metrics_file.TIMINGS
  )


def test_eval_mode(done, file, capsys):
  workdir, *_ = done
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert tiny.run(file, workdir, mode='eval') == 0
  values = json.loads(capsys.readouterr().out.splitlines()[-1])
  last = tiny.metrics(workdir)[-1]
  assert values == pytest.approx(last)
  assert (
    tiny.run(
      file,
      workdir,
      'evaluate.checkpoint=best',
      'evaluate.batch_size=16',
      mode='eval',
    )
    == 0
  )
  again = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert again == pytest.approx(last, rel=1e-5)
  assert tiny.run(file, workdir, 'evaluate.max_batches=1', mode='eval') == 0
  part = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert part['validation/loss'] != last['validation/loss']
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def generate(file, workdir, capsys, *overrides):
  """(printed, samples) of one generation."""
  capsys.readouterr()
  assert tiny.run(file, workdir, *overrides, mode='generate') == 0
  out = capsys.readouterr().out
  return out, tiny.generated(workdir)


def test_generate_mode(done, file, capsys):
  workdir, *_ = done
  functions = (
    decoding.Decoder.prefill,
    decoding.Decoder.decode_loop,
  )
  prompt = 'generate.prompt=one two '
  greedy = (prompt, 'generate.temperature=0.0')
  out, samples = generate(file, workdir, capsys, *greedy)
  assert len(samples) == 1
  assert samples[0]['prompt'] == 'one two '
  assert out.startswith(f'one two {samples[0]["text"]}')
  assert 1 <= len(samples[0]['tokens']) <= 6
  assert samples[0]['logprob'] < 0
  assert 'written to' in out
  folder = workdir / 'samples'
  first = (folder / '00000020-generate.jsonl').read_bytes()
  out, again = generate(file, workdir, capsys, *greedy)
  assert again == samples
  # What is there stays, and the line names the new file.
  assert f'written to {folder}/00000020-generate-2.jsonl' in out
  assert (folder / '00000020-generate.jsonl').read_bytes() == first
  before = [function._cache_size() for function in functions]
  for prompt, temperature, seed in (
    ('a', 0.5, 1),
    ('three four five', 1.3, 2),
    ('', 2.0, 3),
  ):
    generate(
      file,
      workdir,
      capsys,
      f'generate.prompt={prompt}',
      f'generate.temperature={temperature}',
      f'generate.seed={seed}',
      'generate.top_k=5',
      'generate.max_tokens=3',
    )
  assert [function._cache_size() for function in functions] == before


def test_generate_several(done, file, capsys):
  workdir, *_ = done
  out, samples = generate(
    file,
    workdir,
    capsys,
    'generate.prompt=six',
    'generate.count=3',
    'generate.temperature=2.0',
  )
  assert len({sample['text'] for sample in samples}) > 1
  for i, sample in enumerate(samples, 1):
    assert f'--- {i} of 3 ---\nsix{sample["text"]}' in out
  out, samples = generate(
    file,
    workdir,
    capsys,
    'generate.prompt=six',
    'generate.count=2',
    'generate.beam_size=4',
    'generate.length_penalty=0.0',
  )
  assert len(samples) == 2
  assert samples[0]['logprob'] >= samples[1]['logprob']
  assert beam.search_loop._cache_size() >= 1


def test_generate_the_best(done, file, capsys):
  out, _ = generate(
    file, done[0], capsys, 'generate.checkpoint=best', 'generate.prompt=a'
  )
  assert 'written to' in out


def test_an_encoder_decoder(folder, capsys):
  file = tiny.experiment(
    folder,
    *tiny.SEQ2SEQ,
    'model.num_layers = 1',
    "evaluate.evaluators = ('exact_match',)",
    'evaluate.exact_match.num_examples = 3',
    'train.num_steps = 20',
    name='seq2seq.py',
  )
  workdir = folder / 'seq2seq'
  assert tiny.run(file, workdir) == 0
  last = tiny.metrics(workdir)[-1]
  assert last['validation/exact_match'] == 0.0
  assert 'validation/exact_match 0.0000' in capsys.readouterr().out
  out, samples = generate(
    file, workdir, capsys, 'generate.prompt=abcde', 'generate.temperature=0.0'
  )
  assert samples[0]['prompt'] == 'abcde'
  assert out.startswith(samples[0]['text'])
  _, samples = generate(
    file, workdir, capsys, 'generate.prompt=abcde', 'generate.beam_size=2'
  )
  assert len(samples) == 1


def test_a_metric_belongs_to_its_step(file, tmp_path, caplog):
  """A checkpoint between evaluations has none."""
  with caplog.at_level(logging.WARNING):
    assert (
      tiny.run(
        file,
        tmp_path / 'run',
        'train.num_steps=4',
        'train.eval_every=2',
        'train.save_every=3',
      )
      == 0
    )
  assert caplog.text.count('only the checkpoints of every 6 steps') == 1
  checkpoints = checkpointer.Checkpointer(tmp_path / 'run' / 'checkpoints')
  losses = {
    line['step']: line['validation/loss']
    for line in tiny.metrics(tmp_path / 'run')
    if 'validation/loss' in line
  }
  assert list(losses) == [2, 4]
  assert checkpoints.steps() == [3, 4]
  assert checkpoints.manifest(3)['metric'] is None
  assert checkpoints.manifest(4)['metric'] == losses[4]
  assert checkpoints.best() == 4
