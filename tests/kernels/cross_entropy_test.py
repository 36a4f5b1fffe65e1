"""Sums of the cross-entropy against numpy in float64.

B batch, T length, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from gemini_jax.kernels import cross_entropy

SHAPE = (3, 5, 11)


def arguments(seed=0, scale=2.0):
  rng = np.random.default_rng(seed)
  logits_BTV = rng.normal(0, scale, SHAPE).astype(np.float32)
  targets_BT = rng.integers(0, SHAPE[-1], SHAPE[:2]).astype(np.int32)
  # Half of them are right.
  rows = np.indices(SHAPE[:2])
  best_BT = logits_BTV.argmax(-1)
  targets_BT = np.where(rows.sum(0) % 2 == 0, best_BT, targets_BT)
  weights_BT = rng.uniform(0, 2, SHAPE[:2]).astype(np.float32)
  weights_BT[rng.uniform(size=SHAPE[:2]) < 0.3] = 0
  return logits_BTV, targets_BT.astype(np.int32), weights_BT


def reference(
  logits_BTV,
  targets_BT,
  weights_BT,
  label_smoothing=0.0,
  z_loss=0.0,
  num_classes=SHAPE[-1],
):
  """(loss, objective, correct, weight), one token at a time."""
  totals = np.zeros(4)
  for place in np.ndindex(targets_BT.shape):
    logits_V = logits_BTV[place].astype(np.float64)
    top = logits_V.max()
    log_partition = top + np.log(np.exp(logits_V - top).sum())
    logprobs_V = logits_V - log_partition
    wanted_V = np.zeros(SHAPE[-1])
    wanted_V[:num_classes] = label_smoothing / num_classes
    wanted_V[targets_BT[place]] += 1 - label_smoothing
    values = (
      -logprobs_V[targets_BT[place]],
      -(wanted_V * logprobs_V).sum() + z_loss * log_partition**2,
      logits_V[targets_BT[place]] == top,
      1,
    )
    totals += np.float64(weights_BT[place]) * np.array(values, np.float64)
  return totals


def token_sums(logits_BTV, targets_BT, weights_BT, **options):
  """Of given scores: those of the rows of the identity."""
  return cross_entropy.token_sums(
    cross_entropy.Options(**options),
    jnp.asarray(logits_BTV),
    jnp.eye(SHAPE[-1]),
    jnp.asarray(targets_BT),
    jnp.asarray(weights_BT),
  )


def as_tuple(sums):
  return [sums.loss, sums.objective, sums.correct, sums.weight]


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'label_smoothing': 0.1},
    {'z_loss': 0.01},
    {'label_smoothing': 0.3, 'z_loss': 0.5},
    {'label_smoothing': 0.3, 'z_loss': 0.5, 'num_classes': 7},
  ],
)
def test_sums_equal_the_reference(options):
  values = arguments()
  sums = token_sums(*values, **options)
  expected = reference(*values, **options)
  np.testing.assert_allclose(as_tuple(sums), expected, rtol=1e-5)
  assert 0 < expected[2] < expected[3], 'some right and some wrong'
  if not options:
    assert float(sums.objective) == float(sums.loss)
  else:
    assert abs(float(sums.objective) - float(sums.loss)) > 0.1


def test_tokens_of_weight_0_do_not_matter():
  logits_BTV, targets_BT, weights_BT = arguments()
  assert (weights_BT == 0).any()
  options = {'label_smoothing': 0.1, 'z_loss': 0.1}
  expected = token_sums(logits_BTV, targets_BT, weights_BT, **options)
  logits_BTV[weights_BT == 0] = 1e4 * np.arange(SHAPE[-1])
  targets_BT[weights_BT == 0] = 0
  sums = token_sums(logits_BTV, targets_BT, weights_BT, **options)
  np.testing.assert_array_equal(as_tuple(sums), as_tuple(expected))


@pytest.mark.parametrize('num_classes', [SHAPE[-1], 7])
def test_the_gradient_equals_finite_differences(num_classes):
  """Where a token is of no class, too."""
  logits_BTV, targets_BT, weights_BT = arguments()
  options = {
    'label_smoothing': 0.2,
    'z_loss': 0.05,
    'num_classes': num_classes,
  }
  gradient_BTV = jax.grad(
    lambda x: token_sums(x, targets_BT, weights_BT, **options).objective
  )(logits_BTV)
  delta = 1e-6
  for place in ((0, 0, 0), (1, 3, 4), (2, 4, 10), (0, 2, 7)):
    shifted = []
    for sign in (1, -1):
      moved_BTV = logits_BTV.astype(np.float64)
      moved_BTV[place] += sign * delta
      shifted.append(reference(moved_BTV, targets_BT, weights_BT, **options)[1])
    slope = (shifted[0] - shifted[1]) / (2 * delta)
    assert gradient_BTV[place] == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize('shift', [1e4, -1e4])
def test_a_large_constant_cancels(shift):
  """Up to the rounding of the logits themselves, and never to inf or NaN."""
  logits_BTV, targets_BT, weights_BT = arguments()
  shifted_BTV = logits_BTV + np.float32(shift)
  sums = token_sums(shifted_BTV, targets_BT, weights_BT)
  expected = reference(shifted_BTV, targets_BT, weights_BT)
  np.testing.assert_allclose(sums.loss, expected[0], rtol=2e-3)
  shifted_BTV *= np.float32(1e30)
  gradient_BTV = jax.grad(
    lambda x: token_sums(x, targets_BT, weights_BT).objective
  )(shifted_BTV)
  assert np.isfinite(gradient_BTV).all()


def test_a_split_vocabulary_has_the_same_log_probabilities():
  """And the same gradients of what is made of them."""
  _, targets_BT, weights_BT = arguments()
  keys = jax.random.split(jax.random.key(0))
  x_BTD = jax.random.normal(keys[0], (*SHAPE[:2], 4))
  table_VD = jax.random.normal(keys[1], (12, 4))

  def log_probs(x_BTD, table_VD, axis=None):
    _, scores = cross_entropy.token_scores(
      cross_entropy.Options(vocab_axis=axis),
      x_BTD,
      table_VD,
      targets_BT,
      weights_BT,
    )
    return scores.log_prob_BT

  whole, rows = PartitionSpec(), PartitionSpec('tensor')
  split = jax.shard_map(
    functools.partial(log_probs, axis='tensor'),
    mesh=Mesh(np.array(jax.devices()[:3]), ('tensor',)),
    in_specs=(whole, rows),
    out_specs=whole,
    check_vma=False,
  )
  total = lambda function: lambda *args: jnp.sum(jnp.sin(function(*args)))
  (value, grads), (expected, wanted) = (
    jax.jit(jax.value_and_grad(total(function), (0, 1)))(x_BTD, table_VD)
    for function in (split, log_probs)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for grad, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('num_classes', [3, 7, 12])
def test_a_split_vocabulary_has_the_same_sums_and_gradients(num_classes):
  """On a device with classes alone, with some and with none."""
  _, targets_BT, weights_BT = arguments()
  keys = jax.random.split(jax.random.key(0))
  x_BTD = jax.random.normal(keys[0], (*SHAPE[:2], 4))
  table_VD = jax.random.normal(keys[1], (12, 4))
  options = {'label_smoothing': 0.2, 'num_classes': num_classes}

  def objective(x_BTD, table_VD, axis=None):
    return cross_entropy.token_sums(
      cross_entropy.Options(vocab_axis=axis, **options),
      x_BTD,
      table_VD,
      targets_BT,
      weights_BT,
    ).objective

  whole, rows = PartitionSpec(), PartitionSpec('tensor')
  split = jax.shard_map(
    functools.partial(objective, axis='tensor'),
    mesh=Mesh(np.array(jax.devices()[:3]), ('tensor',)),
    in_specs=(whole, rows),
    out_specs=whole,
    check_vma=False,
  )
  value, grads = jax.value_and_grad(jax.jit(split), (0, 1))(x_BTD, table_VD)
  expected, wanted = jax.value_and_grad(objective, (0, 1))(x_BTD, table_VD)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for grad, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)


# The last chunk is not full, and is; with a cap and without.
@pytest.mark.parametrize(('tokens', 'softcap'), [(4, 0.0), (6, 3.0), (15, 0.0)])
def test_chunks_do_not_change_sums_or_gradients(monkeypatch, tokens, softcap):
  """Against autodiff through the scores of all tokens."""
  monkeypatch.setattr(cross_entropy, '_SCORES', 0)
  monkeypatch.setattr(cross_entropy, '_CHUNK', tokens)
  _, targets_BT, weights_BT = arguments()
  keys = jax.random.split(jax.random.key(0))
  x_BTD = jax.random.normal(keys[0], (*SHAPE[:2], 4))
  table_VD = jax.random.normal(keys[1], (SHAPE[-1], 4))
  options = cross_entropy.Options(softcap, 0.2, 0.05)

  def chunked(x_BTD, table_VD):
    sums = cross_entropy.token_sums(
      options, x_BTD, table_VD, targets_BT, weights_BT
    )
    return 0.3 * sums.objective, sums

  def whole(x_BTD, table_VD):
    scores_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, table_VD)
    if softcap:
      scores_BTV = softcap * jnp.tanh(scores_BTV / softcap)
    logprobs_BTV = jax.nn.log_softmax(scores_BTV)
    wanted_BTV = 0.8 * jax.nn.one_hot(targets_BT, SHAPE[-1]) + 0.2 / SHAPE[-1]
    loss_BT = -jnp.sum(logprobs_BTV * wanted_BTV, axis=-1)
    loss_BT += 0.05 * jax.nn.logsumexp(scores_BTV, axis=-1) ** 2
    return 0.3 * jnp.sum(loss_BT * weights_BT)

  grads, sums = jax.jit(jax.grad(chunked, (0, 1), has_aux=True))(
    x_BTD, table_VD
  )
  expected, wanted = jax.jit(jax.value_and_grad(whole, (0, 1)))(x_BTD, table_VD)
  np.testing.assert_allclose(0.3 * sums.objective, expected, rtol=1e-5)
  np.testing.assert_allclose(
    as_tuple(jax.jit(chunked)(x_BTD, table_VD)[1]), as_tuple(sums), rtol=1e-6
  )
  for grad, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)


def test_scores_of_all_tokens_are_never_there(monkeypatch):
  """Eight times the tokens takes no more temporaries than their vectors."""
  monkeypatch.setattr(cross_entropy, '_SCORES', 0)
  sizes = {}
  for tokens in (256, 2048):
    shapes = [
      jax.ShapeDtypeStruct(shape, dtype)
      for shape, dtype in (
        ((1, tokens, 8), 'float32'),
        ((512, 8), 'float32'),
        ((1, tokens), 'int32'),
        ((1, tokens), 'float32'),
      )
    ]
    step = jax.jit(
      jax.grad(
        lambda *args: (
          cross_entropy.token_sums(cross_entropy.Options(), *args).objective
        ),
        (0, 1),
      )
    )
    analysis = step.lower(*shapes).compile().memory_analysis()
    sizes[tokens] = analysis.temp_size_in_bytes
  scores = 4 * 512
  assert sizes[256] >= 256 * scores
  assert sizes[2048] < 2 * 256 * scores + sizes[256]


@pytest.mark.parametrize('softcap', [0.0, 3.0])
@pytest.mark.parametrize('tokens', [4, 15])
def test_log_probabilities_have_a_gradient(monkeypatch, tokens, softcap):
  """Against autodiff through all scores, whatever function follows."""
  monkeypatch.setattr(cross_entropy, '_SCORES', 0)
  monkeypatch.setattr(cross_entropy, '_CHUNK', tokens)
  _, targets_BT, weights_BT = arguments()
  keys = jax.random.split(jax.random.key(0))
  args = (
    jax.random.normal(keys[0], (*SHAPE[:2], 4)),
    jax.random.normal(keys[1], (SHAPE[-1], 4)),
  )
  # Neither smoothing nor the weights of tokens matter.
  options = cross_entropy.Options(softcap, 0.2, 0.05)
  function = lambda log_prob_BT: jnp.sum(jnp.sin(log_prob_BT) ** 2)

  def chunked(x_BTD, table_VD):
    _, scores = cross_entropy.token_scores(
      options, x_BTD, table_VD, targets_BT, weights_BT
    )
    return function(scores.log_prob_BT)

  def whole(x_BTD, table_VD):
    scores_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, table_VD)
    if softcap:
      scores_BTV = softcap * jnp.tanh(scores_BTV / softcap)
    log_prob_BTV = jax.nn.log_softmax(scores_BTV)
    return function(
      jnp.take_along_axis(log_prob_BTV, targets_BT[..., None], -1)
    )

  value, grads = jax.value_and_grad(jax.jit(chunked), (0, 1))(*args)
  expected, wanted = jax.value_and_grad(jax.jit(whole), (0, 1))(*args)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for grad, want in zip(grads, wanted, strict=True):
    assert jnp.abs(want).max() > 0.1
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('tokens', [4, 15])
def test_scores_of_tokens_are_those_of_the_whole_row(monkeypatch, tokens):
  """In float64; of equally likely tokens the first is the best."""
  monkeypatch.setattr(cross_entropy, '_SCORES', 0)
  monkeypatch.setattr(cross_entropy, '_CHUNK', tokens)
  logits_BTV, targets_BT, weights_BT = arguments()
  # Two tokens are the likeliest; the target is the first, then the second.
  logits_BTV[0, :2, [3, 7]] = 50.0
  targets_BT[0, :2] = 3, 7
  sums, scores = cross_entropy.token_scores(
    cross_entropy.Options(),
    jnp.asarray(logits_BTV),
    jnp.eye(SHAPE[-1]),
    jnp.asarray(targets_BT),
    jnp.asarray(weights_BT),
  )
  exact_BTV = logits_BTV.astype(np.float64)
  log_prob_BTV = exact_BTV - np.log(np.exp(exact_BTV).sum(-1, keepdims=True))
  expected_BT = np.take_along_axis(log_prob_BTV, targets_BT[..., None], -1)
  np.testing.assert_allclose(
    scores.log_prob_BT, expected_BT[..., 0], rtol=1e-5, atol=1e-6
  )
  is_best_BT = logits_BTV.argmax(-1) == targets_BT
  np.testing.assert_array_equal(scores.is_best_BT, is_best_BT)
  assert is_best_BT[0, 0] and not is_best_BT[0, 1]
  np.testing.assert_array_equal(
    as_tuple(sums), as_tuple(token_sums(logits_BTV, targets_BT, weights_BT))
  )
