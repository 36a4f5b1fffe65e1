r"""A model without 30 % of its heads and channels, beside the whole one.

  python tests/shrink_study.py [--repeats=12]

Times of a forward pass over a batch and of a decode step of one row, the two
models in turns; the least of the repeats. Beside them the share of the FLOPs of
matrix products. Parameters are drawn: times do not depend on them.
"""

import argparse
import functools
import time

import flax.linen as nn
import jax
import numpy as np

import toy
from gemini_jax import config as config_lib
from gemini_jax.config import growth as growth_lib
from gemini_jax.models import gemini
from gemini_jax.train import flops
from gemini_jax.weights import shrinking

MODEL = config_lib.Model(
  vocab_size=1024,
  max_length=256,
  width=640,
  num_layers=6,
  num_heads=10,
  mlp_dim=2560,
)
SMALLER = {'num_heads': 7, 'mlp_dim': 1792}
LENGTH, ROWS = 128, 4


def forward(model, params, sequence):
  """Hidden states of a batch."""
  return gemini.apply(model, params, sequence, method='decode_hidden')[0]


def decode(model, params, sequence, cache):
  """Hidden states of the next token of each row."""
  return gemini.apply(
    model, params, sequence, cache=cache, method='decode_hidden'
  )[0]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeats', type=int, default=12)
  flags = parser.parse_args()
  after = growth_lib.with_sizes(MODEL, SMALLER)
  init = functools.partial(gemini.init_params, gemini.Gemini(MODEL))
  params = jax.jit(lambda key: nn.unbox(init(key)))(jax.random.key(0))
  scores = shrinking.magnitudes(params, MODEL)
  small = shrinking.shrink(params, MODEL, after, scores)
  runs = {}
  for name, config, tree in (('whole', MODEL, params), ('cut', after, small)):
    model = gemini.Gemini(config)
    batch = toy.sequence(ROWS, LENGTH)
    token = toy.sequence(1, 1)
    cache = gemini.init_cache(config, 1, LENGTH)
    for kind, function, *args in (
      ('forward', forward, batch),
      ('decode', decode, token, cache),
    ):
      step = jax.jit(functools.partial(function, model))
      runs[kind, name] = functools.partial(step, tree, *args)
      jax.block_until_ready(runs[kind, name]())
  seconds = dict.fromkeys(runs, np.inf)
  for _ in range(flags.repeats):
    for key, run in runs.items():
      count = 1 if key[0] == 'forward' else 20
      begin = time.perf_counter()
      for _ in range(count):
        jax.block_until_ready(run())
      seconds[key] = min(seconds[key], (time.perf_counter() - begin) / count)
  no_head = lambda config: (
    flops.forward_flops(config, LENGTH)
    - 2 * LENGTH * config.width * config.vocab_size
  )
  counts = [gemini.param_count(tree) for tree in (params, small)]
  print(f'parameters {counts[0]:,} and {counts[1]:,}')
  print(f'FLOPs of a forward pass: {no_head(MODEL) / no_head(after):.2f} times')
  for kind in ('forward', 'decode'):
    whole, cut = (1e3 * seconds[kind, name] for name in ('whole', 'cut'))
    print(f'{kind}: {whole:.2f} ms, {cut:.2f} ms: {whole / cut:.2f} times')


if __name__ == '__main__':
  main()
