"""What int8 changes in the predictions of a real model.

    python tests/int8_study.py WORKDIR TEXT_FILE ...

Next-token log-probabilities of texts with the parameters as they are, with
matrices as int8 and inputs as they are, and with inputs as int8 too (what CPUs
compute): loss, mean change of the true token's log-probability, KL divergence
from the original, share of positions with the same best token.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from gemini_jax import batch as batch_lib  # noqa: E402
from gemini_jax import run as run_lib  # noqa: E402
from gemini_jax.layers import matmul  # noqa: E402
from gemini_jax.models import gemini  # noqa: E402
from gemini_jax.weights import int8  # noqa: E402

LENGTH = 256
WINDOWS = 8
# A pattern of parameters for each line of the table; None: all as they are.
PATTERNS = {
  'as they are': None,
  'layers alone': '/layers/.*@matrix$',
  'table alone': '@embedding$',
  'all': int8.PATTERN,
}


def merged(params):
  """Arrays in place of int8 matrices, with the same numbers."""
  is_int8 = lambda leaf: isinstance(leaf, int8.Int8)
  return jax.tree.map(
    lambda leaf: matmul.to_array(leaf, jnp.float32) if is_int8(leaf) else leaf,
    params,
    is_leaf=is_int8,
  )


def main():
  workdir, *files = map(pathlib.Path, sys.argv[1:])
  run = run_lib.open_run(run_lib.saved_config(workdir), workdir)
  params = run.restore_params().params
  text = '\n'.join(file.read_text() for file in files)
  ids = np.asarray(run.tokenizer.encode(text)[: LENGTH * WINDOWS + 1])
  tokens = ids[:-1].reshape(-1, LENGTH).astype(np.int32)
  targets = ids[1:].reshape(-1, LENGTH)
  sequence = batch_lib.plain_sequence(tokens, np.full(len(tokens), LENGTH))

  @jax.jit
  def log_probs(params, sequence):
    logits = gemini.apply(run.model, params, sequence, method='decode')[0]
    return jax.nn.log_softmax(logits)

  def predictions(params):
    rows = [
      jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], sequence)
      for i in range(len(tokens))
    ]
    return np.concatenate([log_probs(params, row) for row in rows])

  base = predictions(params)
  print(f'{tokens.size} tokens; matrices, inputs: loss, change, KL, same best')
  for name, pattern in PATTERNS.items():
    variants = {'as they are': params}
    if pattern:
      quantised = int8.quantize(params, pattern)
      variants = {'as they are': merged(quantised), 'int8': quantised}
    for inputs, tree in variants.items():
      found = predictions(tree)
      true = lambda values: np.take_along_axis(values, targets[..., None], -1)
      change = np.abs(true(found) - true(base)).mean()
      divergence = (np.exp(base) * (base - found)).sum(-1).mean()
      same = (found.argmax(-1) == base.argmax(-1)).mean()
      print(
        f'{name:<13}{inputs:<12}{-true(found).mean():8.4f}{change:9.4f}'
        f'{divergence:10.5f}{same:8.3f}',
        flush=True,
      )


if __name__ == '__main__':
  main()
