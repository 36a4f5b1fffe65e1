"""Two processes with four CPU devices each do what one with eight does."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tiny
from gemini_jax.checkpoint import checkpointer
from gemini_jax.train import metrics_file

NUM_STEPS = 20
# Seconds until a group must be done, or have noticed that one of it died.
TIMEOUT = 150


@pytest.fixture
def launch():
  """Starts groups; whatever still runs at the end of a test is killed."""
  groups = []

  def launch(*args, **kwargs):
    groups.append(Group(*args, **kwargs))
    return groups[-1]

  yield launch
  for group in groups:
    group.kill()


class Group:
  """`main` in `count` processes that share eight simulated devices."""

  def __init__(
    self, count, file, workdir, *overrides, mode='train', digests='', last=()
  ):
    """`last` are further arguments of the last process alone."""
    self.logs = [
      workdir.with_name(f'{workdir.name}.{i}.log') for i in range(count)
    ]
    program = ['-m', 'gemini_jax.main']
    if digests:
      program = [str(tiny.ROOT / 'tests' / 'recorder.py'), str(digests)]
    flags = [
      f'--xla_force_host_platform_device_count={8 // count}',
      tiny.ENVIRONMENT['XLA_FLAGS'],
    ]
    environ = (
      os.environ
      | tiny.ENVIRONMENT
      | {
        'XLA_FLAGS': ' '.join(flags),
        'PYTHONPATH': os.pathsep.join(
          [str(tiny.ROOT), str(tiny.ROOT / 'tests')]
        ),
      }
    )
    if count > 1:
      environ |= {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{tiny.free_port()}',
        'JAX_NUM_PROCESSES': str(count),
      }
    self.processes = []
    for i, log in enumerate(self.logs):
      with log.open('w') as output:
        self.processes.append(
          subprocess.Popen(
            [
              sys.executable,
              *program,
              *tiny.arguments(file, workdir, *overrides, mode=mode),
              *(last if i == count - 1 else ()),
            ],
            cwd=tiny.ROOT,
            env=environ | ({'JAX_PROCESS_ID': str(i)} if count > 1 else {}),
            stdout=output,
            stderr=subprocess.STDOUT,
          )
        )

  def wait(self):
    """The exit codes."""
    end = time.monotonic() + TIMEOUT
    return [
      process.wait(max(0.1, end - time.monotonic()))
      for process in self.processes
    ]

  def output(self):
    """What each process printed."""
    return [log.read_text() for log in self.logs]

  def done(self):
    """Waits for a good end; what each process printed."""
    codes = self.wait()
    output = self.output()
    assert codes == [0] * len(codes), '\n----\n'.join(output)
    return output

  def at_step(self, step):
    """Waits until the first process has told of `step`."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
      told = re.findall(r'^step (\d+)/', self.logs[0].read_text(), re.M)
      if told and int(told[-1]) >= step:
        return
      assert all(p.poll() is None for p in self.processes), self.output()
      time.sleep(0.01)
    raise TimeoutError(f'step {step}: {self.output()}')

  def saved(self, workdir, step):
    """Waits until the checkpoint of `step` counts."""
    manifest = workdir / 'checkpoints' / f'{step:08d}' / 'manifest.json'
    end = time.monotonic() + TIMEOUT
    while not manifest.exists():
      assert all(p.poll() is None for p in self.processes), self.output()
      assert time.monotonic() < end, f'{manifest}: {self.output()}'
      time.sleep(0.01)

  def kill(self):
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('multiprocess')


@pytest.fixture(scope='module')
def file(folder):
  return tiny.experiment(
    folder,
    f'train.num_steps = {NUM_STEPS}',
    'train.log_every = 1',
    'train.save_every = 5',
    'train.eval_every = 10',
    'train.keep_last = 9',
    'evaluate.batch_size = 16',
    "optimizer.schedule = 'constant'",
    'generate.temperature = 0.0',
    'parallel.data = 2',
    'parallel.fsdp = 2',
    'parallel.tensor = 2',
  )


@pytest.fixture(scope='module')
def whole(folder, file):
  """Folders of uninterrupted runs of one and of two processes."""
  folders = {}
  for count in (1, 2):
    folders[count] = folder / f'whole{count}'
    group = Group(
      count, file, folders[count], digests=folder / f'digests{count}'
    )
    try:
      folders[count, 'output'] = group.done()
    finally:
      group.kill()
  return folders


def curve(workdir):
  return tiny.metrics(workdir, *metrics_file.TIMINGS)


def assert_close(workdir, expected):
  lines, others = curve(workdir), curve(expected)
  assert [line['step'] for line in lines] == [line['step'] for line in others]
  for line, other in zip(lines, others, strict=True):
    assert line == pytest.approx(other, rel=1e-6)


def test_the_same_run_as_one_process(whole, folder):
  assert_close(whole[2], whole[1])
  digests = [
    (folder / f'digests{count}').read_text().splitlines() for count in (1, 2)
  ]
  assert digests[0] == digests[1]
  # One more for the compilation, and what waits on the devices at the end.
  assert len(set(digests[0])) >= NUM_STEPS
  # Nobody else's output is shown, and every line is written once.
  first, second = whole[2, 'output']
  assert 'of 2 processes' in first and 'is done' in first
  assert 'step 1/' in first and 'step 1/' not in second


def test_a_tuned_run_goes_on_in_one_process(whole, launch, folder, file):
  """Of a base in 4 bits, which two processes read and compare alike."""
  options = (
    'train.num_steps=6',
    f'train.init_from={folder}/whole2',
    'tune.method=lora',
    'tune.base=nf4',
    'tune.rank=2',
  )
  for count in (1, 2):
    group = launch(count, file, folder / f'tuned{count}', *options)
    assert 'are trained' in group.done()[0]
  assert_close(folder / 'tuned2', folder / 'tuned1')
  fingerprints = {
    checkpointer.Checkpointer(
      folder / f'tuned{count}' / 'checkpoints'
    ).manifest(6)['base']['fingerprint']
    for count in (1, 2)
  }
  assert len(fingerprints) == 1
  more = ('train.num_steps=8', *options[1:])
  for count in (1, 2):
    group = launch(count, file, folder / 'tuned2', *more)
    assert 'resuming at step' in group.done()[0]
    more = ('train.num_steps=10', *options[1:])


def test_processes_that_need_the_whole_batch(whole, launch, folder, file):
  """Only the length of the sequences is split between them."""
  launch(
    2,
    file,
    folder / 'sequence',
    'parallel.data=1',
    'parallel.fsdp=1',
    'parallel.sequence=4',
    'train.num_steps=3',
    digests=folder / 'digests_sequence',
  ).done()
  seen, expected = (
    (folder / f'digests{name}').read_text().splitlines()
    for name in ('_sequence', 1)
  )
  assert len(seen) > 3
  assert seen == expected[: len(seen)]
  losses = [
    [line['train/loss'] for line in curve(path) if 'train/loss' in line][:3]
    for path in (folder / 'sequence', whole[1])
  ]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def back_to(workdir, whole, step):
  """A copy of a run that has nothing newer than `step`."""
  shutil.copytree(whole, workdir)
  for path in (workdir / 'checkpoints').iterdir():
    if int(path.name) > step:
      shutil.rmtree(path)
  return workdir


def test_two_go_on_where_one_stopped_and_one_where_two_did(
  whole, launch, folder, file
):
  """The newest checkpoint is damaged and one process sets it aside."""
  workdir = back_to(folder / 'on_two', whole[1], 10)
  newest = workdir / 'checkpoints' / '00000010'
  largest = max(
    (newest / 'state').rglob('*'),
    key=lambda path: path.is_file() and path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  output = launch(2, file, workdir).done()
  assert sum(text.count('; set aside as') for text in output) == 1
  assert newest.with_name('00000010.damaged').is_dir()
  assert 'resuming at step 5\n' in output[0]
  assert_close(workdir, whole[1])

  workdir = back_to(folder / 'on_one', whole[2], 10)
  mesh = 'parallel.data=1', 'parallel.fsdp=8', 'parallel.tensor=1'
  (output,) = launch(1, file, workdir, *mesh).done()
  assert 'resuming at step 10\n' in output
  assert_close(workdir, whole[2])


def assert_same(workdir, expected):
  assert curve(workdir) == curve(expected)
  arrays, others = tiny.arrays(workdir), tiny.arrays(expected)
  assert arrays.keys() == others.keys()
  for path, leaf in arrays.items():
    np.testing.assert_array_equal(leaf, others[path], err_msg=path)


def test_one_is_stopped_or_killed_and_both_start_again(
  whole, launch, folder, file
):
  """Told to stop, one tells the other, and both save once."""
  workdir, digests = folder / 'stopped', folder / 'digests_stopped'
  checkpoints = checkpointer.Checkpointer(workdir / 'checkpoints')
  begin, stops = 0, set()
  for index, step, number in (
    (1, 3, signal.SIGTERM),
    (1, 6, signal.SIGKILL),
    (0, 11, signal.SIGKILL),
    (0, 13, signal.SIGTERM),
  ):
    group = launch(2, file, workdir, digests=digests)
    group.at_step(step)
    if number == signal.SIGKILL:
      # Written beside the steps, which do not wait for it.
      group.saved(workdir, step - 1)
    group.processes[index].send_signal(number)
    codes, output = group.wait(), group.output()
    assert f'at step {begin}\n' in output[0], output
    begin = checkpoints.steps()[-1]
    if number == signal.SIGKILL:
      assert codes[index] == -number and codes[1 - index] != 0, output
      assert step - 1 <= begin < NUM_STEPS
    else:
      assert codes == [0, 0], output
      assert step < begin < NUM_STEPS
      assert f'stopped by a signal; step {begin} is saved' in output[0]
      stops.add(begin)
    assert checkpoints.steps() == sorted({*range(5, begin + 1, 5), *stops})
  output = launch(2, file, workdir).done()
  assert f'resuming at step {begin}\n' in output[0]
  assert_same(workdir, whole[2])


def test_generate_and_eval(whole, launch, folder, file):
  prompt = 'generate.prompt=three four', 'generate.beam_size=2'
  texts = []
  for count in (1, 2):
    group = launch(count, file, whole[2], *prompt, mode='generate')
    texts.append(group.done()[0].split('written to')[0])
  shown = [text[text.index('three four') :] for text in texts]
  assert shown[0] == shown[1]
  first, second = launch(2, file, whole[2], mode='eval').done()
  values = json.loads(first.splitlines()[-1])
  assert values == pytest.approx(curve(whole[2])[-1], rel=1e-6)
  assert 'validation' not in second


@pytest.mark.parametrize(
  ('last', 'message'),
  [
    ('--config.train.num_steps=9', 'is not the config of every process'),
    ('--workdir={folder}/elsewhere', 'a folder that all processes share'),
  ],
)
def test_processes_that_differ_are_refused(last, message, launch, folder, file):
  group = launch(2, file, folder / 'differ', last=[last.format(folder=folder)])
  assert group.wait() == [2, 2], group.output()
  assert all(message in text for text in group.output())
