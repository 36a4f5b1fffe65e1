r"""Topics, tones and coherence of what a latent writes, by the grammar's rule.

  python tests/grammar_study.py --out=runs/grammar [--seeds=3] [--steer]

Trains experiments/text_vae.py on the grammar three times for each seed: a
language model, the recommended VAE, and the VAE under the plain bound from the
start, whose latent should collapse. Two trainings run side by side, a processor
each. Then 1,000 texts of each at temperature 0.5 are judged by the rule. With
--steer the models of seed 0, which must be there, are steered instead, by
400 labels, at temperature 0.3.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import grammar

ROOT = pathlib.Path(__file__).parents[1]
KINDS = ('none', 'cyclical', 'constant')
# Of a model that one processor trains in a minute or two.
SIZES = (
  'model.width=64',
  'model.mlp_dim=256',
  'model.gated=False',
  'model.scan_layers=False',
  'train.eval_every=1500',
  'train.save_every=1500',
  'evaluate.likelihood.importance_samples=500',
  'evaluate.likelihood.num_examples=200',
)
NUM_TEXTS, TEMPERATURE = 1000, 0.5


def command(out, kind, seed, mode, *options):
  """The command line of one run, on one processor."""
  file = f'experiments/text_vae.py:jsonl={out}/grammar.jsonl,latent={kind}'
  workdir = out / f'{kind}-{seed}'
  return [
    sys.executable,
    '-m',
    'gemini_jax.main',
    f'--config={file}',
    f'--workdir={workdir}',
    f'--mode={mode}',
    f'--config.train.seed={seed}',
    *(f'--config.{option}' for option in (*SIZES, *options)),
  ]


def run(processor, *args):
  """Runs a command of ours to its end."""
  done = subprocess.run(
    command(*args),
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
    preexec_fn=lambda: os.sched_setaffinity(0, {processor}),
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])


def sample(processor, out, kind, seed, *options):
  """The texts of a run, judged."""
  run(
    processor,
    out,
    kind,
    seed,
    'generate',
    f'generate.count={NUM_TEXTS}',
    f'generate.temperature={TEMPERATURE}',
    'generate.max_tokens=20',
    *options,
  )


def figures(out, kind, seed):
  """What a run measured of itself, and what the rule says of its texts."""
  workdir = out / f'{kind}-{seed}'
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  paths = (workdir / 'samples').glob('*-generate*.jsonl')
  path = max(paths, key=lambda path: (len(path.name), path.name))
  texts = [json.loads(line)['text'] for line in path.read_text().splitlines()]
  return {
    'kind': kind,
    'seed': seed,
    **{
      name: last.get(f'test/{name}')
      for name in ('nll', 'kl', 'mi', 'active_units')
    },
    **judged(texts),
  }


def judged(texts):
  """Percent coherent, bits of topics, percent positive."""
  verdicts = [grammar.judge(text) for text in texts]
  return {
    'coherent': 100 * sum(v.coherent for v in verdicts) / len(verdicts),
    'topic_bits': grammar.entropy_of(v.topic for v in verdicts),
    'positive': 100
    * sum(v.tone == 'positive' for v in verdicts)
    / len(verdicts),
    't3': 100 * sum(v.topic == 't3' for v in verdicts) / len(verdicts),
  }


def one(processor, out, kind, seed):
  """Trains, samples and judges one model."""
  begin = time.monotonic()
  run(processor, out, kind, seed, 'train')
  trained = time.monotonic()
  sample(processor, out, kind, seed)
  found = figures(out, kind, seed)
  found['seconds'] = [round(trained - begin), round(time.monotonic() - trained)]
  return found


# What is asked for, of which model, and how.
_TONE, _TOPIC = 'tone=positive', 'topic=t3'
STEERED = {
  'cyclical': (
    ('', ''),
    *((_TONE, m) for m in ('ode', 'gradient', 'vector', 'best_of')),
    *((_TONE, m) for m in ('fudge', 'pplm')),
    (_TOPIC, 'ode'),
    (f'{_TONE},{_TOPIC}', 'ode'),
  ),
  'constant': (('', ''), (_TONE, 'ode')),
  'none': (('', ''), (_TONE, 'fudge'), (_TONE, 'pplm')),
}


def steered(processor, out, kind):
  """Prints what the rule says of a model's texts, by wish and method."""
  for wish, method in STEERED[kind]:
    begin = time.monotonic()
    options = [f'generate.steer={wish}', f'generate.steer_method={method}']
    sample(
      processor,
      out,
      kind,
      0,
      'generate.temperature=0.3',
      *(options if wish else ()),
    )
    found = figures(out, kind, 0)
    keep = ('kind', 'coherent', 'topic_bits', 'positive', 't3')
    shown = {'wish': wish or 'none', 'method': method or 'none'} | {
      name: found[name] for name in keep
    }
    print(row(shown | {'seconds': time.monotonic() - begin}), flush=True)


def main():
  """Runs the study and prints its table; the last line is JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steer', action='store_true')
  flags = parser.parse_args()
  out = flags.out.resolve()
  out.mkdir(parents=True, exist_ok=True)
  grammar.write(out / 'grammar.jsonl', 20_000)
  begin = time.monotonic()
  processors = sorted(os.sched_getaffinity(0))
  if flags.steer:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      parts = [('cyclical',), ('constant', 'none')]
      list(
        pool.map(
          lambda processor, kinds: [
            steered(processor, out, kind) for kind in kinds
          ],
          (processors * 2)[:2],
          parts,
        )
      )
    return
  free = list(processors)
  jobs = [(kind, seed) for kind in KINDS[::-1] for seed in range(flags.seeds)]

  def work(job):
    processor = free.pop()
    try:
      found = one(processor, out, *job)
    finally:
      free.append(processor)
    print(row(found), flush=True)
    return found

  with concurrent.futures.ThreadPoolExecutor(len(processors)) as pool:
    found = list(pool.map(work, jobs))
  print(
    json.dumps(
      {
        'entropy': grammar.entropy(),
        'topic_bits': grammar.topic_entropy(),
        'seconds': time.monotonic() - begin,
        'models': found,
      }
    )
  )


def row(found):
  """One line of the table."""
  return '  '.join(
    f'{name} {value:.2f}' if isinstance(value, float) else f'{name} {value}'
    for name, value in found.items()
  )


if __name__ == '__main__':
  main()
