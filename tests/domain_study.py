r"""Are domains learned by adapters, and is nothing else forgotten?

  python tests/domain_study.py --out=runs/domains --data_dir=DIR

Trains experiments/domain_transfer.py: the backbone; each domain by an adapter
of the backbone, by tuning all of it, and from nothing; then the domains one
after another, by tuning all of what was tuned before. What the backbone and the
first adapter knew before is evaluated again after the others. Goes on where it
was stopped. DIR is where TFDS keeps its data sets.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import gate_study
from experiments import domain_transfer

ROOT = pathlib.Path(__file__).parents[1]
BACKBONE, *DOMAINS = domain_transfer.DOMAINS


def main(argv):
  parser = argparse.ArgumentParser()
  parser.add_argument('--out', required=True, type=pathlib.Path)
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--method', default='lora', help='lora or adapter')
  parser.add_argument('overrides', nargs='*')
  options = parser.parse_args(argv)
  options.out.mkdir(parents=True, exist_ok=True)
  adapter = f'{DOMAINS[0]}-{options.method}'
  before, first = [train(options, 'backbone', BACKBONE)], []
  print(f'| domain | from nothing | {options.method} | all parameters |')
  print('| --- | --- | --- | --- |')
  for domain in DOMAINS:
    rows = (
      (f'{domain}-nothing', '', 'full'),
      (f'{domain}-{options.method}', 'backbone', options.method),
      (f'{domain}-full', 'backbone', 'full'),
    )
    accuracies = [train(options, name, domain, *how) for name, *how in rows]
    print(
      f'| {domain} | ' + ' | '.join(map(percent, accuracies)) + ' |', flush=True
    )
    if domain == DOMAINS[0]:
      first.append(evaluated(options, adapter, domain))
  before.append(evaluated(options, 'backbone', BACKBONE))
  first.append(evaluated(options, adapter, DOMAINS[0]))
  print(f'\nupdates of {added(options, adapter)} of the backbone')
  for name, values in ((BACKBONE, before), (f'{DOMAINS[0]} by them', first)):
    print(f'{name}, before and after: ' + ', '.join(map(percent, values)))
  print(
    '\n| all parameters tuned to | ' + ' | '.join((BACKBONE, *DOMAINS)) + ' |'
  )
  print('| --- ' * (2 + len(DOMAINS)) + '|')
  last, learned = 'backbone', [BACKBONE]
  for domain in DOMAINS:
    name = f'{domain}-full' if last == 'backbone' else f'{last}-{domain}'
    train(options, name, domain, last, 'full')
    last = name
    learned.append(domain)
    accuracies = [percent(evaluated(options, name, other)) for other in learned]
    print(f'| {domain} | ' + ' | '.join(accuracies) + ' |', flush=True)


def command(options, name, domain, base='', method=''):
  """The line of the command of a run."""
  folder = base and options.out / base
  parts = {'domain': domain, 'base': folder, 'method': method}
  arguments = ','.join(
    f'{key}={value}' for key, value in parts.items() if value
  )
  return [
    *(sys.executable, '-m', 'gemini_jax.main'),
    f'--workdir={options.out / name}',
    f'--config={ROOT}/experiments/domain_transfer.py:{arguments}',
    *(f'--config.data.data_dir={options.data_dir}', *options.overrides),
  ]


def train(options, name, domain, base='', method=''):
  """The test accuracy of a run, which is trained if it is not there."""
  with (options.out / f'{name}.log').open('a') as log:
    subprocess.run(
      command(options, name, domain, base, method),
      stdout=log,
      stderr=log,
      check=True,
    )
  return gate_study.newest(options.out / name)['test/accuracy']


def evaluated(options, name, domain):
  """The test accuracy of a trained run on the data of a domain."""
  task, _, test = domain_transfer.DOMAINS[domain]
  line = [
    *(sys.executable, '-m', 'gemini_jax.main', '--mode=eval'),
    f'--workdir={options.out / name}',
    f'--config.data.tasks={(task,)}',
    f'--config.data.test={(test,)}',
    *options.overrides,
  ]
  with (options.out / f'{name}.log').open('a') as log:
    printed = subprocess.run(
      line, stdout=subprocess.PIPE, stderr=log, check=True, text=True
    ).stdout
  return json.loads(printed.splitlines()[-1])['test/accuracy']


def added(options, name):
  """What a run has trained, as a share of its backbone, by its log."""
  text = (options.out / f'{name}.log').read_text()
  match = re.search(r'([0-9,]+) parameters, of which ([0-9,]+)', text)
  assert match, f'{name}.log does not say how many parameters are trained'
  total, own = (int(number.replace(',', '')) for number in match.groups())
  return f'{own / (total - own):.2%}'


def percent(value):
  return f'{100 * value:.1f} %'


if __name__ == '__main__':
  main(sys.argv[1:])
