"""Classifiers of attributes of texts, trained on a few hundred labels.

N texts, S positions of a text with features, F features, H hidden units, C
values, M models that are trained side by side, K draws, A attributes.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.parallel import sharding

# Of the models; the decay is chosen on held-out texts.
_HIDDEN = 32
_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
_NUM_STEPS = 200
_LEARNING_RATE = 2e-2
_HELD_OUT = 0.2
_HELD_OUT_DRAWS = 16

Labels = Sequence[Mapping[str, str]]


def parse(steer: str) -> dict[str, str]:
  """The target value of each attribute, from `'tone=positive,topic=sea'`.

  Raises:
    ConfigError: the syntax is another, or an attribute is named twice.
  """
  targets: dict[str, str] = {}
  for part in steer.split(','):
    name, equals, value = (piece.strip() for piece in part.partition('='))
    config_lib.check(
      bool(name and equals and value),
      f'generate.steer={steer!r} must be ATTRIBUTE=VALUE, several with commas',
    )
    config_lib.check(
      name not in targets, f'generate.steer={steer!r} names {name!r} twice'
    )
    targets[name] = value
  return targets


def check(steer: str, targets: Mapping[str, str], labels: Labels):
  """Raises ConfigError unless the labels have the targets and other values."""
  names = sorted({name for label in labels for name in label})
  for name, value in targets.items():
    prefix = f'generate.steer={steer!r}: '
    config_lib.check(
      name in names,
      f'{prefix}no text has a label {name!r}{config_lib.nearest(name, names)}',
    )
    values = values_of(name, labels)
    config_lib.check(
      value in values,
      f'{prefix}no text has {name}={value}{config_lib.nearest(value, values)}',
    )
    config_lib.check(
      len(values) > 1,
      f'{prefix}every text with a label {name!r} has {name}={value}; a second '
      'value is needed to tell them apart',
    )


def values_of(name: str, labels: Labels) -> tuple[str, ...]:
  """The values of an attribute, sorted."""
  return tuple(sorted({label[name] for label in labels if name in label}))


@flax.struct.dataclass
class Features:
  """Features of texts: normal distributions at some positions of each.

  Attributes:
    mean_NSF: means; the first `counts_N` positions of a text are used.
    std_NSF: standard deviations.
    counts_N: positions of each text.
  """

  mean_NSF: batch_lib.Array
  std_NSF: batch_lib.Array
  counts_N: batch_lib.Array

  def draw(self, key: jax.Array) -> jax.Array:
    """One draw at a random position of each text, [N, F]."""
    position_key, noise_key = jax.random.split(key)
    N, _, F = self.mean_NSF.shape
    position_N = jax.random.randint(position_key, (N,), 0, self.counts_N)
    pick = lambda x_NSF: x_NSF[jnp.arange(N), position_N]
    noise_NF = jax.random.normal(noise_key, (N, F))
    return pick(self.mean_NSF) + pick(self.std_NSF) * noise_NF

  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over all positions, float32[F] each."""
    S = self.mean_NSF.shape[1]
    used_NS = np.arange(S) < np.asarray(self.counts_N)[:, None]
    features_PF = np.asarray(self.mean_NSF)[used_NS]
    return features_PF.mean(axis=0), features_PF.std(axis=0) + 1e-6


@flax.struct.dataclass
class Attribute:
  """p(value | features): an MLP with one hidden layer.

  Attributes:
    params: kernels and biases of both layers.
    mean_F: of the features, which are standardised.
    scale_F: their deviation.
    values: the C values, sorted.
    accuracy: share of held-out draws whose value is predicted.
  """

  params: dict[str, Any]
  mean_F: batch_lib.Array
  scale_F: batch_lib.Array
  values: tuple[str, ...] = flax.struct.field(pytree_node=False)
  accuracy: float = flax.struct.field(pytree_node=False)

  def log_probs(self, x_F: jax.Array) -> jax.Array:
    """Log-probability of each value, float32[C]."""
    x_F = (x_F.astype(jnp.float32) - self.mean_F) / self.scale_F
    return jax.nn.log_softmax(_logits(self.params, x_F))


def fit(
  features: Features,
  labels: Labels,
  names: Sequence[str],
  moments: tuple[Any, Any],
  seed: int = 0,
  shares: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Attribute]:
  """A classifier of each named attribute, all trained together.

  Each step sees one draw of every text. A fifth of the texts is held out to
  choose the weight decay; then all texts are trained on. Where the classifier
  predicts held-out values no better than their frequencies do, by two standard
  errors, the frequencies replace it, and the attribute cannot be steered.

  Where the texts were selected by their values, the classifier is corrected to
  the values' shares among all texts: log-odds change by those of the prior.

  Args:
    features: of the texts.
    labels: the values of each text.
    names: attributes, each with two values or more.
    moments: mean and deviation, [F] each, that standardise the features.
    seed: of the held-out split, of the draws and of the initial weights.
    shares: of each attribute's values among all texts; None: as in `labels`.
  """
  mean_F, scale_F = (np.asarray(part, np.float32) for part in moments)
  standardised = Features(
    (np.asarray(features.mean_NSF, np.float32) - mean_F) / scale_F,
    np.asarray(features.std_NSF, np.float32) / scale_F,
    np.asarray(features.counts_N, np.int32),
  )
  N, D = len(labels), len(_DECAYS)
  held_out_N = np.zeros(N, bool)
  order_N = np.random.default_rng(seed % 2**63).permutation(N)
  held_out_N[order_N[: max(1, round(N * _HELD_OUT))]] = True
  values = [values_of(name, labels) for name in names]
  targets_AN = np.array(
    [
      [
        name_values.index(label[name]) if name in label else -1
        for label in labels
      ]
      for name, name_values in zip(names, values, strict=True)
    ],
    np.int32,
  )
  # For each attribute D models without the held-out texts, then D with all.
  counts_M = np.repeat([len(name_values) for name_values in values], 2 * D)
  with sharding.on_one_device():
    params_M, nll_MN, correct_MN = jax.tree.map(
      np.asarray,
      _train(
        standardised,
        np.repeat(targets_AN, 2 * D, axis=0),
        np.tile(
          np.repeat(np.stack([~held_out_N, held_out_N | True]), D, 0),
          (len(names), 1),
        ),
        np.arange(counts_M.max()) < counts_M[:, None],
        np.tile(np.asarray(_DECAYS, np.float32), 2 * len(names)),
        jax.random.key(seed),
      ),
    )
  attributes = {}
  for i, (name, name_values) in enumerate(zip(names, values, strict=True)):
    models = slice(2 * D * i, 2 * D * (i + 1))
    params, accuracy = _select(
      name,
      name_values,
      jax.tree.map(lambda leaf, models=models: leaf[models], params_M),
      nll_MN[models],
      correct_MN[models],
      targets_AN[i],
      held_out_N,
      None if shares is None else shares[name],
    )
    attributes[name] = Attribute(params, mean_F, scale_F, name_values, accuracy)
  return attributes


def _select(
  name: str,
  values: Sequence[str],
  params_M: Mapping[str, np.ndarray],
  nll_MN: np.ndarray,
  correct_MN: np.ndarray,
  target_N: np.ndarray,
  held_out_N: np.ndarray,
  shares: Mapping[str, float] | None,
) -> tuple[dict[str, Any], float]:
  """Parameters with the best decay, and the held-out accuracy; see `fit`.

  Of the models the first half was trained without the held-out texts, the
  second half on all, with the same decays.
  """
  C, D = len(values), len(_DECAYS)
  test_N = held_out_N & (target_N >= 0)
  counts_C = np.bincount(target_N[target_N >= 0], minlength=C)
  share_C = counts_C / counts_C.sum()
  if shares is not None:
    share_C = np.array([shares[value] for value in values])
  train_counts_C = 1.0 + np.bincount(
    target_N[~held_out_N & (target_N >= 0)], minlength=C
  )
  frequency_nll_N = -np.log(train_counts_C / train_counts_C.sum())[
    target_N[test_N]
  ]
  best = int(np.argmin(nll_MN[:D, test_N].sum(axis=1)))
  improvement_N = frequency_nll_N - nll_MN[best, test_N]
  margin = 2 * improvement_N.std() / max(len(improvement_N), 1) ** 0.5
  params = {leaf: value[best + D] for leaf, value in params_M.items()}
  params |= {leaf: params[leaf][..., :C] for leaf in ('out', 'out_bias')}
  if len(improvement_N) > 1 and improvement_N.mean() > margin:
    accuracy = float(correct_MN[best, test_N].mean())
    odds_C = np.log(share_C * counts_C.sum() / counts_C)
    params['out_bias'] = params['out_bias'] + odds_C.astype(np.float32)
  else:
    accuracy = float(np.mean(target_N[test_N] == train_counts_C.argmax()))
    params['out'] = np.zeros_like(params['out'])
    params['out_bias'] = np.log(share_C).astype(np.float32)
    logging.warning(
      'attribute %s: the texts do not tell its values apart', name
    )
  logging.info(
    'attribute %s: %s; %.1f %% right of %d held-out texts, decay %g',
    name,
    ', '.join(f'{v} {n}' for v, n in zip(values, counts_C, strict=True)),
    100 * accuracy,
    test_N.sum(),
    _DECAYS[best],
  )
  return params, accuracy


def _logits(params: dict[str, Any], x_F: jax.Array) -> jax.Array:
  hidden_H = jax.nn.gelu(x_F @ params['hidden'] + params['hidden_bias'])
  return hidden_H @ params['out'] + params['out_bias']


@jax.jit
def _train(
  features: Features,
  targets_MN: jax.Array,
  train_MN: jax.Array,
  values_MC: jax.Array,
  decay_M: jax.Array,
  key: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
  """Parameters of M models; NLL and accuracy on each text, [M, N]."""
  M, C = values_MC.shape
  F = features.mean_NSF.shape[-1]
  init_key, draw_key, held_key = jax.random.split(key, 3)
  # The same initial weights: the models differ in data and decay alone.
  kernel = lambda key, shape: jnp.broadcast_to(
    jax.random.normal(key, shape) * shape[0] ** -0.5, (M, *shape)
  )
  hidden_key, out_key = jax.random.split(init_key)
  params = {
    'hidden': kernel(hidden_key, (F, _HIDDEN)),
    'hidden_bias': jnp.zeros((M, _HIDDEN)),
    'out': 0.1 * kernel(out_key, (_HIDDEN, C)),
    'out_bias': jnp.zeros((M, C)),
  }
  weights_MN = (train_MN & (targets_MN >= 0)).astype(jnp.float32)
  weights_MN /= jnp.maximum(jnp.sum(weights_MN, axis=1, keepdims=True), 1)

  @functools.partial(jax.vmap, in_axes=(0, None, 0, 0))
  @functools.partial(jax.vmap, in_axes=(None, 0, None, 0))
  def evaluate(params, x_F, values_C, target):
    """NLL of a text's value, and whether it is predicted."""
    logits_C = jnp.where(values_C, _logits(params, x_F), -jnp.inf)
    nll = -jax.nn.log_softmax(logits_C)[jnp.maximum(target, 0)]
    return nll, jnp.argmax(logits_C) == target

  def loss(params, x_NF):
    nll_MN, _ = evaluate(params, x_NF, values_MC, targets_MN)
    squares_M = sum(
      jnp.sum(jnp.square(params[name]), axis=(1, 2))
      for name in ('hidden', 'out')
    )
    return jnp.sum(weights_MN * nll_MN) + jnp.sum(decay_M * squares_M)

  optimizer = optax.adam(
    optax.cosine_decay_schedule(_LEARNING_RATE, _NUM_STEPS), b2=0.99
  )

  def step(carry, key):
    params, state = carry
    grads = jax.grad(loss)(params, features.draw(key))
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(
    step,
    (params, optimizer.init(params)),
    jax.random.split(draw_key, _NUM_STEPS),
  )

  nll_KMN, correct_KMN = jax.lax.map(
    lambda key: evaluate(params, features.draw(key), values_MC, targets_MN),
    jax.random.split(held_key, _HELD_OUT_DRAWS),
  )
  return params, jnp.mean(nll_KMN, axis=0), jnp.mean(correct_KMN, axis=0)
