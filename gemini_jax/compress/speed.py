"""How fast models read a prompt and write, beside each other."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gemini_jax import run as run_lib
from gemini_jax.infer import decoding, sampling
from gemini_jax.weights import native_products

# Tokens of a prompt, and that are written after it.
_PROMPT, _WRITTEN = 64, 16
_ROUNDS = 7
_GREEDY = sampling.Sampler(temperature=0.0)


def measure(
  run: run_lib.Run, variants: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
  """Tokens a second of one row: medians of rounds in which all take turns.

  Args:
    run: of all models.
    variants: their parameters, by name.
  """
  timed = {name: _Timed(run, params) for name, params in variants.items()}
  for one in timed.values():
    one.seconds()
  rounds = [
    {name: one.seconds() for name, one in timed.items()} for _ in range(_ROUNDS)
  ]
  found = {}
  for name, one in timed.items():
    prefill, decode = (
      statistics.median(values[name][i] for values in rounds) for i in range(2)
    )
    found[name] = {
      'prefill_tokens_per_second': one.num_prompt / prefill,
      'decode_tokens_per_second': one.num_written / decode,
    }
  return found


class _Timed:
  """One model and a prompt of random tokens.

  Attributes:
    num_prompt: tokens of the prompt.
    num_written: tokens that are written.
  """

  def __init__(self, run: run_lib.Run, params: Any):
    config = run.config
    length = min(config.model.max_length, 4 * _PROMPT)
    self.num_prompt = min(_PROMPT, length // 2)
    self.num_written = min(_WRITTEN, length - self.num_prompt)
    self._params = native_products.with_kernel(
      params, config.generate.cpu_kernel
    )
    inputs = config.data.inputs_length if config.model.cross else 0
    self._decoder = decoding.Decoder(
      run.model,
      1,
      pad_id=run.tokenizer.pad_id,
      # No token has this id, so no row ends early.
      eos_id=-1,
      prefill_chunk=min(config.generate.prefill_chunk, self.num_prompt),
      memory_length=inputs,
      prefix=config.data.objective == 'prefix',
      num_slots=length,
    )
    draw = np.random.default_rng(0).integers
    most = run.tokenizer.vocab_size
    self._prompt = draw(most, size=self.num_prompt).astype(np.int32)
    self._inputs = [draw(most, size=inputs).astype(np.int32)] if inputs else []
    self._latents = None
    if config.model.latent.dim:
      self._latents = np.zeros((1, config.model.latent.dim), np.float32)

  def seconds(self) -> tuple[float, float]:
    """Of reading the prompt, and of writing."""
    begin = time.perf_counter()
    state = self._decoder.start(
      self._params,
      [self._prompt],
      max_tokens=self.num_written,
      inputs=self._inputs,
      latents=self._latents,
    )
    jax.block_until_ready(state)
    middle = time.perf_counter()
    state = self._decoder.decode(self._params, state, _GREEDY, self.num_written)
    jax.block_until_ready(state)
    return middle - begin, time.perf_counter() - middle
