"""A larger model computes what the smaller one does; moments go along."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.config import growth as growth_lib
from gemini_jax.models import gemini
from gemini_jax.weights import surgery

GROWTH = config_lib.Growth(method='preserve')
LARGER = {
  'width': 32,
  'num_layers': 4,
  'num_heads': 12,
  'num_kv_heads': 4,
  'mlp_dim': 40,
}
DEEPER = {'num_layers': 4}


@functools.partial(jax.jit, static_argnums=0)
def output(model, params, batch):
  return gemini.Gemini(model).apply({'params': params}, batch)[0]


@pytest.mark.parametrize(
  ('fields', 'sizes', 'options'),
  [
    ({'scale_embeddings': True}, LARGER, {}),
    (
      {
        'norm': 'pre_post',
        'tie_embeddings': False,
        'qk_norm': True,
        'position': 'learned',
        'attention_bias': True,
        'mlp_bias': True,
      },
      LARGER,
      {'order': 'interleave'},
    ),
    (
      {'architecture': 'encoder_decoder'},
      LARGER | {'num_encoder_layers': 3},
      {},
    ),
    (
      {'attention_pattern': ('local', 'global'), 'num_experts': 2},
      DEEPER,
      {},
    ),
  ],
  ids=['tied', 'pre_post', 'encoder_decoder', 'experts'],
)
def test_a_larger_model_computes_the_same(fields, sizes, options):
  before = toy.model(**fields).config
  after = growth_lib.with_sizes(before, sizes)
  growth = dataclasses.replace(GROWTH, **options)
  growth_lib.check_sizes(growth, before, after, 'growth')
  params = toy.model_params(gemini.Gemini(before))
  grown = surgery.Expansion(before, after, growth).tree(params)
  shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
  assert shapes(grown) == shapes(toy.model_params(gemini.Gemini(after)))
  batch = toy.batch(
    encoder=toy.sequence(length=toy.S) if before.cross else None
  )
  expected = output(before, params, batch)
  toy.assert_near(output(after, grown, batch), expected, rtol=1e-4)
  copied = surgery.Expansion(
    before, after, dataclasses.replace(growth, method='copy')
  ).tree(params)
  change = np.abs(output(after, copied, batch) - expected).max()
  assert change > 0.01, 'layers that count change the output'


def test_copies_have_shares_that_differ_and_moments_are_whole():
  before = toy.model().config
  after = growth_lib.with_sizes(before, {'mlp_dim': 48})
  expansion = surgery.Expansion(before, after, GROWTH)
  path = 'decoder/layers/feedforward/down/kernel'
  kernel = toy.normal((2, 24, 16))
  grown = np.asarray(expansion.values(path, kernel))
  np.testing.assert_allclose(grown[:, :24] + grown[:, 24:], kernel, rtol=1e-5)
  assert np.abs(grown[:, :24] - grown[:, 24:]).max() > 0.01
  moments = np.asarray(expansion.copied(path, kernel))
  np.testing.assert_array_equal(moments[:, 24:], kernel)
  assert not np.asarray(expansion.zeros(path, kernel)).any()


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'width': 24}, 'width=16 must divide model.width=24'),
    ({'mlp_dim': 8}, 'mlp_width is 24 there and 8 in model'),
    ({'head_dim': 8}, 'heads of width 4 cannot become heads of width 8'),
    ({'num_kv_heads': 4}, '2 query heads for each key/value head'),
    ({'num_heads': 6}, 'must divide model.num_heads=6'),
  ],
)
def test_what_cannot_grow_is_told(sizes, message):
  before = toy.model().config
  if 'num_heads' in sizes:
    sizes = {'num_heads': 6, 'num_kv_heads': 4}
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    after = growth_lib.with_sizes(before, sizes)
    growth_lib.check_sizes(GROWTH, before, after, 'growth')
  assert '\n' not in str(error.value)
