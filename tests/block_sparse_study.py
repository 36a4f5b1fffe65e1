"""Time of block-sparse products, beside the dense one and the masked dense one.

  PYTHONPATH=. python tests/block_sparse_study.py

2048 x 2048, 90 % of blocks of 64 zero, float32; forward, and forward with the
gradients by inputs and weights. The programs take turns. Masked is the dense
product with zeros in the matrix: a mask saves no time.
"""

import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax.commands import timing
from gemini_jax.layers import matmul
from gemini_jax.weights import block_ell

_SIZE, _BLOCK, _KEPT, _ROUNDS = 2048, 64, 3, 25


def main() -> int:
  """Prints a table; 1 if a value is wrong or a ratio below 2.5."""
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
      seconds = {name: [] for name in calls}
      for _ in range(_ROUNDS):
        for name, call in calls.items():
          seconds[name].append(min(timing.seconds(call) for _ in range(3)))
      times = {name: statistics.median(s) for name, s in seconds.items()}
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
