r"""Peak memory of --mode=generate, in bytes of the parameters.

  python tests/generate_memory_study.py FOLDER [--config.FIELD=value ...]

Makes a run of the sizes of experiments/gpt2_124m.py in FOLDER (its parameters
as they are drawn, a tokenizer of bytes, the state of AdamW), generates with
it, and prints the peak beyond what the interpreter takes with its imports.
"""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
_MAKE = """
import sys
from gemini_jax import command
from gemini_jax.parallel import sharding
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib

config = command.parse(sys.argv, {}).config
session = session_lib.open_session(config, 'run')
with sharding.use(session.run.mesh):
  state = state_lib.init_state(
    session.run.config,
    session.run.model,
    session.optimizer,
    session.abstract,
  )
  session.run.checkpoints.save(1, state, {})
session.run.checkpoints.close()
session.write_config()
"""
_IMPORT = """
import jax
import gemini_jax.main
from gemini_jax.commands import generate
from gemini_jax.plan import plan
from gemini_jax.train import loop
jax.numpy.zeros(1).block_until_ready()
"""
_COUNT = """
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
import jax, pathlib
run = run_lib.open_run(config_lib.read(pathlib.Path('run/config.json')), 'run')
from gemini_jax.models import build
leaves = jax.tree.leaves(build.abstract_params(run.model, run.mesh))
print(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))
"""
# Small: it is the sizes of the model that count.
_OVERRIDES = (
  "data.train=('text:texts.txt',)",
  'data.validation=()',
  'data.test=()',
  'data.cache_dir=tokens',
  'tokenizer.kind=bytes',
  'data.batch_size=5',
)


def measure(folder: pathlib.Path, *options: str) -> float:
  """The peak, in bytes of the parameters; the figures are printed."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'texts.txt').write_text('a text of a few words\n' * 100)
  if not (folder / 'run' / 'checkpoints').exists():
    experiment = ROOT / 'experiments' / 'gpt2_124m.py'
    _run(
      folder,
      *('-c', _MAKE, f'--config={experiment}'),
      *(f'--config.{override}' for override in _OVERRIDES),
    )
  base, _ = _run(folder, '-c', _IMPORT)
  _, count = _run(folder, '-c', _COUNT)
  peak, output = _run(
    folder,
    *('-m', 'gemini_jax.main', '--workdir=run', '--mode=generate'),
    '--config.generate.prompt=a text',
    *options,
  )
  num_bytes = int(count.split()[-1])
  times = (peak - base) / num_bytes
  print(output[-300:])
  print(
    f'parameters {num_bytes / 1e6:,.0f} MB, imports {base / 1e6:,.0f} MB, '
    f'peak {peak / 1e6:,.0f} MB: {times:.2f} times the '
    'parameters beyond the imports'
  )
  return times


def _run(folder: pathlib.Path, *arguments: str) -> tuple[int, str]:
  """Peak bytes of a Python process, and its output."""
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XDG_CACHE_HOME': str(folder / 'cache'),
    # Those of the tests: many devices, and programs that nobody optimised.
    'XLA_FLAGS': '',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
  }
  with subprocess.Popen(
    [sys.executable, '-P', *arguments],
    cwd=folder,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(output)
  return usage.ru_maxrss * 1024, output


if __name__ == '__main__':
  measure(pathlib.Path(sys.argv[1]).absolute(), *sys.argv[2:])
