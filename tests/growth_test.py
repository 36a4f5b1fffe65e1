"""A process that lives long does not grow with what it has done."""

import pathlib

import numpy as np
import pytest

import tiny
import toy
from gemini_jax.data import tokenizer
from gemini_jax.infer import generation

MAPS = pathlib.Path('/proc/self/maps')


def num_maps():
  return len(MAPS.read_bytes().splitlines())


@pytest.mark.skipif(not MAPS.exists(), reason='no /proc here')
def test_a_hundred_generations_hold_no_more_maps_than_ten():
  """Of other prompts, lengths, counts, seeds, temperatures and filters."""
  bytes_tokenizer = tokenizer.Bytes()
  model = toy.model(vocab_size=bytes_tokenizer.vocab_size, max_length=32)
  params = toy.model_params(model)
  rng = np.random.default_rng(0)

  def generate(number):
    config = tiny.config(
      model={'vocab_size': bytes_tokenizer.vocab_size, 'max_length': 32},
      generate={
        'count': int(rng.integers(1, 9)),
        'max_tokens': int(rng.integers(1, 20)),
        'temperature': float(rng.uniform(0, 2)),
        'top_k': int(rng.integers(0, 5)),
        'top_p': float(rng.uniform(0.5, 1)),
        'seed': number,
      },
    )
    prompt = 'a' * int(rng.integers(0, 12))
    stream = (lambda index, text: None) if number % 2 else None
    generation.generate(
      config, model, params, bytes_tokenizer, [prompt], stream
    )

  for number in range(20):
    generate(number)
  before = num_maps()
  for number in range(20, 120):
    generate(number)
  assert num_maps() - before < 20
