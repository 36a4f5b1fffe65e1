r"""Does a model of two noisy senses beat either, and do without one?

  python tests/fusion_study.py --out=runs/fusion --data_dir=DIR [--seeds=0,1,2]

Trains experiments/digit_fusion.py with each input alone, with both, and with
both and modality dropout; tests those of both also without one of them. Goes
on where it was stopped. DIR is where TFDS keeps its data sets.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
VARIANTS = ('image', 'audio', 'both', 'both,dropout=0.8')
MISSING = ('', 'image', 'audio')


def main(argv):
  parser = argparse.ArgumentParser()
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('overrides', nargs='*')
  options = parser.parse_args(argv)
  options.out.mkdir(parents=True, exist_ok=True)
  found = {}
  for seed in options.seeds.split(','):
    for variant in VARIANTS:
      for missing in MISSING if variant.startswith('both') else MISSING[:1]:
        accuracy = _accuracy(options, variant, seed, missing)
        found.setdefault((variant, missing), []).append(accuracy)
        told = f'seed {seed}  {variant}  without {missing or "none"}'
        print(f'{told}  {accuracy:.1%}', flush=True)
  print('\n| trained on | tested without | each seed | mean |')
  print('| --- | --- | --- | --- |')
  for (variant, missing), accuracies in found.items():
    each = ', '.join(f'{100 * accuracy:.1f}' for accuracy in accuracies)
    mean = 100 * statistics.mean(accuracies)
    print(f'| {variant} | {missing} | {each} | {mean:.1f} % |')


def _accuracy(options, variant, seed, missing):
  """Of the test split, by a run that is trained if it is not there."""
  workdir = options.out / f'{variant}-{seed}'
  result = options.out / f'{variant}-{seed}-{missing}.json'
  if result.exists():
    return json.loads(result.read_text())
  line = [
    *(sys.executable, '-m', 'gemini_jax.main', f'--workdir={workdir}'),
    f'--config={ROOT}/experiments/digit_fusion.py:inputs={variant}',
    *(f'--config.data.data_dir={options.data_dir}', *options.overrides),
    f'--config.train.seed={seed}',
  ]
  with (options.out / f'{variant}-{seed}.log').open('a') as log:
    subprocess.run(line, stdout=log, stderr=log, check=True)
    found = (workdir / 'metrics.jsonl').read_text()
    if missing:
      line += ['--mode=eval', f"--config.data.drop_kinds=('{missing}',)"]
      found = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=log, check=True, text=True
      ).stdout
  accuracy = json.loads(found.splitlines()[-1])['test/accuracy']
  result.write_text(json.dumps(accuracy))
  return accuracy


if __name__ == '__main__':
  main(sys.argv[1:])
