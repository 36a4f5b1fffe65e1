"""Class probabilities are means over views of a picture."""

import dataclasses
import types

import jax
import numpy as np
import pytest

import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.evaluate import class_predictions, views
from gemini_jax.models import gemini

B, SIDE, PATCH, C = 3, 8, 4, 5
MODEL = config_lib.Model(
  vocab_size=toy.VOCAB_SIZE,
  num_classes=C,
  max_length=8,
  width=16,
  num_layers=1,
  num_heads=2,
  mlp_dim=16,
  image=config_lib.Image(height=SIDE, width=SIDE, channels=1, patch=PATCH),
)


def batch_of(values, sizes):
  """A row for each picture [B, H, W, 1], that asks for its class."""
  tokens = np.ones((B, 6), np.int32)
  count = np.prod(-(-sizes // PATCH), axis=1)
  is_picture = (np.arange(6) >= 1) & (np.arange(6) <= count[:, None])
  tokens[is_picture] = MODEL.placeholder('image')
  length = count + 2
  sequence = batch_lib.plain_sequence(tokens, length)
  media = batch_lib.Media(values[:, None], sizes[:, None].astype(np.int32))
  last = np.arange(6) == length[:, None] - 1
  return batch_lib.Batch(
    decoder=dataclasses.replace(sequence, media={'image': media}),
    targets=np.zeros((B, 6), np.int32),
    weights=last.astype(np.float32),
  )


def views_of(values, sizes):
  """The six views by numpy, each within the extent of its picture."""
  for shift in (0, -1, 1):
    for step in (1, -1):
      result = np.zeros_like(values)
      for x, y, (rows, columns) in zip(values, result, sizes, strict=True):
        inside = x[:rows, :columns][:, ::step]
        padded = np.pad(inside, ((1, 1), (1, 1), (0, 0)), 'edge')
        start = 1 - shift
        moved = padded[start : start + rows, start : start + columns]
        y[:rows, :columns] = moved
      yield result


@pytest.mark.parametrize('count', [2, 6])
def test_probabilities_are_means_over_views(count):
  rng = np.random.default_rng(0)
  values = rng.integers(0, 256, (B, SIDE, SIDE, 1)).astype(np.uint8)
  sizes = np.array([[8, 8], [5, 7], [8, 3]])
  model = gemini.Gemini(MODEL)
  init = lambda: gemini.init_params(model, jax.random.key(0))
  params = toy.random_tree(jax.eval_shape(init), scale=1.0)
  config = config_lib.Config(
    model=MODEL,
    data=config_lib.Data(
      tasks=('{image:image} -> {class:label}',),
      objective='prefix',
      sequence_length=6,
      pack=False,
    ),
    evaluate=config_lib.Evaluate(test_time_views=count),
  )
  alone = dataclasses.replace(config, evaluate=config_lib.Evaluate())
  step, one = (
    class_predictions.make_step(types.SimpleNamespace(config=c, model=model))
    for c in (config, alone)
  )
  found, truth, segments = step(params, batch_of(values, sizes))
  assert found.shape == (B, 1, C) and truth.shape == segments.shape == (B, 1)
  each = [
    one(params, batch_of(view, sizes))[0] for view in views_of(values, sizes)
  ]
  np.testing.assert_allclose(found, np.mean(each[:count], axis=0), atol=1e-6)
  # No view is as another, nor all as the first.
  assert np.abs(found - each[0]).max() > 0.01


def test_what_is_no_picture_has_one_view():
  rng = np.random.default_rng(0)
  values = rng.integers(0, 256, (B, SIDE, SIDE, 1)).astype(np.uint8)
  batch = batch_of(values, np.full((B, 2), SIDE))
  shapes = {'number': (2, 1), 'series': (2, 9, 4), 'audio': (2, 9)}
  others = {
    kind: batch_lib.Media(
      rng.normal(size=(B, *shape)), np.ones((B, 2, 1), np.int32)
    )
    for kind, shape in shapes.items()
  }
  media = {**batch.decoder.media, **others}
  decoder = dataclasses.replace(batch.decoder, media=media)
  batch = dataclasses.replace(batch, decoder=decoder)
  for view in views.of(batch, 6)[1:]:
    assert (view.decoder.media['image'].values != values[:, None]).any()
    for kind, medium in others.items():
      assert view.decoder.media[kind] is medium
