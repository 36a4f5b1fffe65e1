"""Soft tokens stand at their placeholders; written media have their losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import photo
import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import gemini, media_embeddings
from gemini_jax.objectives import losses

CONFIG = photo.model()
KEY = jax.random.key(3)
ONLY_MEDIA = dict.fromkeys(vars(config_lib.LossWeights()), 0.0) | {
  'media_nll': 1.0
}


def test_soft_tokens_stand_in_order():
  rng = np.random.default_rng(0)
  B, M, N, D = 2, 3, 4, 5
  x = rng.normal(size=(B, M, N, D)).astype(np.float32)
  counts = np.array([[2, 0, 3], [4, 1, 0]])
  there = rng.random((B, 12)) < 0.7
  found = np.asarray(media_embeddings.align(there, jnp.asarray(x), counts))
  for row in range(B):
    order = np.concatenate([x[row, m, : counts[row, m]] for m in range(M)])
    places = np.flatnonzero(there[row])[: len(order)]
    assert len(places) > 3
    assert np.array_equal(found[row, places], order[: len(places)])


def media(rows=2, seed=0):
  """A picture of all of the canvas and a sound of three of five tokens."""
  rng = np.random.default_rng(seed)
  sound = rng.normal(0, 3000, (rows, 1, 200))
  return {
    'image': batch_lib.Media(
      rng.integers(0, 256, (rows, 1, 8, 8, 1)).astype(np.uint8),
      np.full((rows, 1, 2), 8, np.int32),
    ),
    'audio': batch_lib.Media(
      sound.astype(np.int16), np.full((rows, 1, 1), 111, np.int32)
    ),
  }


def batch(kinds=('image', 'audio'), rows=2, seed=0):
  """bos, a picture, text, a sound, text; all of it a target."""
  rng = np.random.default_rng((seed, 1))
  text = lambda count: list(rng.integers(1, 200, count))
  tokens = []
  for _ in range(rows):
    row = [1]
    for kind in kinds:
      count = {'image': 4, 'audio': 3}[kind]
      row += [CONFIG.placeholder(kind)] * count + text(3)
    tokens.append(row)
  tokens = np.array(tokens, np.int32)
  lengths = np.full(rows, tokens.shape[1] - 1)
  decoder = batch_lib.plain_sequence(tokens[:, :-1], lengths)
  own = {
    kind: value for kind, value in media(rows, seed).items() if kind in kinds
  }
  return batch_lib.Batch(
    dataclasses.replace(decoder, media=own),
    tokens[:, 1:],
    np.ones((rows, tokens.shape[1] - 1), np.float32),
  )


@pytest.fixture(scope='module')
def model():
  return gemini.Gemini(CONFIG)


@pytest.fixture(scope='module')
def params(model):
  return toy.model_params(model)


@pytest.fixture(scope='module')
def sums(model):
  @jax.jit
  def run(params, batch):
    return losses.model_sums(
      model,
      params,
      batch,
      key=KEY,
      config=config_lib.Train(),
      loss_weights=ONLY_MEDIA,
    )

  return run


@pytest.fixture(scope='module')
def logits(model):
  return jax.jit(
    lambda params, batch: model.apply({'params': params}, batch)[0]
  )


def changed(batch, kind, seed=5):
  own = dict(batch.decoder.media) | {kind: media(seed=seed)[kind]}
  return batch.replace(decoder=dataclasses.replace(batch.decoder, media=own))


@pytest.mark.parametrize(('kind', 'first'), [('image', 1), ('audio', 8)])
def test_a_medium_is_read_from_its_place_on(logits, params, kind, first):
  """And not before: what is written next does not see it."""
  one = batch()
  a, b = logits(params, one), logits(params, changed(one, kind))
  differs = np.abs(np.asarray(a - b)).max(axis=(0, 2)) > 1e-6
  assert not differs[:first].any() and differs[first:].all()


def test_what_lies_beyond_an_extent_is_not_read(logits, params):
  one = batch()
  own = dict(one.decoder.media)
  sound = own['audio']
  values = sound.values.copy()
  values[:, :, 111:] = 9999
  own['audio'] = batch_lib.Media(values, sound.sizes)
  other = one.replace(decoder=dataclasses.replace(one.decoder, media=own))
  np.testing.assert_allclose(
    logits(params, one), logits(params, other), atol=1e-5
  )


def test_the_written_loss_is_that_of_the_mixture(model, params, sums):
  """Nats of each number of z, of a picture alone, computed step by step."""
  one = batch(('image',))
  found = sums(params, one)
  total, count = found.terms['media_nll']
  assert count == 8 and found.terms['reconstruction'][1] == 2
  added = float(found.objective - found.loss)
  assert added == pytest.approx(float(total), rel=1e-4)

  def by_hand(module, batch):
    embedded = module.encode_media(batch.decoder.media, deterministic=False)
    soft_BTD = module.scatter_soft_tokens(batch.decoder, embedded)
    x_BTD, _, _ = module.decode_hidden(batch.decoder, soft_BTD=soft_BTD)
    density = module.perception.density('image', x_BTD[:, :4])
    z = embedded.z['image']
    return -jnp.sum(density.log_prob(z[:, 0])) / z.shape[-1], z

  rngs = {'latent': jax.random.fold_in(KEY, 1)}
  expected, z = jax.jit(
    lambda p, b: model.apply({'params': p}, b, rngs=rngs, method=by_hand)
  )(params, one)
  assert z.shape == (2, 1, 4, 3)
  assert float(total) == pytest.approx(float(expected), rel=1e-4)


def gradient(sums, params, name):
  """Of a term by all parameters, [path, largest]."""
  one = batch()
  grads = jax.jit(jax.grad(lambda params: sums(params, one).terms[name][0]))(
    params
  )
  leaves = jax.tree_util.tree_flatten_with_path(grads)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.abs(leaf).max()
    for path, leaf in leaves
  }


def test_the_transformer_does_not_move_the_autoencoder(sums, params):
  own = gradient(sums, params, 'media_nll')
  auto = [k for k in own if 'autoencoders' in k]
  assert auto and not any(own[k] for k in auto)
  assert all(own[k] > 0 for k in own if 'heads' in k or 'projectors' in k)
  own = gradient(sums, params, 'reconstruction')
  assert all(own[k] > 0 for k in auto if 'kernel' in k)
  assert not any(own[k] for k in own if k not in auto)


def test_a_row_without_media_is_read_as_text(logits, params):
  """Of one program: what stands in the arrays of others has no say."""
  one = batch()
  words = np.random.default_rng(0).integers(1, 200, one.decoder.tokens.shape)
  plain = one.replace(
    decoder=dataclasses.replace(one.decoder, tokens=words.astype(np.int32))
  )
  np.testing.assert_allclose(
    logits(params, plain), logits(params, changed(plain, 'image')), atol=1e-6
  )


def test_videos_share_the_encoder_of_pictures():
  config = photo.model(
    image=dataclasses.replace(
      CONFIG.image, autoencoder=config_lib.Autoencoder()
    ),
    audio=config_lib.Audio(),
    video=config_lib.Video(num_frames=3, frame_tokens=1),
  )
  shapes = jax.eval_shape(
    lambda: gemini.init_params(gemini.Gemini(config), jax.random.key(0))
  )
  own = shapes['perception']
  assert {'video', 'encoders_image'} <= set(own), set(own)
  assert config.kinds == ('image', 'video')
