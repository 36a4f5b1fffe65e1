"""Damaged copies of a file's content, for readers that must refuse them.

    for kind, damaged in mutations.of(content, 100, header=400):
      path.write_bytes(damaged)
      mutations.outcome(lambda: read(path), path)

A damaged file may still be readable. What must not happen is another exception
than ConfigError, a crash, much time or much memory.
"""

import re
import time
import tracemalloc

import numpy as np

from gemini_jax import config as config_lib

# What lengths, counts, offsets and types are replaced by.
_EXTREMES = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
_EXTREMES += (2**53 + 1, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (b'-1', b'1.5', b'1e9', b'1e999', b'NaN', b'null', b'true', b'""')
_TEXTS += (b'[]', b'{}', b'"9"', b'9' * 40, b'9' * 5000, b'[0,0]')
_NESTED = (b'[' * 100_000, b'{"a":' * 100_000, b'(' * 100_000)


def of(content, count, seed=0, header=None):
  """Pairs of a kind and damaged bytes.

  Args:
    content: of a file that can be read.
    count: of pairs; kinds take turns.
    seed: of the choices.
    header: so many bytes at the beginning are damaged most; None: all.
  """
  rng = np.random.default_rng(seed)
  header = min(header or len(content), len(content))
  kinds = {
    'truncated': _truncated,
    'flipped': _flipped,
    'forged': _forged,
    'spliced': _spliced,
    'overwritten': _overwritten,
    'nested': _nested,
  }
  # Lengths and counts are what a reader believes most easily.
  order = ('forged', 'flipped', 'forged', 'truncated')
  order += ('forged', 'spliced', 'forged', 'overwritten')
  for index in range(count):
    kind = order[index % len(order)]
    if index % 40 == 39:
      kind = 'nested'
    yield kind, kinds[kind](content, header, rng)


def outcome(load, path, seconds=2.0, num_bytes=96 << 20):
  """'loaded' or 'refused': the only things that a reader may do.

  Args:
    load: reads the file.
    path: of the file or its folder, which a message must name.
    seconds: that it may take.
    num_bytes: of memory that it may take.
  """
  tracemalloc.start()
  start = time.monotonic()
  try:
    load()
    result = 'loaded'
  except config_lib.ConfigError as error:
    assert len(str(error).splitlines()) == 1, error
    assert len(str(error)) < 1000, error
    assert str(path) in str(error), error
    result = 'refused'
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  assert peak < num_bytes, f'{peak:,} bytes'
  assert time.monotonic() - start < seconds
  return result


def _truncated(content, header, rng):
  if rng.random() < 0.5:
    return content[: rng.integers(header)]
  return content[: rng.integers(len(content))]


def _flipped(content, header, rng):
  damaged = bytearray(content)
  for _ in range(rng.integers(1, 5)):
    end = header if rng.random() < 0.8 else len(content)
    damaged[rng.integers(end)] ^= 1 << rng.integers(8)
  return bytes(damaged)


def _forged(content, header, rng):
  """Another number in place of one, in binary or in digits."""
  digits = list(re.finditer(rb'\d+', content[:header]))
  numbers = [
    at
    for at in range(max(header - 7, 0))
    if 0 < int.from_bytes(content[at : at + 8], 'little') < 2**32
  ]
  if digits and (not numbers or rng.random() < 0.5):
    match = digits[rng.integers(len(digits))]
    texts = (*_TEXTS, *(str(n).encode() for n in _near(match[0], rng)))
    new = texts[rng.integers(len(texts))]
    return content[: match.start()] + new + content[match.end() :]
  if not numbers:
    return _flipped(content, header, rng)
  at = numbers[rng.integers(len(numbers))]
  size = (4, 8)[rng.integers(2)]
  old = int.from_bytes(content[at : at + size], 'little')
  choices = [*_near(old, rng), len(content), len(content) - at - 8]
  new = int(choices[rng.integers(len(choices))]) % 2 ** (8 * size)
  return content[:at] + new.to_bytes(size, 'little') + content[at + size :]


def _near(number, rng):
  number = int(number) if len(str(number)) < 40 else 0
  yield from _EXTREMES
  yield from (number + 1, max(number - 1, 0), 2 * number, 1000 * number)
  yield int(rng.integers(2**40))


def _spliced(content, header, rng):
  """A part missing, twice, or at the place of another."""
  start, stop = np.sort(rng.integers(0, header + 1, 2))
  stop = min(stop, start + rng.integers(1, 200))
  part, at = content[start:stop], rng.integers(header + 1)
  if rng.random() < 0.4:
    return content[:start] + content[stop:]
  if rng.random() < 0.5:
    return content[:stop] + part + content[stop:]
  return content[:at] + part + content[at + len(part) :]


def _overwritten(content, header, rng):
  at, size = rng.integers(header), rng.integers(1, 40)
  new = rng.bytes(size) if rng.random() < 0.7 else bytes(size)
  return content[:at] + new + content[at + size :]


def _nested(content, header, rng):
  at = rng.integers(header + 1)
  return content[:at] + _NESTED[rng.integers(len(_NESTED))] + content[at:]
