"""A training step, alone or in turn with nanoGPT's."""

import dataclasses
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.commands import peer, timing
from gemini_jax.models import build, gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import pipeline, sharding
from gemini_jax.train import flops as flops_lib
from gemini_jax.train import loop
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib


def random_batch(config: config_lib.Config, seed: int = 0) -> batch_lib.Batch:
  """A full batch of random tokens."""
  rng = np.random.default_rng(seed)
  vocab_size = config.model.vocab_size
  assert vocab_size, 'the tokenizer sets model.vocab_size'

  def sequence(length):
    shape = (config.data.batch_size, length)
    tokens = rng.integers(vocab_size, size=shape)
    return batch_lib.plain_sequence(tokens, np.full(shape[0], length))

  decoder = sequence(config.data.sequence_length)
  batch = batch_lib.Batch(
    decoder=decoder,
    targets=np.roll(decoder.tokens, -1, axis=1),
    weights=np.ones(decoder.tokens.shape, np.float32),
    encoder=sequence(config.data.inputs_length)
    if config.model.encoder_layers
    else None,
  )
  rejected = batch if config.data.rejected_field else None
  return dataclasses.replace(batch, rejected=rejected)


class Step:
  """Our train step on random tokens."""

  def __init__(self, config: config_lib.Config):
    self.config = build.with_vocab(config, 1)
    mesh = mesh_lib.make_mesh(config.parallel)
    pipeline.check(config, mesh)
    model = build.make_model(self.config, mesh)
    optimizer = optimizer_lib.make_optimizer(
      config.optimizer, config.train.num_steps, config.tune
    )
    self._mesh = mesh
    abstract = state_lib.abstract_state(self.config, model, optimizer, mesh)
    self.state = state_lib.init_state(self.config, model, optimizer, abstract)
    self.num_params = gemini.param_count(self.state.params)
    self._batch = jax.device_put(
      random_batch(self.config), sharding.batch_sharding(mesh)
    )
    self._index = 0
    with sharding.use(mesh):
      self._step = loop.compile_step(
        self.config, model, optimizer, abstract, self._batch
      )

  @property
  def params(self) -> Any:
    """The parameters."""
    return self.state.params

  def times(self, count: int) -> list[float]:
    """Seconds of each of `count` steps, until the results are ready."""
    seconds = []
    for _ in range(count):
      begin = time.perf_counter()
      self.state, values = self._step(
        self.state, self._batch, np.int32(self._index)
      )
      jax.block_until_ready((self.state, values))
      seconds.append(time.perf_counter() - begin)
      self._index += 1
    return seconds


def nanogpt(directory: str, config: config_lib.Config, how: str) -> peer.Peer:
  """A step of nanoGPT in a process of its own."""
  model = config.model
  sizes = {
    'n_layer': model.num_layers,
    'n_head': model.num_heads,
    'n_embd': model.width,
    'block_size': config.data.sequence_length,
    'vocab_size': model.vocab_size,
    'batch_size': config.data.batch_size,
    'dtype': model.dtype,
    'threads': 2,
  }
  return peer.Peer(
    'nanogpt_worker',
    [directory, json.dumps(sizes), how],
    '--nanogpt: its step did not run; is the folder a nanoGPT checkout, and is '
    'torch installed?',
  )


def matmul_seconds(config: config_lib.Config) -> float:
  """Seconds of a step's matrix products at the best rate of this device."""
  tokens = config.data.batch_size * config.data.sequence_length
  width, hidden = config.model.width, config.model.mlp_width
  dtype = jnp.dtype(config.model.dtype)
  x = jax.random.normal(jax.random.key(0), (tokens, width), dtype)
  w = jax.random.normal(jax.random.key(1), (width, hidden), dtype)
  product = jax.jit(jnp.matmul).lower(x, w).compile()
  flops = 2 * tokens * width * hidden
  best = min(timing.seconds(lambda: product(x, w)) for _ in range(50))
  return flops_lib.step_flops(config) / (flops / best)


def bench_step(config: config_lib.Config, paths: peer.Paths) -> dict[str, Any]:
  """Times our step, in turn with nanoGPT's if a checkout of it is given."""
  ours = Step(config)
  config = ours.config
  timers = {'ours': ours.times}
  # Both of its settings are timed; the faster one is compared.
  peers = {}
  if paths.nanogpt:
    peers = {
      how: nanogpt(paths.nanogpt, config, how) for how in ('eager', 'compile')
    }
    timers |= {how: other.times for how, other in peers.items()}
  try:
    medians = timing.turns(timers)
  finally:
    for other in peers.values():
      other.close()
  overall = {name: statistics.median(v) for name, v in medians.items()}
  tokens = config.data.batch_size * config.data.sequence_length
  result: dict[str, Any] = {
    'what': 'step',
    'device': jax.devices()[0].device_kind,
    'num_params': ours.num_params,
    'ours_seconds': overall['ours'],
    'tokens_per_second': tokens / overall['ours'],
    'mfu': flops_lib.mfu(config, overall['ours']),
    'matmul_seconds': matmul_seconds(config),
  }
  for name, values in medians.items():
    low, high = min(values), max(values)
    print(
      f'{name}: median {overall[name] * 1e3:.2f} ms, rounds {low * 1e3:.2f} '
      f'to {high * 1e3:.2f} ms'
    )
  if peers:
    best = min(peers, key=lambda how: overall[how])
    ratios = sorted(
      a / b for a, b in zip(medians['ours'], medians[best], strict=True)
    )
    print(
      f'ours / nanoGPT ({best}), round by round: median '
      f'{statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}'
    )
    result |= {
      'peer': f'nanoGPT, {best}',
      'peer_seconds': overall[best],
      # The median over rounds, since the speed of the machine varies.
      'ratio': statistics.median(ratios),
    }
  return result
