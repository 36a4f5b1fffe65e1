"""A model whose every matrix is stored in another way is the same model.

What the forward pass, the loss, its gradient, decoding and likelihoods are for
plain matrices, they are for a matrix with a low-rank update, as if both had
been added up. A use of a parameter that goes past layers/matmul.py fails.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import low_rank
import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.evaluate import likelihood
from gemini_jax.models import gemini
from gemini_jax.objectives import losses
from gemini_jax.steer import guided_decoding

ROWS = 2
_PICTURE = {'height': 8, 'width': 8, 'channels': 1, 'patch': 4}
_SOUND = {'sample_rate': 1000, 'seconds': 0.2, 'num_mels': 4, 'patch': 4}
_SOUND |= {'window': 0.02, 'hop': 0.01}
# Together they have every kind of parameter.
MODELS = {
  'encoder_decoder': {
    'architecture': 'encoder_decoder',
    'attention_pattern': ('local', 'global'),
    'num_experts': 4,
    'experts_per_token': 2,
    'expert_dim': 6,
    'shared_expert_dim': 4,
    'latent': config_lib.Latent(
      dim=4, memory=2, embedding=True, prior='mixture', num_components=3
    ),
    'position': 'learned',
    'tie_embeddings': False,
    'contrast_dim': 6,
  },
  'decoder': {'tie_embeddings': True, 'gated': False},
  'autoencoders': {
    'image': config_lib.Image(
      **_PICTURE,
      autoencoder=config_lib.Autoencoder(dim=3, width=16, num_components=2),
    ),
    'audio': config_lib.Audio(
      **_SOUND,
      autoencoder=config_lib.Autoencoder(dim=2, width=16, num_components=2),
    ),
  },
  'encoders': {
    'image': config_lib.Image(**_PICTURE, num_layers=1, num_tokens=2),
    'audio': config_lib.Audio(**_SOUND, num_layers=1, num_tokens=2),
    'video': config_lib.Video(num_frames=2, frame_tokens=1),
  },
  'convolutions': {'image': config_lib.Image(**_PICTURE, num_blocks=1)},
}


def media_of(config):
  """Media of the canvas' size, by kind, and how many tokens they take."""
  rng = np.random.default_rng(0)
  media, counts = {}, {}
  for kind in config.kinds:
    blank = batch_lib.blank_media(kind, config, ROWS, 1)
    high = 3000 if kind == 'audio' else 255
    values = rng.integers(0, high, blank.values.shape)
    canvas = (config.image.height, config.image.width)
    size = {
      'image': canvas,
      'audio': (config.audio.num_samples,),
      'video': (config.video.num_frames, *canvas),
    }[kind]
    media[kind] = batch_lib.Media(
      values.astype(blank.values.dtype),
      np.broadcast_to(np.int32(size), blank.sizes.shape),
    )
    counts[kind] = config.soft_tokens(kind)
  return media, counts


def make_batch(config):
  """Each medium at its placeholders, and text; all of it is a target."""
  rng = np.random.default_rng(1)
  media, counts = media_of(config)
  text = lambda: rng.integers(1, 20, (ROWS, 3))
  parts = [text()]
  for kind, count in counts.items():
    parts += [np.full((ROWS, count), config.placeholder(kind)), text()]
  tokens = np.concatenate([*parts, text()], axis=1).astype(np.int32)
  length = tokens.shape[1] - 1
  decoder = batch_lib.plain_sequence(tokens[:, :-1], np.full(ROWS, length))
  encoder = toy.sequence(ROWS, 5, seed=3) if config.cross else None
  return batch_lib.Batch(
    dataclasses.replace(decoder, media=media),
    tokens[:, 1:],
    np.ones((ROWS, length), np.float32),
    encoder=encoder,
  )


@functools.cache
def case(name):
  """(model, batch, parameters with updates)."""
  model = toy.model(max_length=32, **MODELS[name])
  plain = toy.model_params(model)
  params, count = low_rank.put(plain)
  matrices = [
    leaf
    for leaf in jax.tree.leaves(params, is_leaf=low_rank.is_weight)
    if low_rank.is_weight(leaf)
  ]
  assert len(matrices) == count > 5
  return model, make_batch(model.config), params


def assert_same(measure, name):
  """`measure(model, batch, params)` sees no difference, and does see much."""
  model, batch, params = case(name)
  run = jax.jit(functools.partial(measure, model, batch))
  found, expected = run(params), run(low_rank.merged(params))
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    found,
    expected,
  )
  # The updates matter: without them it is another model.
  base = low_rank.base(params)
  for a, b in zip(
    jax.tree.leaves(expected), jax.tree.leaves(run(base)), strict=True
  ):
    assert not np.allclose(a, b, rtol=1e-2, atol=1e-3)


def forward(model, batch, params):
  return model.apply({'params': params}, batch)[0]


def likelihoods(model, batch, params):
  return likelihood.measure(
    model, params, [batch], num_samples=2, num_sequences=ROWS
  )


def decoded(model, batch, params):
  """Logits of a prompt, and then of a token from the cache."""
  apply = functools.partial(model.apply, {'params': params})
  decoder, kwargs = batch.decoder, {}
  memory_length = 0
  if model.config.cross:
    memory_BSD, _ = apply(batch.encoder, method='encode')
    kwargs['memory'] = batch.encoder
    memory_length = memory_BSD.shape[1]
  if model.config.latent.dim:
    z = apply(method='prior').normals.mean
    kwargs['latent_BZ'] = z[:ROWS]
  length = decoder.tokens.shape[1]
  cache = gemini.init_cache(model.config, ROWS, length, memory_length)
  split, logits = length - 1, []
  for start, stop in ((0, split), (split, length)):
    part = batch_lib.Sequence(
      *(
        jnp.asarray(leaf)[:, start:stop]
        for leaf in (decoder.tokens, decoder.positions, decoder.segments)
      )
    )
    more = {}
    if start == 0 and model.config.cross:
      more['memory_BSD'] = memory_BSD
    if model.config.kinds:
      soft_BTD = apply(decoder, method='media_embeddings')
      more['soft_BTD'] = soft_BTD[:, start:stop]
    logits_BTV, cache, _ = apply(
      part, cache=cache, method='decode', **kwargs, **more
    )
    logits.append(logits_BTV)
  return jnp.concatenate(logits, axis=1)


def media_written(model, batch, params):
  """What is drawn from: the density of z, and media of z."""
  found = {}
  for kind in model.config.kinds:
    section = getattr(model.config, kind)
    if not model.config.writes(kind):
      continue
    count = model.config.soft_tokens(kind)
    z_BNZ = toy.normal((ROWS, count, section.autoencoder.dim), 4)
    x_BTD = toy.normal((ROWS, 3, model.config.width), 5)

    def both(module, kind=kind, z_BNZ=z_BNZ, x_BTD=x_BTD):
      perception = module.perception
      return (
        perception.decode_latents(kind, z_BNZ, None),
        perception.density(kind, x_BTD).normals.mean,
        perception.embed_latents(kind, z_BNZ),
      )

    found[kind] = model.apply({'params': params}, method=both)
  return found


def guided(model, batch, params):
  """The tokens' vectors that guided decoding reads beside the model."""
  tokens_NT = jnp.pad(batch.decoder.tokens, ((0, 0), (0, 1)))
  lengths_N = jnp.full(ROWS, tokens_NT.shape[1] - 1)
  chosen_NS = jnp.asarray([[0, 2], [1, 3]])
  return guided_decoding._features_at(
    model, params, tokens_NT, lengths_N, chosen_NS, None
  )


@pytest.mark.parametrize('name', MODELS)
def test_the_forward_pass_is_that_of_the_sums(name):
  assert_same(forward, name)


@pytest.mark.parametrize('name', MODELS)
def test_decoding_is_that_of_the_sums(name):
  assert_same(decoded, name)


@pytest.mark.parametrize('name', ['encoder_decoder', 'decoder'])
def test_likelihoods_are_those_of_the_sums(name):
  model, batch, params = case(name)
  found = likelihoods(model, batch, params)
  expected = likelihoods(model, batch, low_rank.merged(params))
  assert found == pytest.approx(expected, rel=1e-4)


def test_written_media_are_those_of_the_sums():
  assert_same(media_written, 'autoencoders')


def test_guidance_reads_the_sums():
  assert_same(guided, 'decoder')


@functools.cache
def loss_and_gradient(model):
  """Of the objective with all of its terms, by the parts of every weight."""
  config = config_lib.Config()
  weights = losses.weights_at(config, jnp.asarray(500))

  def objective(params, batch, merge):
    sums = losses.model_sums(
      model,
      low_rank.merged(params) if merge else params,
      batch,
      key=jax.random.key(7),
      config=config.train,
      loss_weights=weights,
    )
    return sums.objective / sums.weight, sums

  return jax.jit(
    jax.value_and_grad(objective, has_aux=True), static_argnames='merge'
  )


@pytest.mark.parametrize('name', MODELS)
def test_loss_and_gradient_are_those_of_the_sums(name):
  """The gradient by each part is what the chain rule makes of the sum's."""
  model, batch, params = case(name)
  run = loss_and_gradient(model)
  (_, sums), grads = run(params, batch, merge=False)
  (_, expected_sums), expected = run(params, batch, merge=True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
    sums,
    expected_sums,
  )
  for (path, grad), other in zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(expected),
    strict=True,
  ):
    scale = max(np.abs(other).max(), 1e-6)
    np.testing.assert_allclose(
      grad, other, rtol=1e-3, atol=1e-4 * scale, err_msg=str(path)
    )


@pytest.mark.parametrize('name', MODELS)
def test_no_use_goes_past_the_one_door(name):
  """Traced, not run: a weight that is used as if it were an array fails."""
  model, batch, params = case(name)
  for measure in (forward, decoded, media_written):
    traced = jax.eval_shape(functools.partial(measure, model, batch), params)
    assert traced is not None
  (loss, _), grads = jax.eval_shape(
    functools.partial(loss_and_gradient(model), merge=False), params, batch
  )
  assert loss.shape == ()
  assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_every_kind_of_parameter_is_there():
  """A new module with a matrix has to be in one of the models above."""
  names = set()
  for name in MODELS:
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      case(name)[2], is_leaf=low_rank.is_weight
    ):
      if low_rank.is_weight(leaf):
        names.add(path[-1].key)
  assert names == {
    'embedding',
    'kernel',
    'neighbours',
    'prior_log_vars',
    'prior_means',
    'queries',
  }
