"""z of samples: reproducible, typical between texts, refused where wrong."""

import dataclasses

import numpy as np
import pytest

import photo
import toy
from gemini_jax import batch
from gemini_jax import config as config_lib
from gemini_jax.data import medium, tokenizer
from gemini_jax.infer import latents, request
from gemini_jax.models import gemini

DIM = 6


class Words(tokenizer.Tokenizer):
  """A tokenizer of letters."""

  def __init__(self):
    super().__init__([b'?'] * 23)

  def encode(self, text):
    return np.array([3 + ord(c) % 20 for c in text], np.int32)


@pytest.fixture(scope='module')
def built():
  model = toy.model(latent=config_lib.Latent(dim=DIM))
  return model, toy.model_params(model)


def drawn(built, data=(), **fields):
  model, params = built
  config = config_lib.Config(
    model=model.config,
    data=config_lib.Data(pack=False, sequence_length=12, **dict(data)),
    generate=config_lib.Generate(**fields),
  )
  return latents.draw_latents(config, model, params, Words())


def encoded(built, *texts):
  model, params = built
  config = config_lib.Config(
    model=model.config, data=config_lib.Data(pack=False, sequence_length=12)
  )
  return latents.encode(config, model, params, Words(), texts)


def test_a_sample_has_its_own_z_whatever_their_number(built):
  four = drawn(built, source='prior', count=4)
  np.testing.assert_array_equal(drawn(built, source='prior', count=2), four[:2])
  assert len(np.unique(four[:, 0])) == 4
  assert (drawn(built, source='prior', count=4, seed=1) != four).all()
  np.testing.assert_array_equal(
    drawn(built, source='prior', latent_temperature=0.0), np.zeros((1, DIM))
  )


def test_a_text_has_the_z_of_its_posterior(built):
  options = {'source': 'posterior', 'prompt': 'abcd'}
  mean = drawn(built, latent_temperature=0.0, **options)
  alone = encoded(built, 'abcd')
  among = encoded(built, 'xyz', 'abcd', 'a')
  np.testing.assert_allclose(mean[0], alone.mean[0], rtol=1e-5)
  np.testing.assert_allclose(among.mean[1], alone.mean[0], rtol=1e-5)
  assert not np.allclose(among.mean[0], alone.mean[0], atol=1e-3)
  many = drawn(built, count=4000, **options)
  np.testing.assert_allclose(many.mean(axis=0), mean[0], atol=0.15)
  spread = np.exp(0.5 * alone.log_var[0])
  np.testing.assert_allclose(many.std(axis=0), spread, rtol=0.1)


def test_inputs_have_the_z_of_what_their_media_show():
  """Where the encoder reads them, whatever stands beside them."""
  config = config_lib.Config(
    model=photo.model(
      architecture='encoder_decoder', latent=config_lib.Latent(dim=DIM)
    ),
    data=config_lib.Data(
      tasks=('{image:picture} -> {word}',),
      objective='seq2seq',
      pack=False,
      sequence_length=24,
      inputs_length=24,
    ),
    generate=config_lib.Generate(latent_temperature=0.0),
  )
  model = gemini.Gemini(config.model)
  params = toy.model_params(model)
  slots = np.full(4, config.model.placeholder('image'), np.int32)
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
  size = np.array([8, 8], np.int32)
  asked = [
    request.Request('', slots, {'image': [medium.Medium(values, size)]})
    for values in pixels
  ]
  rows = [(asked[0], 0), (asked[1], 0), (asked[0], 7)]
  z = latents.draw_request_latents(config, model, params, Words(), rows)
  np.testing.assert_allclose(z[0], z[2], atol=1e-5)
  assert np.abs(z[0] - z[1]).max() > 1e-3
  sequence = dataclasses.replace(
    batch.plain_sequence(
      np.append(slots, Words().eos_id)[None].astype(np.int32), np.array([5])
    ),
    media={'image': batch.Media(pixels[1:, None], size[None, None])},
  )
  posterior = model.apply({'params': params}, sequence, method='posterior')
  np.testing.assert_allclose(z[1], posterior.mean[0], atol=1e-4)


def test_between_two_texts_the_ends_are_theirs(built):
  path = drawn(built, source='interpolate', prompt='abcd || qrst', count=5)
  ends = [
    drawn(built, source='posterior', prompt=text, latent_temperature=0.0)[0]
    for text in ('abcd', 'qrst')
  ]
  np.testing.assert_allclose(path[[0, -1]], ends, rtol=1e-4, atol=1e-5)


def test_an_analogy_is_a_sum(built):
  found = drawn(
    built, source='analogy', prompt='ab||cd||xy', latent_temperature=0.0
  )
  one, two, three = encoded(built, 'ab', 'cd', 'xy').mean
  np.testing.assert_allclose(found[0], three + two - one, rtol=1e-4, atol=1e-5)


def test_the_way_is_an_arc_of_evenly_changing_length():
  rng = np.random.default_rng(0)
  start, end = rng.normal(size=(2, 200)) * np.array([[1.0], [1.5]])
  path = latents.slerp(start, end, 9)
  lengths = np.linalg.norm(path, axis=1)
  np.testing.assert_allclose(np.diff(lengths, 2), 0, atol=1e-3)
  # A line would be nearly 30 % shorter in the middle.
  assert lengths[4] == pytest.approx((lengths[0] + lengths[-1]) / 2, rel=1e-4)
  directions = path / lengths[:, None]
  angles = np.arccos(np.sum(directions[1:] * directions[:-1], axis=1))
  np.testing.assert_allclose(angles, angles.mean(), rtol=1e-3)
  np.testing.assert_allclose(latents.slerp(start, start, 3), [start] * 3)


REFUSED = [
  ({'source': 'posterior', 'prompt': ''}, 'an empty text has no posterior'),
  (
    {'source': 'posterior', 'prompt': 'x' * 12},
    'has 13 tokens; the encoder reads at most 12',
  ),
  (
    {'latent': (1.0, 2.0)},
    'generate.latent with 2 numbers must have model.latent.dim=6',
  ),
]


@pytest.mark.parametrize(('fields', 'message'), REFUSED, ids=str)
def test_what_cannot_be_is_refused(built, fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    drawn(built, **fields)


@pytest.mark.parametrize(
  'fields', [{'source': 'prior'}, {'latent': (1.0,)}], ids=str
)
def test_a_model_without_a_latent_is_told(fields):
  model = toy.model()
  with pytest.raises(config_lib.ConfigError, match=r'model\.latent\.dim is 0'):
    drawn((model, toy.model_params(model)), **fields)


def test_pairs_have_no_z_of_their_inputs_alone(built):
  """The latent of a decoder has learned from inputs and targets together."""
  pairs = {'inputs_field': 'a', 'targets_field': 'b'}
  with pytest.raises(config_lib.ConfigError, match=r'data.inputs_field=.a.'):
    drawn(built, pairs, source='posterior', prompt='abcd')
  assert drawn(built, pairs, source='prior', prompt='abcd').shape == (1, DIM)


@pytest.fixture(scope='module')
def reader():
  """Whose decoder reads the text beside its z."""
  model = toy.model(
    latent=config_lib.Latent(dim=DIM), architecture='encoder_decoder'
  )
  return model, toy.model_params(model)


def test_the_prior_is_what_is_asked_for_with_an_encoder(reader):
  seq2seq = {'objective': 'seq2seq', 'inputs_length': 12}
  prior = drawn(reader, seq2seq, source='prior', latent_temperature=0.0)
  np.testing.assert_array_equal(prior, np.zeros((1, DIM)))
  read = [
    drawn(reader, seq2seq, source=source, prompt='ab', latent_temperature=0.0)
    for source in ('prompt', 'posterior')
  ]
  np.testing.assert_array_equal(*read)
  assert np.abs(read[0]).max() > 1e-3
  with pytest.raises(config_lib.ConfigError, match=r'takes prompt, prior or'):
    drawn(reader, seq2seq, source='interpolate', prompt='ab || cd')


def test_a_given_z_serves_all_samples(built):
  given = tuple(float(i) for i in range(DIM))
  found = drawn(built, latent=given, count=3)
  np.testing.assert_array_equal(found, [given] * 3)
