"""The highest of many numbers, without a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import toy
from gemini_jax.adapt import selection

HIGHEST = jax.jit(selection.highest, static_argnums=2)


def draw():
  """Layers of plain numbers, of many equal ones, and of some infinite."""
  x = np.random.default_rng(0).normal(size=(3, 8, 16)).astype(np.float32)
  x[1] = np.round(x[1]) * -0.0
  x[2, :, ::2] = -np.inf
  return x


@pytest.mark.parametrize('count', [0, 1, 37, 100, 128])
def test_as_many_as_asked_for_and_the_highest(count):
  x = draw()
  mask = np.asarray(HIGHEST(x, count, (1, 2)))
  assert mask.sum((1, 2)).tolist() == [count] * 3
  # Zeros of either sign are equal.
  np.testing.assert_array_equal(mask, HIGHEST(x + 0.0, count, (1, 2)))
  for numbers, chosen in zip(x, mask, strict=True):
    threshold = np.sort(numbers, axis=None)[::-1][: count + 1]
    assert (numbers[chosen] >= threshold[count - 1]).all()
    assert chosen[numbers > threshold[-1]].all()


def test_each_choice_has_a_count_of_its_own():
  counts = np.asarray([3, 0, 128], np.uint32).reshape(3, 1, 1)
  mask = HIGHEST(draw(), counts, (1, 2))
  assert mask.sum((1, 2)).tolist() == [3, 0, 128]
  assert (HIGHEST(draw(), 2, (1,)).sum(1) == 2).all()


def test_of_all_arrays_together():
  x, y = draw()[0], draw()[2, :3]
  chosen = jax.jit(selection.highest_overall)([x, y], 50)
  flat = np.concatenate([x.ravel(), y.ravel()])
  mask = np.concatenate([np.asarray(one).ravel() for one in chosen])
  assert mask.sum() == 50
  np.testing.assert_array_equal(mask, flat >= np.sort(flat)[-50])
  equal = jax.jit(selection.highest_overall)(
    [np.zeros_like(x), np.zeros_like(y)], 61
  )
  assert sum(int(one.sum()) for one in equal) == 61


def test_devices_exchange_counts_alone():
  """No array is gathered and none is sorted; the choice is the same."""
  mesh = toy.make_mesh(data=2, fsdp=2, tensor=2)
  place = NamedSharding(mesh, P(None, 'fsdp', 'tensor'))
  x = jax.device_put(jnp.asarray(draw()), place)
  compiled = HIGHEST.lower(x, 37, (1, 2)).compile()
  text = compiled.as_text()
  assert 'all-reduce' in text
  for operation in ('all-gather', 'all-to-all', 'collective-permute', 'sort('):
    assert operation not in text
  np.testing.assert_array_equal(compiled(x, 37), HIGHEST(draw(), 37, (1, 2)))
