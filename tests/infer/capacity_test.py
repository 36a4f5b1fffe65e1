"""Sizes of a batch: few, large enough, and within the memory that is free."""

import dataclasses

import jax
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.infer import capacity
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import sharding


@pytest.mark.parametrize(
  ('tokens', 'limit', 'slots'),
  [
    (1, 2048, 64),
    (64, 2048, 64),
    (65, 2048, 128),
    (1500, 1600, 1600),
    (9, 8, 8),
  ],
)
def test_slots_are_a_power_of_two_up_to_the_limit(tokens, limit, slots):
  assert capacity.slots(tokens, limit) == slots


def test_all_lengths_need_few_sizes():
  sizes = {capacity.slots(tokens, 1000) for tokens in range(1, 1001)}
  assert sizes == {64, 128, 256, 512, 1000}
  assert all(capacity.slots(n, 1000) >= n for n in range(1, 1001))


def config(**fields):
  model = toy.model(max_length=512, **fields).config
  objective = 'seq2seq' if model.cross else 'causal'
  return config_lib.Config(
    model=model, data=config_lib.Data(objective=objective)
  )


def test_the_field_sets_the_rows():
  options = config_lib.Generate(batch_size=37)
  own = dataclasses.replace(config(), generate=options)
  assert capacity.max_rows(own, 512, 0) == 37


def test_rows_follow_the_free_memory(monkeypatch):
  one = capacity.row_bytes(config(), 512, 0)
  rows = []
  for free in (0, 2 * one, 7 * one, 40 * one, 2**60):
    monkeypatch.setattr(capacity, 'free_memory', lambda free=free: free)
    rows.append(capacity.max_rows(config(), 512, 0))
  assert rows == [1, 1, 2, 16, capacity._MAX_ROWS]


def test_a_row_holds_its_caches():
  for fields, memory_length in (
    ({}, 0),
    ({'architecture': 'encoder_decoder'}, 30),
  ):
    own = config(**fields)
    cache = jax.eval_shape(
      lambda own=own, length=memory_length: gemini.init_cache(
        own.model, 1, 512, length
      )
    )
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert size < capacity.row_bytes(own, 512, memory_length) < 20 * size
  assert capacity.row_bytes(config(), 64, 0) < capacity.row_bytes(
    config(), 512, 0
  )


def test_a_draft_takes_memory_of_the_rows(monkeypatch):
  """Its cache, and both models' probabilities of what it drafts."""
  own, small = config(), toy.model(max_length=512, num_layers=1).config
  cache = jax.eval_shape(lambda: gemini.init_cache(small, 1, 512, 0))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
  alone = capacity.row_bytes(own, 512, 0)
  both = capacity.row_bytes(own, 512, 0, draft=small)
  num = 2 * own.generate.draft_tokens + 1
  assert both - alone == size + 4 * num * own.model.vocab_size
  monkeypatch.setattr(capacity, 'free_memory', lambda: 4 * both - 2)
  assert capacity.max_rows(own, 512, 0) == 2
  assert capacity.max_rows(own, 512, 0, small) == 1


def test_a_mesh_holds_more_rows(monkeypatch):
  one = capacity.row_bytes(config(), 512, 0)
  monkeypatch.setattr(capacity, 'free_memory', lambda: 4 * one)
  assert capacity.max_rows(config(), 512, 0) == 2
  mesh = mesh_lib.make_mesh(config_lib.Parallel(data=4, tensor=2))
  with sharding.use(mesh):
    # Two rows a device and more, as two devices share the heads of a row.
    assert capacity.max_rows(config(), 512, 0) >= 8


def test_free_memory_is_the_hosts_share_of_each_cpu_device():
  free = capacity.free_memory()
  assert 0 < free * jax.local_device_count() <= 2**50
