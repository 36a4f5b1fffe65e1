"""Decoding, saving checkpoints and loading data."""

import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.commands import bench_step, timing
from gemini_jax.data import splits, tokenizer_training
from gemini_jax.infer import decoding, sampling
from gemini_jax.models import build, gemini
from gemini_jax.parallel import mesh as mesh_lib

# Seconds for which the loader is timed.
_LOADING = 5.0


def bench_decode(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Tokens a second of all rows together, and bytes a second that it reads."""
  del nanogpt
  step = bench_step.Step(config)
  config, params = step.config, step.params
  encodes = config.model.cross
  decoder = decoding.Decoder(
    build.make_model(config, mesh_lib.make_mesh(config.parallel)),
    config.data.batch_size,
    pad_id=0,
    # No token has this id, so no row ends early.
    eos_id=-1,
    memory_length=config.data.inputs_length if encodes else 0,
  )
  prompts = [np.array([1])] * config.data.batch_size
  num = config.model.max_length - 1
  sampler = sampling.Sampler()

  def write():
    state = decoder.start(
      params,
      prompts,
      max_tokens=num,
      inputs=prompts if encodes else None,
    )
    return decoder.decode(params, state, sampler, num).tokens

  result = timing.side_by_side('decode', config, {'decode': write})
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  cache = gemini.init_cache(config.model, config.data.batch_size, num + 1)
  num_bytes += sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
  per_token = result['decode_seconds'] / num
  return result | {
    'tokens_per_second': config.data.batch_size / per_token,
    'bytes_per_second': num_bytes / per_token,
  }


def bench_checkpoint(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Seconds for which a save blocks the loop, and seconds of a step."""
  del nanogpt
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


def bench_data(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Tokens a second of the loader alone, on one thread."""
  del nanogpt
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
