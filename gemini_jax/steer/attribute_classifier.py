"""Attributes: which value a text has, learned from a few hundred labels.

N texts, S places that tell of a text, F features, H hidden units, C values,
M models that are trained side by side, K draws.
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

# Of the models; the decay is chosen on texts that are held out.
_HIDDEN = 32
_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
_NUM_STEPS = 200
_LEARNING_RATE = 2e-2
_HELD_OUT = 0.2
_HELD_OUT_DRAWS = 16

Labels = Sequence[Mapping[str, str]]


def parse(steer: str) -> dict[str, str]:
  """The wished value of each attribute, of `'tone=positive,topic=sea'`.

  Raises:
    ConfigError: it is written otherwise, or names an attribute twice.
  """
  wishes: dict[str, str] = {}
  for part in steer.split(','):
    name, equals, value = (piece.strip() for piece in part.partition('='))
    config_lib.check(
      bool(name and equals and value),
      f'generate.steer={steer!r} must be ATTRIBUTE=VALUE, several with commas',
    )
    config_lib.check(
      name not in wishes, f'generate.steer={steer!r} names {name!r} twice'
    )
    wishes[name] = value
  return wishes


def check(steer: str, wishes: Mapping[str, str], labels: Labels):
  """Raises ConfigError unless the labels can teach what is wished for."""
  names = sorted({name for label in labels for name in label})
  for name, value in wishes.items():
    where = f'generate.steer={steer!r}: '
    config_lib.check(
      name in names,
      f'{where}no text has a label {name!r}{config_lib.nearest(name, names)}',
    )
    values = values_of(name, labels)
    config_lib.check(
      value in values,
      f'{where}no text has {name}={value}{config_lib.nearest(value, values)}',
    )
    config_lib.check(
      len(values) > 1,
      f'{where}every text with a label {name!r} has {name}={value}; a second '
      'value is needed to tell them apart',
    )


def values_of(name: str, labels: Labels) -> tuple[str, ...]:
  """The values of an attribute, sorted."""
  return tuple(sorted({label[name] for label in labels if name in label}))


@flax.struct.dataclass
class Features:
  """What tells of texts: normals around some places of each.

  Attributes:
    mean_NSF: the places, of which the first `counts_N` are there.
    std_NSF: deviations around them.
    counts_N: places of each text.
  """

  mean_NSF: batch_lib.Array
  std_NSF: batch_lib.Array
  counts_N: batch_lib.Array

  def draw(self, key: jax.Array) -> jax.Array:
    """A draw around a random place of each text, [N, F]."""
    place_key, noise_key = jax.random.split(key)
    N, _, F = self.mean_NSF.shape
    place_N = jax.random.randint(place_key, (N,), 0, self.counts_N)
    pick = lambda x_NSF: x_NSF[jnp.arange(N), place_N]
    noise_NF = jax.random.normal(noise_key, (N, F))
    return pick(self.mean_NSF) + pick(self.std_NSF) * noise_NF

  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of all places, float32[F] each."""
    S = self.mean_NSF.shape[1]
    there_NS = np.arange(S) < np.asarray(self.counts_N)[:, None]
    places_PF = np.asarray(self.mean_NSF)[there_NS]
    return places_PF.mean(axis=0), places_PF.std(axis=0) + 1e-6


@flax.struct.dataclass
class Attribute:
  """p(value | features): a layer of hidden units on standardised features.

  Attributes:
    params: kernels and biases of both layers.
    mean_F: of the features.
    scale_F: their deviation.
    values: the C values, sorted.
    accuracy: share of held-out draws whose value is the likeliest.
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
  """A model of each named attribute, all learned together.

  Each step sees one draw of every text. A fifth of the texts is held out to
  choose the weight decay; then all are learned from. Where what is learned
  predicts held-out values no better than their frequencies do, by two standard
  errors, the frequencies are the model, and nothing can be steered.

  Where texts were chosen by their values, what is learned is corrected to the
  values' shares of all texts: each log-odds by the change of its prior.

  Args:
    features: of the texts.
    labels: the values of each text.
    names: attributes, each with two values or more.
    moments: mean and deviation, [F] each, that standardise the features.
    seed: of what is held out, of the draws and of the initial weights.
    shares: of each attribute's values among all texts; None: as in `labels`.
  """
  N = len(labels)
  mean_F, scale_F = (np.asarray(part, np.float32) for part in moments)
  standard = Features(
    (np.asarray(features.mean_NSF, np.float32) - mean_F) / scale_F,
    np.asarray(features.std_NSF, np.float32) / scale_F,
    np.asarray(features.counts_N, np.int32),
  )
  values = [values_of(name, labels) for name in names]
  # One model for each attribute, decay, and share of the texts.
  held_N = np.zeros(N, bool)
  order_N = np.random.default_rng(seed % 2**63).permutation(N)
  held_N[order_N[: max(1, round(N * _HELD_OUT))]] = True
  targets_AN = np.array(
    [
      [own.index(label[name]) if name in label else -1 for label in labels]
      for name, own in zip(names, values, strict=True)
    ],
    np.int32,
  )
  D = len(_DECAYS)
  counts_M = np.repeat([len(own) for own in values], 2 * D)
  with sharding.on_one_device():
    params_M, nll_MN, right_MN = jax.tree.map(
      np.asarray,
      _train(
        standard,
        np.repeat(targets_AN, 2 * D, axis=0),
        np.tile(
          np.repeat(np.stack([~held_N, held_N | True]), D, 0), (len(names), 1)
        ),
        np.arange(counts_M.max()) < counts_M[:, None],
        np.tile(np.asarray(_DECAYS, np.float32), 2 * len(names)),
        jax.random.key(seed),
      ),
    )
  found = {}
  for i, (name, own) in enumerate(zip(names, values, strict=True)):
    first, target_N, C = 2 * D * i, targets_AN[i], len(own)
    judged_N = held_N & (target_N >= 0)
    known_C = np.bincount(target_N[target_N >= 0], minlength=C)
    share_C = known_C / known_C.sum()
    if shares is not None:
      share_C = np.array([shares[name][value] for value in own])
    taught_C = 1.0 + np.bincount(
      target_N[~held_N & (target_N >= 0)], minlength=C
    )
    plain_N = -np.log(taught_C / taught_C.sum())[target_N[judged_N]]
    best = first + int(
      np.argmin(nll_MN[first : first + D, judged_N].sum(axis=1))
    )
    gain_N = plain_N - nll_MN[best, judged_N]
    margin = 2 * gain_N.std() / max(len(gain_N), 1) ** 0.5
    tells = len(gain_N) > 1 and gain_N.mean() > margin
    params = {leaf: value[best + D] for leaf, value in params_M.items()}
    params |= {leaf: params[leaf][..., :C] for leaf in ('out', 'out_bias')}
    accuracy = float(right_MN[best, judged_N].mean()) if len(gain_N) else 0.0
    if not tells:
      accuracy = float(np.mean(target_N[judged_N] == taught_C.argmax()))
      params['out'] = np.zeros_like(params['out'])
      params['out_bias'] = np.log(share_C).astype(np.float32)
      logging.warning('attribute %s: nothing here tells its values apart', name)
    else:
      odds_C = np.log(share_C * known_C.sum() / known_C)
      params['out_bias'] = params['out_bias'] + odds_C.astype(np.float32)
    found[name] = Attribute(params, mean_F, scale_F, own, accuracy)
    logging.info(
      'attribute %s: %s; %.1f %% right of %d held-out texts, decay %g',
      name,
      ', '.join(f'{v} {n}' for v, n in zip(own, known_C, strict=True)),
      100 * accuracy,
      judged_N.sum(),
      _DECAYS[best - first],
    )
  return found


def _logits(params: dict[str, Any], x_F: jax.Array) -> jax.Array:
  hidden_H = jax.nn.gelu(x_F @ params['hidden'] + params['hidden_bias'])
  return hidden_H @ params['out'] + params['out_bias']


@jax.jit
def _train(
  features: Features,
  targets_MN: jax.Array,
  taught_MN: jax.Array,
  values_MC: jax.Array,
  decay_M: jax.Array,
  key: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
  """Parameters of M models; NLL and share right of each text, [M, N]."""
  M, C = values_MC.shape
  F = features.mean_NSF.shape[-1]
  init_key, draw_key, held_key = jax.random.split(key, 3)
  # Equal for all: only what they are taught tells the models apart.
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
  weights_MN = (taught_MN & (targets_MN >= 0)).astype(jnp.float32)
  weights_MN /= jnp.maximum(jnp.sum(weights_MN, axis=1, keepdims=True), 1)

  @functools.partial(jax.vmap, in_axes=(0, None, 0, 0))
  @functools.partial(jax.vmap, in_axes=(None, 0, None, 0))
  def judge(params, x_F, values_C, target):
    """NLL of a text's value, and whether it is the likeliest."""
    logits_C = jnp.where(values_C, _logits(params, x_F), -jnp.inf)
    nll = -jax.nn.log_softmax(logits_C)[jnp.maximum(target, 0)]
    return nll, jnp.argmax(logits_C) == target

  def loss(params, x_NF):
    nll_MN, _ = judge(params, x_NF, values_MC, targets_MN)
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

  nll_KMN, right_KMN = jax.lax.map(
    lambda key: judge(params, features.draw(key), values_MC, targets_MN),
    jax.random.split(held_key, _HELD_OUT_DRAWS),
  )
  return params, jnp.mean(nll_KMN, axis=0), jnp.mean(right_KMN, axis=0)
