"""Inputs and targets become vectors, without their padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import photo
import toy
from gemini_jax import config as config_lib
from gemini_jax.data import loader, tokenizer
from gemini_jax.evaluate import retrieval
from gemini_jax.models import contrast, gemini
from gemini_jax.objectives import contrastive, losses

READS = 'see = {image:picture} -> {word}'
HEARS = 'hear = {audio:sound} -> {word}'
PAINTS = 'paint = {word} -> {image:picture}'
MODEL = photo.model(
  architecture='encoder_decoder', num_encoder_layers=1, contrast_dim=6
)
IDS = tuple(MODEL.placeholder(kind) for kind in MODEL.kinds)
# Reads pictures, and writes none.
READER = dataclasses.replace(
  MODEL,
  image=dataclasses.replace(MODEL.image, autoencoder=config_lib.Autoencoder()),
  audio=config_lib.Audio(),
)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return photo.write(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def drawn():
  model = gemini.Gemini(MODEL)
  return model, toy.model_params(model)


def batches(path, *tasks, size=6, model=MODEL):
  data = photo.data(path, *tasks, objective='seq2seq', batch_size=size)
  made = loader.Loader(
    data, tokenizer.Bytes(), 'validation', batch_size=size, model=model
  )
  return [made[t] for t in range(len(made))]


def test_texts_are_equal_media_are_not():
  picture = IDS[0]
  rows = [[3, 4, 0], [3, 4, 0], [3, 5, 0], [picture, 4, 0], [picture, 4, 0]]
  found = contrast.same_texts(np.array(rows), np.array(rows), IDS)
  expected = np.zeros((5, 5), bool)
  expected[:2, :2] = expected[2, 2] = True
  np.testing.assert_array_equal(found, expected)


def test_examples_are_alike_by_what_they_read_or_write():
  """The first reads what the last writes."""
  read = np.array([[3], [IDS[0]], [3], [IDS[0]], [IDS[1]]])
  written = np.array([[5], [6], [8], [6], [3]])
  expected = np.zeros((5, 5), bool)
  for row, column in ((0, 2), (1, 3), (0, 4), (2, 4)):
    expected[row, column] = expected[column, row] = True
  expected[np.diag_indices(5)] = True
  np.testing.assert_array_equal(contrast.alike(read, written, IDS), expected)


def test_tokens_of_pairs_end_with_zeros(path):
  """As long as each other, whatever stands in the padding."""
  batch = batches(path, READS)[0]
  read, written = contrast.pair_tokens(batch)
  assert batch.encoder is not None
  assert read.shape == written.shape
  for tokens, own, real in (
    (read, batch.encoder.tokens, batch.encoder.segments > 0),
    (written, batch.targets, batch.weights > 0),
  ):
    tokens = tokens[:, : own.shape[1]]
    np.testing.assert_array_equal(tokens, np.where(real, own, 0))


def test_inputs_that_were_left_out_change_nothing(path, drawn):
  """Neither as a pair nor as a negative."""
  model, params = drawn
  whole = batches(path, READS)[0]
  assert whole.encoder is not None
  first = np.arange(6)[:, None] == 0
  encoder = dataclasses.replace(
    whole.encoder,
    tokens=np.where(first, 0, whole.encoder.tokens),
    segments=np.where(first, 0, whole.encoder.segments),
  )
  encoder.tokens[0, 0] = encoder.segments[0, 0] = 1
  less = dataclasses.replace(whole, encoder=encoder)
  weights = whole.weights.copy()
  weights[0] = 0
  terms = jax.jit(lambda batch: losses.model_sums(model, params, batch).terms)
  found = terms(less)['contrastive']
  assert found[1] == 5
  expected = terms(dataclasses.replace(whole, weights=weights))['contrastive']
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_media_with_layers_of_their_own_are_compared(path):
  image = dataclasses.replace(
    MODEL.image, num_layers=1, autoencoder=config_lib.Autoencoder()
  )
  config = dataclasses.replace(MODEL, image=image)
  model = gemini.Gemini(config)
  shapes = jax.eval_shape(
    lambda params, batch: model.apply(
      {'params': params}, batch, method='pair_vectors'
    ),
    jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0))),
    batches(path, READS)[0],
  )
  assert shapes[0].shape == shapes[1].shape == (6, 6)


def test_padding_changes_nothing(path, drawn):
  model, params = drawn
  batch = batches(path, READS, HEARS, PAINTS)[0]
  compare = jax.jit(
    lambda batch: model.apply({'params': params}, batch, method='pair_vectors')
  )
  found = compare(batch)
  assert batch.encoder is not None
  other = lambda tokens, real: np.where(real, tokens, 7)
  changed = dataclasses.replace(
    batch,
    targets=other(batch.targets, batch.weights > 0),
    encoder=dataclasses.replace(
      batch.encoder,
      tokens=other(batch.encoder.tokens, batch.encoder.segments > 0),
    ),
  )
  assert not np.array_equal(changed.encoder.tokens, batch.encoder.tokens)
  for one, again in zip(found[:2], compare(changed)[:2], strict=True):
    assert one.shape == (6, 6)
    np.testing.assert_allclose(one, again, atol=1e-5)
    # Different examples, different vectors.
    assert np.std(one, axis=0).min() > 1e-4


def test_the_loss_attracts_pairs(path):
  """Of the whole batch: the gradient reaches the encoder and the scale."""
  model = gemini.Gemini(READER)
  params = toy.model_params(model)
  batch = batches(path, READS, model=READER)[0]
  nothing = dict.fromkeys(vars(config_lib.LossWeights()), 0.0)

  def objective(params, weight):
    sums = losses.model_sums(
      model,
      params,
      batch,
      loss_weights=nothing | {'contrastive': weight},
    )
    return sums.objective / sums.weight, sums.terms

  both = jax.jit(jax.value_and_grad(objective, has_aux=True))
  (with_it, terms), grads = both(params, 1.0)
  without = both(params, 0.0)[0][0]
  loss, count = terms['contrastive']
  assert count == 6
  np.testing.assert_allclose(with_it - without, loss / count, rtol=1e-4)
  vectors = jax.jit(functools.partial(model.apply, method='pair_vectors'))(
    {'params': params}, batch
  )
  # Who has the same word is no negative.
  same_BB = (batch.targets[:, None] == batch.targets[None]).all(axis=-1)
  assert same_BB.sum() > 6
  for same, equals in ((same_BB, True), (np.eye(6, dtype=bool), False)):
    expected = contrastive.info_nce(
      *vectors[:2],
      contrast.cosine_scale(params['contrast']['scale']),
      same_BB=same,
    ).loss
    assert (abs(loss / count - expected) < 1e-4 * expected) == equals
  reached = jax.tree.map(lambda grad: np.abs(grad).max(), grads)
  assert reached['contrast']['scale'] > 0
  assert reached['contrast']['project']['kernel'] > 0
  # A step so short that the fall is what the gradient says.
  size = float(optax.tree.norm(grads))
  nearer = jax.tree.map(lambda p, g: p - 1e-3 / size * g, params, grads)
  fall = with_it - both(nearer, 1.0)[0][0]
  np.testing.assert_allclose(fall, 1e-3 * size, rtol=0.1)


def test_retrieval_counts_what_says_the_same(path):
  """Twelve pictures of three words; vectors of the word, or of nothing."""
  found = {}
  for name, of_word in (('right', True), ('wrong', False)):

    def step(params, batch, of_word=of_word):
      del params
      words_B = batch.targets[:, :3].sum(axis=1)
      angles = words_B.astype(float) if of_word else 0.0 * words_B
      vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
      return vectors, vectors, *contrast.pair_tokens(batch)

    values = retrieval.measure(step, None, batches(path, READS), IDS, 100)
    found[name] = values
  assert found['right']['read_to_written_recall_at_1'] == pytest.approx(1)
  assert found['right']['written_to_read_recall_at_1'] == pytest.approx(1)
  chance = found['right']['read_to_written_recall_at_1_chance']
  assert chance == pytest.approx(1 / 3)
  assert found['wrong']['read_to_written_recall_at_1'] == pytest.approx(chance)
  few = retrieval.measure(step, None, batches(path, READS), IDS, 4)
  # Of dark, middle, light, dark.
  assert few['read_to_written_recall_at_1_chance'] == pytest.approx(3 / 8)


def test_only_an_encoder_reads_inputs_and_targets():
  with pytest.raises(config_lib.ConfigError, match='the encoder reads both'):
    config_lib.Model(contrast_dim=4)


def test_scale_is_bounded_and_never_stuck():
  np.testing.assert_allclose(
    contrast.cosine_scale(jnp.float32(contrast.SCALE_INIT)), 1 / 0.07, rtol=1e-5
  )
  parameters = jnp.array([-50.0, -5, 0, 5, 50])
  scales = contrast.cosine_scale(parameters)
  assert scales.min() >= 1 and scales.max() <= 100.001
  assert (jnp.diff(scales) > 0).all()
  assert jax.grad(contrast.cosine_scale)(jnp.float32(8.0)) > 0
