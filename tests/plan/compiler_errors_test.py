"""Compilers that refuse: for want of memory, or for a reason of their own."""

import json
import shlex

import jax
import pytest

import tiny
from gemini_jax.plan import compile as compile_lib
from gemini_jax.plan import compiler_errors
from gemini_jax.train import step as step_lib

TOTAL = (
  'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for '
  'HLO temporaries (30.00G) exceeds available HBM (15.75G).'
)
ONE_ARRAY = (
  'RESOURCE_EXHAUSTED: Allocation (size=21474836480) would exceed memory '
  '(size=17179869184) :: %s0 = inlined_call_operand.hbm'
)
HBM = (
  'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
  'memory space hbm. Used 20.63G of 15.75G hbm. Exceeded hbm capacity by '
  '4.88G.\n\nTotal hbm usage >= 20.88G:'
)
EARLY = (
  'RESOURCE_EXHAUSTED: Compilation failure: Aborting compilation early because '
  "it's unlikely to have enough device memory. Requires 3.5T, has 14.49G "
  'available. If more detailed logging is desired, set --xla_tpu_x=-1'
)
VMEM = (
  'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.00M of '
  '16.00M vmem.'
)
INVALID = 'INVALID_ARGUMENT: Invalid TPU program.'


def test_bytes_are_read_from_what_libtpu_says():
  assert compiler_errors.needed(TOTAL) == 30 * 2**30
  # Of one array alone: the program needs more.
  assert compiler_errors.needed(ONE_ARRAY) is None
  assert compiler_errors.needed(HBM) == int(20.63 * 2**30)
  assert compiler_errors.needed(EARLY) == int(3.5 * 2**40)
  assert compiler_errors.needed('Used 512 of 256 hbm') == 512
  assert compiler_errors.needed('RESOURCE_EXHAUSTED: out of memory') is None
  assert compiler_errors.needed(VMEM) is None


def test_only_the_memory_of_the_device_is_a_matter_of_size():
  assert compiler_errors.is_for_memory(TOTAL)
  assert compiler_errors.is_for_memory(ONE_ARRAY)
  assert compiler_errors.is_for_memory(HBM)
  assert compiler_errors.is_for_memory(EARLY)
  assert compiler_errors.is_for_memory('RESOURCE_EXHAUSTED: out of memory')
  assert not compiler_errors.is_for_memory(VMEM)
  assert not compiler_errors.is_for_memory(INVALID)


def test_a_reason_is_one_line():
  assert compiler_errors.reason('\n  INTERNAL: kernel.\nat line 3\n') == (
    'INTERNAL: kernel.'
  )
  assert len(compiler_errors.reason('x' * 10_000)) <= 400
  assert compiler_errors.reason('')


class Compiler:
  """XLA for CPU that refuses as libtpu does what needs more than `limit`."""

  def __init__(self, lowered, limit):
    self.lowered = lowered
    self.limit = limit

  def compile(self, compiler_options):
    options = dict(compiler_options)
    goes_on = options.pop('xla_tpu_no_crash_on_oom', False)
    compiled = self.lowered.compile(compiler_options=options)
    peak = compile_lib._peak(compiled.memory_analysis(), 'cpu')
    if peak <= self.limit:
      return compiled
    raise jax.errors.JaxRuntimeError(
      INVALID
      if goes_on
      else 'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory '
      f'required for HLO temporaries ({peak / 2**20:.2f}M) exceeds available '
      f'HBM ({self.limit / 2**20:.2f}M).'
    )


@pytest.fixture
def refuse(monkeypatch):
  """Called with bytes, makes libtpu's refusals of what needs more."""
  jitted = step_lib.jitted

  def install(limit):
    def limited(*args):
      step = jitted(*args)

      class Step:
        def lower(self, *args):
          return Compiler(step.lower(*args), limit)

      return Step()

    monkeypatch.setattr(step_lib, 'jitted', limited)
    monkeypatch.setattr(
      compile_lib, '_options', lambda *args: {'xla_tpu_no_crash_on_oom': True}
    )

  return install


EXPERIMENT = (
  'model.vocab_size = 64',
  'model.num_layers = 6',
  'data.sequence_length = 24',
  'plan.decode_batch_size = 0',
)


def plan(file, folder, *overrides):
  """The exit code and plan.json."""
  code = tiny.run(file, folder, *overrides, mode='plan')
  return code, json.loads((folder / 'plan.json').read_text())


def test_what_libtpu_refuses_gets_its_bytes_and_changes_that_fit(
  tmp_path, capsys, refuse
):
  file = tiny.experiment(tmp_path, *EXPERIMENT)
  code, before = plan(file, tmp_path / 'a')
  assert code == 0
  limit = int(before['bytes_per_device'] * 0.8)
  refuse(limit)
  capsys.readouterr()
  memory = f'plan.device_memory_bytes={limit}'
  code, result = plan(file, tmp_path / 'b', memory)
  assert code == 1
  assert not result['fits']
  assert result['bytes_per_device'] == pytest.approx(
    before['bytes_per_device'], rel=0.01
  )
  assert 'HBM' in result['problem']
  # Of what was never compiled nothing else is known.
  assert result['executed_flops_per_step'] is None
  assert result['memory_traffic_per_device'] is None
  shown = capsys.readouterr().out
  assert 'DOES NOT FIT' in shown
  assert 'the compiler says: RESOURCE_EXHAUSTED' in shown
  assert 'collectives' not in shown
  flags = result['suggestions'][0]['flags']
  assert flags in shown
  changes = [flag.removeprefix('--config.') for flag in shlex.split(flags)]
  code, after = plan(file, tmp_path / 'c', memory, *changes)
  assert code == 0
  assert after['bytes_per_device'] <= limit


def stop(monkeypatch, error):
  """Every compilation of a train step ends with the error."""

  class Step:
    def lower(self, *args):
      return self

    def compile(self, compiler_options):
      raise error

  monkeypatch.setattr(step_lib, 'jitted', lambda *args: Step())


def test_another_reason_is_one_line_and_exit_code_1(
  tmp_path, capsys, monkeypatch
):
  file = tiny.experiment(tmp_path, *EXPERIMENT)
  message = 'INTERNAL: Mosaic failed to compile TPU kernel: no.\n\nThe MLIR'
  for told in (message, VMEM, INVALID):
    stop(monkeypatch, jax.errors.JaxRuntimeError(told))
    assert tiny.run(file, tmp_path / 'run', mode='plan') == 1
    assert capsys.readouterr().err == (
      f'error: the compiler refuses the train step: {told.splitlines()[0]}\n'
    )
    assert not (tmp_path / 'run').exists()


def test_errors_of_our_own_are_not_swallowed(tmp_path, monkeypatch):
  file = tiny.experiment(tmp_path, *EXPERIMENT)
  stop(monkeypatch, RuntimeError('RESOURCE_EXHAUSTED, says a bug of ours'))
  with pytest.raises(RuntimeError, match='of ours'):
    tiny.run(file, tmp_path / 'run', mode='plan')
