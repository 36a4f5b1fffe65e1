"""Saving checkpoints and loading data."""

import pathlib
import tempfile
import time
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.commands import bench_step, peer, timing
from gemini_jax.data import splits, tokenizer_training

# Seconds for which the loader is timed.
_LOADING = 5.0


def bench_checkpoint(
  config: config_lib.Config, paths: peer.Paths
) -> dict[str, Any]:
  """Seconds for which a save blocks the loop, and seconds of a step."""
  del paths
  step = bench_step.Step(config)
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = checkpointer.Checkpointer(pathlib.Path(folder), 1)
    waits = []
    for number in range(1, 6):
      begin = time.perf_counter()
      checkpoints.save(number, step.state, {})
      waits.append(time.perf_counter() - begin)
      checkpoints.wait()
    checkpoints.close()
  step.times(2)
  return {
    'what': 'checkpoint',
    'device': jax.devices()[0].device_kind,
    'num_params': step.num_params,
    **timing.ceilings(config),
    **timing.spread('blocked', waits),
    **timing.spread('step', step.times(5)),
  }


def bench_data(config: config_lib.Config, paths: peer.Paths) -> dict[str, Any]:
  """Tokens a second of the loader alone, on one thread."""
  del paths
  from gemini_jax.data import loader

  words = tokenizer_training.build(
    config.tokenizer, lambda: splits.texts(config.data, 'train')
  )
  data = loader.Loader(config.data, words, 'train', config.train.seed)
  count = 0
  begin = time.perf_counter()
  while time.perf_counter() - begin < _LOADING:
    data[count]
    count += 1
  seconds = time.perf_counter() - begin
  tokens = config.data.batch_size * config.data.sequence_length
  return {'what': 'data', 'tokens_per_second': count * tokens / seconds}
