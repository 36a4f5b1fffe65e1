r"""A published model tuned by each method: loss, memory, time, bytes.

  python tests/tuning_study.py --base=WORKDIR --data_dir=DIR --out=runs/tuning

WORKDIR is what `commands/convert` made of a published model; DIR holds
tiny_shakespeare. All methods see the same batches. LoRA, AdaLoRA (at the end)
and adapters train about as many parameters; the head has as many as it has.
Each run is a process of its own, whose peak memory is asked of the system.
"""

import argparse
import json
import pathlib
import re
import resource
import statistics
import subprocess
import sys
from typing import Any

from gemini_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = (sys.executable, '-m', 'gemini_jax.main')
METHODS = {
  'frozen': {},
  'head': {'tune.method': 'head', 'optimizer.learning_rate': 1e-4},
  'adapter': {'tune.method': 'adapter', 'optimizer.learning_rate': 1e-3},
  'lora': {'tune.method': 'lora', 'optimizer.learning_rate': 1e-3},
  # What PEFT chooses for a Llama.
  'lora, query and value': {
    'tune.method': 'lora',
    'tune.pattern': '/attention/(query|value)/kernel$',
    'optimizer.learning_rate': 1e-3,
  },
  'adalora': {'tune.method': 'adalora', 'optimizer.learning_rate': 2e-3},
  'lora, nf4': {
    'tune.method': 'lora',
    'tune.base': 'nf4',
    'optimizer.learning_rate': 1e-3,
  },
  'full': {'tune.method': 'full', 'optimizer.learning_rate': 5e-5},
}


def main():
  """Runs the methods that are named and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--base', type=pathlib.Path, required=True)
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=120)
  parser.add_argument('--rank', type=int, default=8)
  parser.add_argument('--methods', nargs='*', default=list(METHODS))
  options = parser.parse_args()
  fields = {
    'data.train': "('tfds:tiny_shakespeare#train',)",
    'data.validation': "('tfds:tiny_shakespeare#validation',)",
    'data.data_dir': options.data_dir,
    'data.sequence_length': 128,
    'data.batch_size': 4,
    'evaluate.max_batches': 20,
    'train.log_every': 1,
  }
  width = adapter_width(options.base, options.rank)
  training = {
    'tune.rank': options.rank,
    'tune.width': width,
    'train.num_steps': options.steps,
    'train.eval_every': options.steps,
    'train.save_every': options.steps,
  }
  print(
    '| method | trained | loss | bits a byte | peak GB | s/step | MB |\n'
    '|---|---|---|---|---|---|---|',
    flush=True,
  )
  for method in options.methods:
    if method == 'frozen':
      row = frozen(options.base, fields)
    else:
      workdir = options.out / re.sub(r'\W+', '_', method)
      changes = fields | training | METHODS[method]
      row = tuned(workdir, options.base, changes)
    print(f'| {method} | ' + ' | '.join(row) + ' |', flush=True)


def adapter_width(base: pathlib.Path, rank: int) -> int:
  """The hidden width with which adapters have as many parameters as LoRA."""
  model = config_lib.read(base / config_lib.FILE).model
  head_dim = model.head_dim or model.width // model.num_heads
  heads, keys = (
    head_dim * num
    for num in (model.num_heads, model.num_kv_heads or model.num_heads)
  )
  D, M = model.width, model.mlp_dim or 4 * model.width
  up = (1 + model.gated) * (D + M)
  low_rank = rank * (2 * (D + heads) + 2 * (D + keys) + up + M + D)
  # Two adapters in a layer, each D x width and back.
  return round(low_rank / (4 * D))


def frozen(base: pathlib.Path, fields: dict[str, Any]) -> tuple[str, ...]:
  """The row of the model as it was published."""
  output, _ = run(['--mode=eval', f'--workdir={base}'], fields)
  found = json.loads(output.splitlines()[-1])
  loss, bits = (found[f'validation/{n}'] for n in ('loss', 'bits_per_byte'))
  return '0', f'{loss:.4f}', f'{bits:.4f}', '', '', ''


def tuned(
  workdir: pathlib.Path, base: pathlib.Path, fields: dict[str, Any]
) -> tuple[str, ...]:
  """The row of a method: trains in `workdir`, or goes on there."""
  config = ROOT / 'experiments/fine_tune.py'
  output, peak = run(
    [f'--workdir={workdir}', f'--config={config}:base={base}'], fields
  )
  lines = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  last = {name: value for line in lines for name, value in line.items()}
  seconds = [
    line['train/step_seconds']
    for line in lines[1:]
    if 'train/step_seconds' in line
  ]
  newest = max(
    (path for path in (workdir / 'checkpoints').iterdir()),
    key=lambda path: path.stat().st_mtime,
  )
  num_bytes = sum(
    path.stat().st_size for path in newest.rglob('*') if path.is_file()
  )
  trained = re.search(r'of which ([0-9,]+)', output)
  return (
    trained[1] if trained else 'all',
    f'{last["validation/loss"]:.4f}',
    f'{last["validation/bits_per_byte"]:.4f}',
    f'{peak:.2f}',
    f'{statistics.median(seconds):.2f}',
    f'{num_bytes / 1e6:.1f}',
  )


def run(arguments: list[str], fields: dict[str, Any]) -> tuple[str, float]:
  """The output of the command, and its peak memory in GB.

  The system tells the largest peak of all processes so far; so does a
  process that does nothing but wait for the one that is measured.
  """
  overrides = [f'--config.{name}={value}' for name, value in fields.items()]
  done = subprocess.run(
    [sys.executable, __file__, 'measured', *arguments, *overrides],
    cwd=ROOT,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  *output, peak = done.stdout.splitlines()
  return '\n'.join(output), float(peak)


def measured(arguments: list[str]):
  """The command's output, then the peak memory of its process in GB."""
  done = subprocess.run(
    [*COMMAND, *arguments],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(done.stdout)
  print(usage.ru_maxrss * 1024 / 1e9)


if __name__ == '__main__':
  if sys.argv[1:2] == ['measured']:
    measured(sys.argv[2:])
  else:
    main()
