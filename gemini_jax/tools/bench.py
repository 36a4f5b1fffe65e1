r"""How fast: a training step, alone or beside nanoGPT's, and the ceilings.

  python -m gemini_jax.tools.bench --what=step --config=FILE [--nanogpt=DIR]
  python -m gemini_jax.tools.bench --what=data --config=FILE

Prints what it finds, and a JSON object as its last line. Data is random, so
that no value is cheaper than another.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import pipeline, sharding
from gemini_jax.train import loop, metrics, run
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import step as step_lib

# Rounds in which the two sides take turns, and seconds of each turn.
_ROUNDS = 20
_TURN = 0.6


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
  return batch_lib.Batch(
    decoder=decoder,
    targets=np.roll(decoder.tokens, -1, axis=1),
    weights=np.ones(decoder.tokens.shape, np.float32),
    encoder=sequence(config.data.inputs_length)
    if config.model.encoder_layers
    else None,
  )


class Step:
  """Our training step on random tokens, timed step by step."""

  def __init__(self, config: config_lib.Config):
    self.config = run.with_vocab(config, 1)
    mesh = sharding.make_mesh(config.parallel)
    pipeline.check(config, mesh)
    model = run.make_model(self.config, mesh)
    optimizer = optimizer_lib.make_optimizer(
      config.optimizer, config.train.num_steps
    )
    self._mesh = mesh
    abstract = step_lib.abstract_state(self.config, model, optimizer, mesh)
    self._state = step_lib.init_state(self.config, model, optimizer, abstract)
    self.num_params = gemini.param_count(self._state.params)
    self._batch = jax.device_put(
      random_batch(self.config), sharding.of_batch(mesh)
    )
    self._index = 0
    with sharding.use(mesh):
      self._step = loop.compile_step(
        self.config, model, optimizer, abstract, self._batch
      )

  def times(self, count: int) -> list[float]:
    """Seconds of each of `count` steps, blocked."""
    seconds = []
    for _ in range(count):
      begin = time.perf_counter()
      self._state, values = self._step(
        self._state, self._batch, np.int32(self._index)
      )
      jax.block_until_ready((self._state, values))
      seconds.append(time.perf_counter() - begin)
      self._index += 1
    return seconds


class Peer:
  """nanoGPT's step in a process of its own."""

  def __init__(self, directory: str, config: config_lib.Config, how: str):
    model = config.model
    sizes = {
      'n_layer': model.num_layers,
      'n_head': model.num_heads,
      'n_embd': model.width,
      'block_size': config.data.sequence_length,
      'vocab_size': model.vocab_size,
      'batch_size': config.data.batch_size,
      'threads': 2,
    }
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'gemini_jax.tools.peer',
        directory,
        json.dumps(sizes),
        how,
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def times(self, count: int) -> list[float]:
    """Seconds of each of `count` steps.

    Raises:
      ConfigError: nanoGPT or torch cannot be imported.
    """
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(f'{count}\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass
    for line in self._process.stdout:
      if line.startswith('TIMES '):
        return json.loads(line.removeprefix('TIMES '))
    raise config_lib.ConfigError(
      '--nanogpt: its step did not run; is it a nanoGPT checkout, and is '
      'torch installed beside it?'
    )

  def close(self):
    """Ends the process."""
    self._process.kill()
    self._process.wait()


def turns(
  sides: dict[str, Callable[[int], list[float]]],
) -> dict[str, list[float]]:
  """Median seconds of a step of each side in each round, taken in turn."""
  counts = {}
  for name, times in sides.items():
    times(3)
    counts[name] = max(1, round(_TURN / statistics.median(times(3))))
  medians: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(_ROUNDS):
    for name, times in sides.items():
      medians[name].append(statistics.median(times(counts[name])))
  return medians


def matmul_seconds(config: config_lib.Config) -> float:
  """Seconds of a step's matrix products alone, at this device's best rate."""
  tokens = config.data.batch_size * config.data.sequence_length
  width, hidden = config.model.width, config.model.mlp_width
  dtype = jnp.dtype(config.model.dtype)
  x = jax.random.normal(jax.random.key(0), (tokens, width), dtype)
  w = jax.random.normal(jax.random.key(1), (width, hidden), dtype)
  product = jax.jit(jnp.matmul).lower(x, w).compile()
  flops = 2 * tokens * width * hidden
  best = min(_seconds(lambda: product(x, w)) for _ in range(50))
  return metrics.step_flops(config) / (flops / best)


def _seconds(call: Callable[[], Any]) -> float:
  begin = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - begin


def bench_step(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Times our step, and nanoGPT's in turn where a checkout is given."""
  ours = Step(config)
  config = ours.config
  sides = {'ours': ours.times}
  # Its best setting: eager or compiled, whichever is faster here.
  peers = {}
  if nanogpt:
    peers = {how: Peer(nanogpt, config, how) for how in ('eager', 'compile')}
    sides |= {how: peer.times for how, peer in peers.items()}
  try:
    medians = turns(sides)
  finally:
    for peer in peers.values():
      peer.close()
  overall = {name: statistics.median(v) for name, v in medians.items()}
  tokens = config.data.batch_size * config.data.sequence_length
  result: dict[str, Any] = {
    'what': 'step',
    'device': jax.devices()[0].device_kind,
    'num_params': ours.num_params,
    'ours_seconds': overall['ours'],
    'tokens_per_second': tokens / overall['ours'],
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
      # Of rounds: what slows the machine for a while slows both sides.
      'ratio': statistics.median(ratios),
    }
  return result


def bench_data(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Times the loader alone, on one core."""
  del nanogpt
  from gemini_jax.data import loader, tokenizer

  words = tokenizer.build(
    config.tokenizer, lambda: loader.texts(config.data, 'train')
  )
  data = loader.Loader(config.data, words, 'train', config.train.seed)
  count = 0
  begin = time.perf_counter()
  while time.perf_counter() - begin < 5:
    data[count]
    count += 1
  seconds = time.perf_counter() - begin
  tokens = config.data.batch_size * config.data.sequence_length
  return {'what': 'data', 'tokens_per_second': count * tokens / seconds}


WHAT = {'step': bench_step, 'data': bench_data}


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark that --what names; returns the exit code."""
  try:
    parsed = command.parse(argv, {'what': 'step', 'nanogpt': ''})
    what = parsed.values['what']
    config_lib.check(
      what in WHAT, f'--what={what} must be one of {", ".join(WHAT)}'
    )
    result = WHAT[what](parsed.config, parsed.values['nanogpt'])
  except config_lib.ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(json.dumps(result))
  return 0


if __name__ == '__main__':
  host.keep_freed_memory()
  sys.exit(main(sys.argv))
