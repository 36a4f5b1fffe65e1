"""The loop from end to end, through the command line, in this process."""

import json
import logging
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import checkpoint
from gemini_jax.infer import beam, decoding
from gemini_jax.train import loop, metrics


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
  write = metrics.Writer.write
  with pytest.MonkeyPatch.context() as patch, Compilations() as compiled:

    def note(writer, step, values):
      counts.append((step, len(compiled.names)))
      write(writer, step, values)

    patch.setattr(metrics.Writer, 'write', note)
    assert tiny.run(file, folder / 'run', "eval.samples=('one two',)") == 0
  return folder / 'run', compiled.names, counts


def test_the_folder_of_a_run(done):
  workdir, *_ = done
  config = json.loads((workdir / 'config.json').read_text())
  assert config['model']['vocab_size'] == 320, '259 bytes, rounded up to 64s'
  assert (workdir / 'tokenizer').exists()
  assert list((workdir / 'tensorboard').iterdir())
  checkpoints = checkpoint.Checkpointer(workdir / 'checkpoints')
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
    'train/accuracy',
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
    'validation/accuracy',
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
    'ema/',
  ),
  'plateau': (
    (
      'optimizer.plateau_patience=1',
      'optimizer.learning_rate=1e-12',
      'train.eval_every=5',
    ),
    'opt_state/2/scale',
  ),
  'schedule_free': (('optimizer.name=schedule_free',), 'opt_state/1/z/'),
}


@pytest.mark.parametrize('name', OPTIONS)
def test_options_survive_a_restart(name, file, tmp_path):
  """From the checkpoint in the middle: the same lines, the same arrays."""
  overrides, held = OPTIONS[name]
  workdir = tmp_path / 'run'
  assert tiny.run(file, workdir, *overrides) == 0
  expected = tiny.arrays(workdir)
  lines = tiny.metrics(workdir, *metrics.TIMINGS)
  assert any(path.startswith(held) for path in expected), sorted(expected)
  shutil.rmtree(workdir / 'checkpoints' / '00000020')
  assert tiny.run(file, workdir, *overrides) == 0
  assert tiny.metrics(workdir, *metrics.TIMINGS) == lines
  for path, leaf in tiny.arrays(workdir).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  rates = [
    line['train/learning_rate'] for line in lines if 'train/loss' in line
  ]
  if name == 'plateau':
    # A rate this small improves nothing: halved at every evaluation but one.
    assert expected['opt_state/2/scale'] <= 0.25
    assert rates[-1] < 0.5 * rates[0]
  if name == 'average':
    average, param = (
      expected[f'{kind}/token/embedding'] for kind in ('ema', 'params')
    )
    assert not np.array_equal(average, param)


def test_sigterm_saves_and_says_so(file, done, tmp_path, monkeypatch, capsys):
  update = metrics.Progress.update

  def kill(progress, step, values):
    update(progress, step, values)
    if step == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(metrics.Progress, 'update', kill)
    assert tiny.run(file, tmp_path / 'run') == 0
  assert signal.getsignal(signal.SIGTERM) == before
  steps = checkpoint.Checkpointer(tmp_path / 'run' / 'checkpoints').steps()
  assert len(steps) == 1
  assert 4 < steps[0] < 10
  assert f'stopped by a signal; step {steps[0]} is saved' in (
    capsys.readouterr().out
  )
  assert tiny.run(file, tmp_path / 'run') == 0
  assert f'resuming at step {steps[0]}' in capsys.readouterr().out
  assert tiny.metrics(tmp_path / 'run', *metrics.TIMINGS) == tiny.metrics(
    done[0], *metrics.TIMINGS
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
      'generate.checkpoint=best',
      'eval.batch_size=16',
      mode='eval',
    )
    == 0
  )
  again = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert again == pytest.approx(last, rel=1e-5)
  assert tiny.run(file, workdir, 'eval.max_batches=1', mode='eval') == 0
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
    'eval.exact_match = 3',
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
