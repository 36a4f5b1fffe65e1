r"""What drafted tokens gain: tokens a second with and without them.

  python tests/speculation_study.py --target=WORKDIR --draft=WORKDIR \
      [--prompts=FILE] [--tokens=128] [--rows=1,8] [--draft_tokens=2,4,8] \
      [--temperature=0,1]

Both are runs of the same tokenizer, the draft the smaller one; it may be the
target's own int8 form, or what `tests/draft_study.py` makes. All ways to write
take turns, on the first prompts of a file as of generate.prompts. The table has
tokens a second of all rows together, the median over rounds; the share of
drafted tokens that were accepted; tokens for each pass of the target; and at
temperature 0 whether the tokens are those of the target alone. Times are of a
machine that does nothing else. The last line is JSON.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import draft_model
from gemini_jax.infer import (
  generation,
  prompt_file,
  prompts,
  sampling,
  speculative,
)
from gemini_jax.parallel import sharding
from gemini_jax.weights import native_products


def make_ways(run, draft, num_rows, num_slots, counts):
  """By name, (decoder, parameters) of each way to write."""
  plain = dataclasses.replace(
    generation.build_decoder(run.config, run.model, run.tokenizer, num_rows),
    num_slots=num_slots,
  )
  options = run.config.generate
  params = native_products.with_kernel(
    run.restore_params().params, options.cpu_kernel
  )
  both = speculative.Params(params, draft.params)
  ways = {'plain': (plain, params)}
  for count in counts:
    drafts = dataclasses.replace(draft, num_tokens=count)
    ways[f'draft {count}'] = speculative.Speculative.of(plain, drafts), both
  return ways


def write(decoder, params, rows, num_tokens, temperature):
  """Seconds of decoding alone, and the state after it."""
  state = decoder.start(
    params, rows, max_tokens=num_tokens, samples=range(len(rows))
  )
  jax.block_until_ready(state)
  begin = time.perf_counter()
  sampler = sampling.Sampler(temperature)
  while True:
    state = decoder.decode(params, state, sampler, decoder.length)
    if np.asarray(state.done).all():
      return time.perf_counter() - begin, state


def compare(ways, rows, num_tokens, temperature, rounds):
  """A row of the table for each way."""
  seconds = {name: [] for name in ways}
  states = {}
  for index in range(rounds + 1):
    for name, (decoder, params) in ways.items():
      spent, states[name] = write(
        decoder, params, rows, num_tokens, temperature
      )
      # The first round compiles.
      if index:
        seconds[name].append(spent)
  table = {}
  for name, state in states.items():
    new = np.asarray(state.lengths - state.starts)
    found = {
      'tokens_per_second': float(new.sum() / statistics.median(seconds[name]))
    }
    if name != 'plain':
      passes = int(np.sum(state.passes))
      drafted = passes * ways[name][0].draft_tokens
      found['accepted'] = int(np.sum(state.accepted)) / max(drafted, 1)
      found['tokens_per_pass'] = float(new.sum() / max(passes, 1))
      plain = table['plain']['tokens_per_second']
      found['gain'] = found['tokens_per_second'] / plain
      if not temperature:
        found['equal'] = bool(
          np.array_equal(state.tokens, states['plain'].tokens)
        )
    table[name] = found
  return table


def main():
  """Runs the comparison and prints its table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--target', type=pathlib.Path, required=True)
  parser.add_argument('--draft', type=pathlib.Path, required=True)
  parser.add_argument('--prompts')
  parser.add_argument('--tokens', type=int, default=128)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--rows', default='1,8')
  parser.add_argument('--draft_tokens', default='2,4,8')
  parser.add_argument('--temperature', default='0,1')
  flags = parser.parse_args()
  numbers = lambda text, kind: [kind(part) for part in text.split(',')]
  config = config_lib.read(flags.target / 'config.json')
  options = config_lib.Generate(draft=str(flags.draft))
  model = dataclasses.replace(config.model, scan_layers=True)
  config = dataclasses.replace(config, generate=options, model=model)
  run = run_lib.open_run(config, flags.target)
  asked = [prompt_file.Line('')]
  if flags.prompts:
    asked = prompt_file.read(flags.prompts, ())
  results = []
  with sharding.use(run.mesh):
    draft = draft_model.open_draft(run)
    tokens = [
      prompts.read_prompt(
        run.config, run.model, run.tokenizer, line.prompt
      ).tokens
      for line in asked
    ]
    for num_rows in numbers(flags.rows, int):
      rows = [tokens[i % len(tokens)] for i in range(num_rows)]
      num_slots = min(
        max(map(len, rows)) + flags.tokens, run.model.config.max_length
      )
      ways = make_ways(
        run, draft, num_rows, num_slots, numbers(flags.draft_tokens, int)
      )
      for temperature in numbers(flags.temperature, float):
        table = compare(ways, rows, flags.tokens, temperature, flags.rounds)
        for name, found in table.items():
          results.append(
            {'rows': num_rows, 'temperature': temperature, 'way': name} | found
          )
          print(
            f'{num_rows} rows, temperature {temperature:g}, {name:9}',
            '  '.join(f'{key} {value:.3g}' for key, value in found.items()),
            flush=True,
          )
  print(json.dumps(results))


if __name__ == '__main__':
  main()
