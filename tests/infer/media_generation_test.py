"""What is written is what the mixture says, one z after the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import photo
import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer
from gemini_jax.infer import latents, media_generation, request
from gemini_jax.models import gemini

BYTES = tokenizer.Bytes()
WORDS = ('dark', 'a much longer one', 'light')


def setting(cross=False, latent=0, **fields):
  kind = 'encoder_decoder' if cross else 'decoder'
  objective = 'seq2seq' if cross else 'prefix'
  return config_lib.Config(
    model=photo.model(
      architecture=kind,
      latent=config_lib.Latent(dim=latent),
      num_encoder_layers=1 if cross or latent else None,
    ),
    data=config_lib.Data(
      tasks=('{word} -> {image:picture}',),
      pack=False,
      sequence_length=40,
      inputs_length=24,
      objective=objective,
    ),
    generate=config_lib.Generate(**fields),
  )


@pytest.fixture(scope='module', params=[False], ids=['decoder'])
def drawn(request):
  config = setting(request.param)
  model = gemini.Gemini(config.model)
  return config, model, toy.model_params(model)


def requests(words=WORDS):
  return [
    request.Request(word, np.asarray(BYTES.encode(word), np.int32))
    for word in words
  ]


def paint(drawn, kind='image', words=WORDS, numbers=None, **fields):
  config, model, params = drawn
  options = dataclasses.replace(config.generate, **fields)
  own = dataclasses.replace(config, generate=options)
  return media_generation.generate(
    own, model, params, BYTES, kind, requests(words), numbers
  )


def whole(config, word, kind, z):
  """The batch that holds a finished row, for the full forward pass."""
  ids = np.asarray(BYTES.encode(word), np.int32)
  slots = np.full(len(z), config.model.placeholder(kind), np.int32)
  end = [BYTES.eos_id]
  lead = [BYTES.bos_id]
  if not config.model.cross:
    lead = np.concatenate([lead, ids, end])
  tokens = np.concatenate([lead, slots]).astype(np.int32)[None]
  decoder = batch_lib.plain_sequence(tokens, np.array([tokens.shape[1]]))
  encoder = None
  if config.model.cross:
    inputs = np.concatenate([ids, end])[None].astype(np.int32)
    encoder = batch_lib.plain_sequence(inputs, np.array([inputs.shape[1]]))
  return decoder, encoder, len(lead)


def test_each_z_is_the_mean_of_the_likeliest_normal(drawn):
  """At temperature 0, of the densities of one pass over all of it."""
  config, model, params = drawn
  for found, word in zip(paint(drawn, temperature=0.0), WORDS, strict=True):
    assert found.prompt == word
    assert found.values.shape == (8, 8, 1) and found.values.dtype == np.uint8
    assert found.z.shape == (4, 3)
    decoder, encoder, first = whole(config, word, 'image', found.z)

    def read(module, z_1NZ, decoder=decoder, encoder=encoder, first=first):
      memory = None
      if encoder is not None:
        memory, _ = module.encode(encoder)
      soft = module.perception.embed_latents('image', z_1NZ)
      soft = jnp.pad(soft, ((0, 0), (first, 0), (0, 0)))
      prefix = jnp.arange(decoder.tokens.shape[1])[None] < first
      x, _, _ = module.decode_hidden(
        decoder,
        memory_BSD=memory,
        memory=encoder,
        prefix_BT=None if config.model.cross else prefix,
        soft_BTD=soft,
      )
      return module.perception.density('image', x[:, first - 1 : -1])

    density = jax.jit(
      lambda z_1NZ, read=read: model.apply(
        {'params': params}, z_1NZ, method=read
      )
    )(found.z[None])
    best = np.asarray(density.logits).argmax(axis=-1)[..., None, None]
    means = np.take_along_axis(np.asarray(density.normals.mean), best, axis=2)
    np.testing.assert_allclose(found.z, means[0, :, 0], atol=2e-4)


def test_rows_do_not_see_each_other(drawn):
  alone = paint(drawn, words=WORDS[:1], temperature=1.0, count=2)
  beside = paint(drawn, temperature=1.0, count=2)
  for one, other in zip(alone, beside[:2], strict=True):
    np.testing.assert_allclose(one.z, other.z, atol=1e-4)
  assert np.abs(alone[0].z - alone[1].z).max() > 1e-3
  twice = paint(drawn, words=[WORDS[0]] * 2, temperature=1.0, numbers=[1, 0])
  for one, other in zip(alone[::-1], twice, strict=True):
    np.testing.assert_allclose(one.z, other.z, atol=1e-4)
  again = paint(drawn, words=WORDS[:1], temperature=1.0, count=2, seed=1)
  assert np.abs(alone[0].z - again[0].z).max() > 1e-3


def test_a_sound_ends_by_itself_or_at_its_longest(drawn):
  found = paint(drawn, kind='audio', count=8, temperature=1.0)
  most = photo.model().soft_tokens('audio')
  lengths = {len(own.z) for own in found}
  assert min(lengths) >= 1 and max(lengths) <= most
  for own in found:
    assert own.values.shape == (4 * len(own.z), 4)
    assert own.values.dtype == np.float32


def test_guidance_leaves_the_rest_as_it_is(drawn):
  """A little of it is a draw of the same mixtures."""
  few = paint(drawn, words=WORDS[:2], temperature=1.0, guidance=1e-6)
  assert [own.prompt for own in few] == list(WORDS[:2])
  much = paint(drawn, words=WORDS[:2], temperature=1.0, guidance=5.0)
  assert np.abs(few[0].z - much[0].z).max() > 1e-3


def test_a_sound_and_its_twin_without_inputs_end_together(drawn, monkeypatch):
  """However long the inputs are: or nothing would guide the end of a sound."""
  decode_latents, states = media_generation.MediaDecoder.decode_latents, []

  def kept(painter, params, state):
    states.append(state)
    return decode_latents(painter, params, state)

  monkeypatch.setattr(media_generation.MediaDecoder, 'decode_latents', kept)
  paint(drawn, kind='audio', count=8, temperature=1.0, guidance=1.0)
  (state,) = states
  own_B, twin_B = np.split(np.asarray(state.lengths - state.starts), 2)
  np.testing.assert_array_equal(own_B[:24], twin_B[:24])
  assert len(set(own_B[:24])) > 1


@pytest.mark.parametrize('cross', [True], ids=['cross'])
def test_a_latent_says_what_is_written(cross):
  """Z of the prior, or of the inputs where those are encoded."""
  config = setting(cross, latent=2)
  model = gemini.Gemini(config.model)
  drawn = config, model, toy.model_params(model)
  calm = {'temperature': 0.0, 'words': WORDS[:2]}
  found = paint(drawn, **calm, count=3)
  for word in range(2):
    # What is written is likeliest: they differ by their z alone.
    zs = [own.z for own in found[3 * word : 3 * word + 3]]
    assert all(np.isfinite(z).all() for z in zs)
    assert np.abs(zs[0] - zs[1]).max() > 1e-3
  (again,) = paint(
    drawn, temperature=0.0, words=WORDS[1:2], numbers=[2], guidance=1e-6
  )
  np.testing.assert_allclose(again.z, found[5].z, atol=1e-3)
  rows = [(own, i) for own in requests() for i in range(2)]
  z = latents.draw_request_latents(config, model, drawn[2], BYTES, rows)
  same = np.abs(z[0] - z[2]).max() < 1e-5
  assert same != cross
  for fields in ({'source': 'analogy'}, {'latent': (1.0, 2.0)}):
    with pytest.raises(config_lib.ConfigError, match=next(iter(fields))):
      paint(drawn, **fields)


def test_what_does_not_fit_is_refused(drawn):
  config, model, params = drawn
  if config.model.cross:
    return
  with pytest.raises(
    config_lib.ConfigError, match=r'more than model\.max_length'
  ):
    paint((config, model, params), words=['w' * 36])


def test_rendering_is_the_autoencoders(drawn):
  _, model, params = drawn
  (found,) = paint(drawn, words=WORDS[:1], temperature=0.0)
  decode = lambda module, z: module.perception.decode_latents('image', z, None)
  decoded = jax.jit(
    lambda z: model.apply({'params': params}, z, method=decode)
  )(found.z[None])
  pixels = np.clip(np.round((np.asarray(decoded)[0] + 1) * 127.5), 0, 255)
  assert np.abs(pixels - found.values).max() <= 1
  assert len(np.unique(found.values)) > 3
