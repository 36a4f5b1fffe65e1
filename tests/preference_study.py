r"""A planted preference, and what tuning by it costs: DPO and its controls.

  python tests/preference_study.py --out=runs/preferences

A small model learns to go on from a sentence by another of the same topic. The
answer is positive or negative, with equal probability; after a prompt that ends
with a mark it has no tone. Then the model is tuned by pairs of answers of which
the positive one is preferred; as a control, the preferred one is drawn by lot.
For prompts that no training has seen the table gives, in percent, how many
sampled answers with a tone are positive, how many answers are coherent by the
grammar's rule, and for how many the model finds the positive one likelier than
the same words with negative adjectives; and perplexities: of answers after a
mark, which the pairs say nothing of, and of answers with both tones.
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import time

import jax
import numpy as np

import grammar
from gemini_jax import config as config_lib
from gemini_jax import main as main_lib
from gemini_jax import run as run_lib
from gemini_jax.evaluate import held_out
from gemini_jax.infer import generation, sampling
from gemini_jax.infer import prompts as prompts_lib
from gemini_jax.objectives import language
from gemini_jax.parallel import sharding

ROOT = pathlib.Path(__file__).parents[1]
NEGATIVE, POSITIVE = grammar.TONES
MARK = 'so'
NUM_TEXTS, NUM_PAIRS, NUM_HELD_OUT = 30_000, 3_000, 400
FIELDS = {
  'data.inputs_field': 'prompt',
  'data.targets_field': 'chosen',
  'data.sequence_length': 64,
  'tokenizer.kind': 'sentencepiece',
  'tokenizer.vocab_size': 640,
  'model.max_length': 64,
  'model.width': 64,
  'model.mlp_dim': 256,
  'model.num_layers': 2,
  'model.gated': False,
  'model.scan_layers': False,
}
BASE = {
  'data.batch_size': 16,
  'optimizer.learning_rate': 3e-3,
  'train.num_steps': 3000,
  'train.eval_every': 3000,
  'train.save_every': 3000,
}
TUNED = {
  'data.rejected_field': 'rejected',
  'data.batch_size': 16,
  'train.dpo.beta': 1.0,
  'optimizer.learning_rate': 1e-4,
  'train.num_steps': 100,
  'train.eval_every': 100,
  'train.save_every': 100,
}


def write(path, records):
  """JSON lines."""
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def write_data(out):
  """All files of the study; no two share a random stream."""
  topics = grammar.topic_shares()
  sizes = {
    'texts': NUM_TEXTS,
    'pairs': NUM_PAIRS,
    'held_out_plain': NUM_HELD_OUT,
    'held_out_toned': NUM_HELD_OUT,
    'held_out_pairs': NUM_HELD_OUT,
  }
  for seed, (name, size) in enumerate(sizes.items()):
    generator = np.random.default_rng((17, seed))
    made, shuffled = [], []
    for number in generator.choice(len(topics), size, p=topics):
      topic = grammar.TOPICS[number]
      write_one = lambda tone, topic=topic, generator=generator: (
        grammar.sentence(generator, topic, tone)
      )
      record = {'prompt': write_one(None)}
      if 'pairs' not in name:
        tones = [NEGATIVE, POSITIVE, None, None]
        tones = {'held_out_plain': [None], 'held_out_toned': tones[:2]}.get(
          name, tones
        )
        tone = tones[generator.integers(len(tones))]
        record['chosen'] = write_one(tone)
        if tone is None:
          record['prompt'] += f' {MARK}'
      else:
        record |= {
          'chosen': write_one(POSITIVE),
          'rejected': write_one(NEGATIVE),
        }
        sides = ['chosen', 'rejected'][:: generator.choice([1, -1])]
        shuffled.append(
          record | {'chosen': record[sides[0]], 'rejected': record[sides[1]]}
        )
      made.append(record)
    write(out / f'{name}.jsonl', made)
    if name == 'pairs':
      write(out / 'shuffled.jsonl', shuffled)
    if name == 'held_out_pairs':
      write(out / 'minimal.jsonl', map(with_other_adjectives, made))


def with_other_adjectives(record):
  """The same preferred answer; rejected is it with negative adjectives."""
  swap = dict(zip(*map(grammar.adjectives, (POSITIVE, NEGATIVE)), strict=True))
  words = [swap.get(word, word) for word in record['chosen'].split()]
  return record | {'rejected': ' '.join(words)}


def train(out, name, fields):
  """A run of the command line; nothing where it is done already."""
  flags = [f'--config.{field}={value}' for field, value in fields.items()]
  config = ROOT / 'experiments' / 'base.py'
  code = main_lib.main(
    ['main', f'--config={config}', f'--workdir={out / name}', *flags]
  )
  assert code == 0, name


def with_data(run, path, **fields):
  """A run that evaluates other records."""
  data = dataclasses.replace(
    run.config.data, validation=(f'jsonl:{path}',), **fields
  )
  return dataclasses.replace(
    run, config=dataclasses.replace(run.config, data=data)
  )


def tone_of(text):
  """The one tone of a text's adjectives; None without one."""
  words = set(text.split())
  tones = [t for t in grammar.TONES if words & set(grammar.adjectives(t))]
  return tones[0] if len(tones) == 1 else None


def measure(out, name, num_samples):
  """The row of the table."""
  workdir = out / name
  run = run_lib.open_run(config_lib.read(workdir / 'config.json'), workdir)
  with sharding.use(run.mesh):
    params = run.restore_params().params
    perplexities = {}
    for kind in ('plain', 'toned'):
      texts = with_data(run, out / f'held_out_{kind}.jsonl', rejected_field='')
      loaders = held_out.loaders(texts)
      step = held_out.compile_step(texts, params, loaders['validation'])
      found = held_out.evaluate(texts, params, step, loaders)
      perplexities[f'{kind} perplexity'] = found['validation/perplexity']
    minimal = with_data(run, out / 'minimal.jsonl', rejected_field='rejected')
    score = jax.jit(
      lambda params, batch: language.log_likelihood(run.model, params, batch)
    )
    likelier = []
    loader = with_packing_off(minimal).loader('validation')
    for index in range(len(loader)):
      batch = loader[index]
      sides = (batch.replace(rejected=None), batch.rejected)
      chosen, rejected = (np.asarray(score(params, side)) for side in sides)
      is_row = batch.weights.any(axis=1)
      likelier += (chosen > rejected)[is_row].tolist()
    lines = (out / 'held_out_pairs.jsonl').read_text().splitlines()
    prompts = [json.loads(line)['prompt'] for line in lines[:num_samples]]
    texts = sample(run, params, prompts)
  tones = [tone_of(text) for text in texts]
  has_tone = [tone is not None for tone in tones]
  coherent = [grammar.judge(text).coherent for text in texts]
  metrics = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  return {
    'positive': 100 * tones.count(POSITIVE) / np.sum(has_tone),
    'coherent': 100 * np.mean(coherent),
    'likelier': 100 * np.mean(likelier),
    **perplexities,
    'accuracy': 100 * metrics[-1].get('validation/dpo_accuracy', float('nan')),
    'margin': metrics[-1].get('validation/dpo_margin', float('nan')),
  }


def sample(run, params, texts):
  """One answer to each prompt, each drawn with random numbers of its own."""
  config = dataclasses.replace(
    run.config, generate=config_lib.Generate(max_tokens=30)
  )
  decoder = generation.build_decoder(
    config, run.model, run.tokenizer, len(texts)
  )
  read = [
    prompts_lib.read_prompt(config, run.model, run.tokenizer, text).tokens
    for text in texts
  ]
  state = decoder.start(params, read, max_tokens=30, samples=range(len(texts)))
  state = decoder.decode(params, state, sampling.Sampler(1.0), 30)
  return [
    run.tokenizer.decode(row[start:stop])
    for row, start, stop in zip(
      *map(np.asarray, (state.tokens, state.starts, state.lengths)),
      strict=True,
    )
  ]


def with_packing_off(run):
  """A run whose rows hold one example each."""
  data = dataclasses.replace(run.config.data, pack=False)
  return dataclasses.replace(
    run, config=dataclasses.replace(run.config, data=data)
  )


def main():
  """Runs the study and prints its table; the last line is JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--samples', type=int, default=NUM_HELD_OUT)
  parser.add_argument('--seeds', type=int, default=1)
  flags = parser.parse_args()
  logging.basicConfig(level=logging.WARNING)
  out = flags.out.resolve()
  out.mkdir(parents=True, exist_ok=True)
  write_data(out)
  files = {
    'data.cache_dir': out / 'tokens',
    'data.train': f"('jsonl:{out / 'texts.jsonl'}',)",
    'data.validation': f"('jsonl:{out / 'held_out_toned.jsonl'}',)",
  }
  table = {}
  for seed in range(flags.seeds):
    base = f'base-{seed}'
    plans = {base: FIELDS | BASE | files}
    for name, source, more in (
      ('dpo', 'pairs', {}),
      ('dpo-nll', 'pairs', {'loss_weights.chosen_nll': 1.0}),
      ('shuffled', 'shuffled', {}),
    ):
      plans[f'{name}-{seed}'] = (
        FIELDS
        | TUNED
        | files
        | {
          'train.init_from': out / base,
          'data.train': f"('jsonl:{out / source}.jsonl',)",
          'data.validation': f"('jsonl:{out / 'held_out_pairs.jsonl'}',)",
        }
        | more
      )
    for name, fields in plans.items():
      begin = time.monotonic()
      train(out, name, fields | {'train.seed': seed})
      seconds = time.monotonic() - begin
      table[name] = measure(out, name, flags.samples) | {'seconds': seconds}
      for kind in ('plain', 'toned'):
        key = f'{kind} perplexity'
        ratio = table[name][key] / table[base][key]
        table[name][f'{kind} ratio'] = ratio
      print(row(name, table[name]), flush=True)
  print(json.dumps(table))


def row(name, values):
  """One line of the table."""
  return f'{name:12}' + '  '.join(
    f'{key} {value:.3g}' for key, value in values.items()
  )


if __name__ == '__main__':
  main()
