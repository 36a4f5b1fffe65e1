r"""How fast: a training step, alone or beside nanoGPT's, and the ceilings.

  python -m gemini_jax.commands.bench --what=step --config=FILE [--nanogpt=DIR]
  python -m gemini_jax.commands.bench --config=FILE \
      --what=attention|cross_entropy|decode|checkpoint|data

Beside each time stand the ceilings of this device in the same run: the rate of
a matrix product and of a copy. Prints what it finds, and a JSON object as its
last line. Data is random, so that no value is cheaper than another.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.infer import decoding, sampling
from gemini_jax.kernels import cross_entropy, dot_product_attention, masking
from gemini_jax.models import build, gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import pipeline, sharding
from gemini_jax.train import flops as flops_lib
from gemini_jax.train import loop
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib

# Rounds in which the two sides take turns, and seconds of each turn.
_ROUNDS = 20
_TURN = 0.6
# Seconds in which the loader makes batches.
_LOADING = 5.0


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
    self.config = build.with_vocab(config, 1)
    mesh = mesh_lib.make_mesh(config.parallel)
    pipeline.check(config, mesh)
    model = build.make_model(self.config, mesh)
    optimizer = optimizer_lib.make_optimizer(
      config.optimizer, config.train.num_steps
    )
    self._mesh = mesh
    abstract = state_lib.abstract_state(self.config, model, optimizer, mesh)
    self.state = state_lib.init_state(self.config, model, optimizer, abstract)
    self.num_params = gemini.param_count(self.state.params)
    self._batch = jax.device_put(
      random_batch(self.config), sharding.of_batch(mesh)
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
    """Seconds of each of `count` steps, blocked."""
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


class NanoGPT:
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
      'dtype': model.dtype,
      'threads': 2,
    }
    self._process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'gemini_jax.commands.nanogpt_worker',
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
  return flops_lib.step_flops(config) / (flops / best)


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
    peers = {how: NanoGPT(nanogpt, config, how) for how in ('eager', 'compile')}
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
      # Of rounds: what slows the machine for a while slows both sides.
      'ratio': statistics.median(ratios),
    }
  return result


def ceilings(config: config_lib.Config) -> dict[str, float]:
  """FLOP/s of a matrix product and bytes/s of a copy, the best of this run."""
  dtype = jnp.dtype(config.model.dtype)
  size = 1024 if jax.default_backend() == 'cpu' else 8192
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  # Read and written; too large for a cache.
  y = jnp.tile(x, (16, 1))
  copy = jax.jit(lambda y: y + 1).lower(y).compile()
  best = lambda call: min(_seconds(call) for _ in range(20))
  return {
    'matmul_flops_per_second': 2 * size**3 / best(lambda: product(x, x)),
    'copy_bytes_per_second': 2 * y.nbytes / best(lambda: copy(y)),
  }


def spread(name: str, seconds: Sequence[float]) -> dict[str, Any]:
  """Median and quartiles of times, printed as well."""
  low, median, high = statistics.quantiles(seconds, n=4)
  print(
    f'{name}: median {median * 1e3:.2f} ms, {low * 1e3:.2f} to {high * 1e3:.2f}'
  )
  return {f'{name}_seconds': median, f'{name}_quartiles': (low, high)}


def _timer(call: Callable[[], Any]) -> Callable[[int], list[float]]:
  return lambda count: [_seconds(call) for _ in range(count)]


def _side_by_side(
  what: str, config: config_lib.Config, sides: dict[str, Callable[[], Any]]
) -> dict[str, Any]:
  medians = turns({name: _timer(call) for name, call in sides.items()})
  result: dict[str, Any] = {
    'what': what,
    'device': jax.devices()[0].device_kind,
    **ceilings(config),
  }
  for name, values in medians.items():
    result |= spread(name, values)
  return result


def bench_attention(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Forward and backward of one layer's attention, beside dense softmax."""
  del nanogpt
  model = config.model
  shape = (config.data.batch_size, config.data.sequence_length)
  dtype = jnp.dtype(model.dtype)
  heads = (model.num_heads, model.kv_heads, model.kv_heads)
  qkv = [
    jax.random.normal(jax.random.key(i), (*shape, num, model.head_width), dtype)
    for i, num in enumerate(heads)
  ]
  sequence = random_batch(build.with_vocab(config, 1)).decoder
  mask = masking.visible(sequence, sequence, causal=True)
  scale = model.head_width**-0.5
  kernel = dot_product_attention.choose(
    model.attention_kernel, jax.default_backend()
  )

  def dense(q, k, v, mask):
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask.dense()[:, None], scale=scale, implementation='xla'
    )

  def ours(q, k, v, mask):
    return dot_product_attention.attention(
      q, k, v, mask, scale=scale, implementation=kernel
    )

  def gradient(attend):
    total = lambda qkv, mask: jnp.sum(
      attend(*qkv, mask).astype(jnp.float32) ** 2
    )
    compiled = jax.jit(jax.grad(total)).lower(qkv, mask).compile()
    return lambda: compiled(qkv, mask)

  sides = {kernel: gradient(ours), 'dense': gradient(dense)}
  return _side_by_side('attention', config, sides)


def bench_cross_entropy(
  config: config_lib.Config, nanogpt: str
) -> dict[str, Any]:
  """Loss and gradients from vectors and table, beside all scores at once."""
  del nanogpt
  config = build.with_vocab(config, 1)
  batch = random_batch(config)
  assert config.model.vocab_size
  dtype = jnp.dtype(config.model.dtype)
  x_BTD, table_VD = (
    jax.random.normal(jax.random.key(i), (*shape, config.model.width), dtype)
    for i, shape in enumerate([batch.targets.shape, (config.model.vocab_size,)])
  )

  def chunked(x_BTD, table_VD):
    sums: Any = cross_entropy.token_sums(
      cross_entropy.Options(), x_BTD, table_VD, batch.targets, batch.weights
    )
    return sums.objective

  def dense(x_BTD, table_VD):
    scores_BTV = jnp.einsum(
      'BTD,VD->BTV', x_BTD, table_VD, preferred_element_type=jnp.float32
    )
    losses_BT = optax.softmax_cross_entropy_with_integer_labels(
      scores_BTV, batch.targets
    )
    return jnp.sum(losses_BT * batch.weights)

  def gradient(loss):
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x_BTD, table_VD).compile()
    return lambda: compiled(x_BTD, table_VD)

  sides = {'chunked': gradient(chunked), 'dense': gradient(dense)}
  return _side_by_side('cross_entropy', config, sides)


def bench_decode(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """Tokens written by all rows together, and the bytes read for each step."""
  del nanogpt
  step = Step(config)
  config, params = step.config, step.params
  encodes = config.model.cross
  decoder = decoding.Decoder(
    build.make_model(config, mesh_lib.make_mesh(config.parallel)),
    config.data.batch_size,
    pad_id=0,
    # No token ends a row.
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

  result = _side_by_side('decode', config, {'decode': write})
  read = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  cache = gemini.init_cache(config.model, config.data.batch_size, num + 1)
  read += sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
  per_token = result['decode_seconds'] / num
  return result | {
    'tokens_per_second': config.data.batch_size / per_token,
    'bytes_per_second': read / per_token,
  }


def bench_checkpoint(config: config_lib.Config, nanogpt: str) -> dict[str, Any]:
  """How long a save keeps the loop waiting, beside a step."""
  del nanogpt
  step = Step(config)
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
    **ceilings(config),
    **spread('blocked', waits),
    **spread('step', step.times(5)),
  }


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
  while time.perf_counter() - begin < _LOADING:
    data[count]
    count += 1
  seconds = time.perf_counter() - begin
  tokens = config.data.batch_size * config.data.sequence_length
  return {'what': 'data', 'tokens_per_second': count * tokens / seconds}


WHAT = {
  'step': bench_step,
  'attention': bench_attention,
  'cross_entropy': bench_cross_entropy,
  'decode': bench_decode,
  'checkpoint': bench_checkpoint,
  'data': bench_data,
}


def main(argv: Sequence[str]) -> int:
  """Runs the benchmark that --what names; returns the exit code."""
  flags = {'what': 'step', 'nanogpt': ''}
  code = command.usage(argv, __doc__ or '', {'config': None, **flags})
  if code is not None:
    return code
  try:
    parsed = command.parse(argv, flags)
    what = parsed.values['what']
    config_lib.check(
      what in WHAT, f'--what={what} must be one of {", ".join(WHAT)}'
    )
    nanogpt = parsed.values['nanogpt']
    nanogpt = str(command.folder('nanogpt', nanogpt)) if nanogpt else ''
    result = WHAT[what](parsed.config, nanogpt)
  except config_lib.ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(json.dumps(result))
  return 0


if __name__ == '__main__':
  host.keep_freed_memory()
  sys.exit(main(sys.argv))
