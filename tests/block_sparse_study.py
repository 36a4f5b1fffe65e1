"""Time of block-sparse products, beside the dense one and the masked dense one.

  PYTHONPATH=. python tests/block_sparse_study.py [layers]

2048 x 2048, 90 % of blocks of 64 zero, float32; forward, and forward with the
gradients by inputs and weights. The programs take turns. Masked is the dense
product with zeros in the matrix: a mask saves no time.

With `layers` instead: twelve layers of SmolLM2-135M's sizes, scanned, without
its table of tokens, decode a token of each row, or read 64 of one.
"""

import statistics
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.commands import timing
from gemini_jax.compress import layers
from gemini_jax.layers import matmul
from gemini_jax.models import gemini
from gemini_jax.weights import block_ell, native_products

_SIZE, _BLOCK, _KEPT, _ROUNDS = 2048, 64, 3, 25
_LAYERS = config_lib.Model(
  vocab_size=256,
  max_length=256,
  width=576,
  mlp_dim=1536,
  num_layers=12,
  num_heads=9,
  num_kv_heads=3,
  activation='silu',
)


def main() -> int:
  """Prints a table; 1 if a value is wrong or a ratio too low."""
  return in_layers() if 'layers' in sys.argv[1:] else products()


def in_layers() -> int:
  """Of decoding; 1 if it is slower than the dense model."""
  model = gemini.Gemini(_LAYERS)
  params = gemini.init_params(model, jax.random.key(0))
  trees: dict[str, Any] = {'dense': nn.unbox(params)}
  trees['dense by our kernel'] = native_products.with_kernel(
    trees['dense'], 'native'
  )
  for block in (64, 32):
    for alpha in (0.5, 0.75, 0.9):
      options = config_lib.Compress(
        method='magnitude', alpha=alpha, block=block
      )
      tree = layers.compress(options, model, trees['dense'], ())
      trees[f'{alpha:.0%} of {block}'] = native_products.with_kernel(
        tree, 'auto'
      )

  @jax.jit
  def run(params, tokens, cache):
    return gemini.apply(model, params, tokens, cache=cache, method='decode')[0]

  failed = False
  for num_rows, length in ((1, 1), (8, 1), (1, 64)):
    ids = np.ones((num_rows, length), np.int32)
    tokens = batch_lib.plain_sequence(ids, np.full(num_rows, length))
    cache = gemini.init_cache(_LAYERS, num_rows, 256)
    calls = {
      name: lambda tree=tree, args=(tokens, cache): run(tree, *args)
      for name, tree in trees.items()
    }
    times = in_turns(calls)
    ratios = {name: times['dense'] / time for name, time in times.items()}
    failed |= min(ratios.values()) < 1
    shown = ', '.join(f'{n} {r:.2f} x' for n, r in list(ratios.items())[1:])
    dense = f'dense {1e3 * times["dense"]:.2f} ms'
    print(f'{num_rows} rows of {length} tokens: {dense}; {shown}', flush=True)
  return int(failed)


def in_turns(calls) -> dict[str, float]:
  """Median seconds of each call."""
  seconds = {name: [] for name in calls}
  for _ in range(_ROUNDS):
    for name, call in calls.items():
      seconds[name].append(min(timing.seconds(call) for _ in range(3)))
  return {name: statistics.median(s) for name, s in seconds.items()}


def products() -> int:
  """Of one matrix; 1 if a value is wrong or a ratio below 2.5."""
  rng = np.random.default_rng(0)
  num = _SIZE // _BLOCK
  kept = rng.random((num, num)).argsort(axis=0) < _KEPT
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  grown = kept.repeat(_BLOCK, 0).repeat(_BLOCK, 1)
  full = draw(_SIZE, _SIZE) * _SIZE**-0.5
  masked = full * grown
  sparse = block_ell.BlockSparse.from_array(
    masked, _BLOCK, 1 - _KEPT / num, 0, 1
  )
  leaves = {'dense': full, 'masked': masked, 'blocks': sparse}
  dot = lambda x, leaf: matmul.dot(x, leaf, 1, dtype=jnp.float32)
  both = lambda x, leaf, dy: jax.vjp(dot, x, leaf)[1](dy)
  failed = False
  print(f'{1 - kept.mean():.1%} of blocks are zero')
  for num_rows in (1, 16, 256):
    x, dy = draw(num_rows, _SIZE), draw(num_rows, _SIZE)
    for what in ('forward', 'gradients'):
      args = (x,) if what == 'forward' else (x, dy)
      calls, outputs = {}, {}
      for name, leaf in leaves.items():
        run = dot if what == 'forward' else both
        order = (x, leaf, *args[1:])
        program = jax.jit(run).lower(*order).compile()
        calls[name] = lambda program=program, order=order: program(*order)
        outputs[name] = calls[name]()
      times = in_turns(calls)
      ratio = times['dense'] / times['blocks']
      error = difference(outputs, kept, what, sparse)
      failed |= error > 1e-3 or ratio < 2.5
      shown = ', '.join(f'{n} {1e6 * t:.0f} us' for n, t in times.items())
      print(f'M={num_rows} {what}: {shown}; {ratio:.2f} x; error {error:.1e}')
  return int(failed)


def difference(outputs, kept, what, sparse) -> float:
  """The largest, of kept blocks."""
  found, expected = outputs['blocks'], outputs['masked']
  if what == 'forward':
    return float(jnp.max(jnp.abs(found - expected)))
  array = sparse.replace(blocks=found[1].blocks).to_array(jnp.float32)
  grown = kept.repeat(_BLOCK, 0).repeat(_BLOCK, 1)
  return max(
    float(jnp.max(jnp.abs(found[0] - expected[0]))),
    float(jnp.max(jnp.abs(array - expected[1] * grown))),
  )


if __name__ == '__main__':
  sys.exit(main())
