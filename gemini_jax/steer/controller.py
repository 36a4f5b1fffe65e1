"""The controller that `generate.steer` asks for: trained, then applied.

N samples or texts, Z numbers in z.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.data import transforms
from gemini_jax.infer import decoding
from gemini_jax.infer import latents as latents_lib
from gemini_jax.models import gemini
from gemini_jax.models import latent as latent_lib
from gemini_jax.parallel import sharding
from gemini_jax.steer import (
  attribute_classifier,
  guided_decoding,
  latent_steering,
)
from gemini_jax.steer import labelled_examples as labelled_examples_lib


@dataclasses.dataclass(frozen=True)
class AttributeController:
  """Steers samples towards target values of attributes.

  A `control.Controller`.

  Attributes:
    options: of generation.
    names: of the attributes.
    target: their classifiers and target values.
    prior: of z, with the deviations that z is drawn with; None where the
      decoder is steered instead of z.
    direction_Z: from the mean z of texts without the targets to that of texts
      with them.
    correct: whether z is drawn from the prior and is kept near it.
  """

  options: config_lib.Generate
  names: tuple[str, ...]
  target: latent_steering.AttributeTarget
  prior: latent_lib.Mixture | None = None
  direction_Z: Any = None
  correct: bool = False

  @property
  def num_candidates(self) -> int:
    """Draws of z that one sample is chosen from."""
    return (
      latent_steering.BEST_OF if self.options.steer_method == 'best_of' else 1
    )

  def steer(self, z_NZ: np.ndarray) -> np.ndarray:
    """Z of each sample from `num_candidates` consecutive draws for each."""
    method, weight = self.options.steer_method, self.options.steer_weight
    if self.prior is None:
      return z_NZ
    if method == 'vector':
      return z_NZ + np.float32(weight) * self.direction_Z
    with sharding.on_one_device():
      if method == 'best_of':
        z_NKZ = z_NZ.reshape(-1, self.num_candidates, z_NZ.shape[-1])
        return np.asarray(latent_steering.best_of(self.target, z_NKZ))
      if method == 'gradient':
        return np.asarray(
          latent_steering.gradient(self.target, self.prior, z_NZ, weight)
        )
      keys_N = latents_lib.sample_keys(self.options.seed + 1, len(z_NZ))
      return np.asarray(
        latent_steering.ode(
          self.target, self.prior, z_NZ, keys_N, correct=self.correct
        )
      )

  def decoder(
    self, decoder: decoding.Decoder, params: Any
  ) -> tuple[decoding.Decoder, Any]:
    """The decoder that writes steered texts, and its parameters."""
    if self.prior is not None:
      return decoder, params
    guided = guided_decoding.METHODS[self.options.steer_method].of(decoder)
    return guided, guided_decoding.Params(params, self.target)

  def cost(
    self, model: gemini.Gemini, num_tokens: float
  ) -> latent_steering.Cost:
    """Passes for one sample of `num_tokens` tokens."""
    method = self.options.steer_method
    if self.prior is not None:
      cost = latent_steering.cost(method, self.correct)
      return dataclasses.replace(cost, decoder_forward=num_tokens)
    assert model.config.vocab_size, 'the tokenizer sets model.vocab_size'
    token = guided_decoding.cost(method, model.config.vocab_size)
    per_token = dataclasses.asdict(token).items()
    return latent_steering.Cost(
      **{name: num * num_tokens for name, num in per_token}
    )


def check(options: config_lib.Generate, model: config_lib.Model):
  """Raises ConfigError unless the model has what the method needs."""
  field = f'generate.steer_method={options.steer_method!r}'
  if options.steer_method in guided_decoding.METHODS:
    config_lib.check(
      not model.cross,
      f"{field} needs model.architecture='decoder', not 'encoder_decoder'",
    )
  else:
    config_lib.check(
      model.latent.dim > 0,
      f'{field} needs a model with a latent; model.latent.dim is 0; use '
      f'{" or ".join(guided_decoding.METHODS)}',
    )


def choose_examples(
  config: config_lib.Config,
) -> labelled_examples_lib.Examples:
  """The labelled texts that `fit` trains on; reads no parameters.

  Raises:
    ConfigError: `generate.steer` cannot be parsed, the model lacks what the
      method needs, or no label has a target value.
  """
  options = config.generate
  attribute_classifier.parse(options.steer)
  check(options, config.model)
  return labelled_examples_lib.choose(
    config.data, options.steer, options.num_labels, options.seed
  )


def fit(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  labelled: labelled_examples_lib.Examples,
) -> AttributeController:
  """The controller that `generate.steer` asks for.

  What is trained depends only on whether the method steers z or the decoder:
  `options` may be replaced by those of another method of the same kind.

  Args:
    config: its sections `generate` and `data`.
    model: what generates.
    params: of the model.
    tokenizer: of the model.
    labelled: from `choose_examples`.

  Raises:
    ConfigError: too few of the texts can be encoded.
  """
  options = config.generate
  targets = attribute_classifier.parse(options.steer)
  names = tuple(targets)
  rows = [np.asarray(tokenizer.encode(t), np.int32) for t in labelled.texts]
  labels = list(labelled.labels)
  direction_Z = prior = None
  if options.steer_method in guided_decoding.METHODS:
    documents = [transforms.join([row], tokenizer)[0] for row in rows]
    features, _ = guided_decoding.text_features(
      model, params, documents, _prior_latents(model, params, len(documents))
    )
    moments = features.moments()
  else:
    rows, labels = _encodable(rows, labels, config)
    attribute_classifier.check(options.steer, targets, labels)
    posterior: Any = latents_lib.encode_ids(
      config, model, params, tokenizer, rows
    )
    prior = jax.tree.map(np.asarray, latents_lib.prior(model, params))
    moments = jax.tree.map(np.asarray, prior.moments())
    features = attribute_classifier.Features(
      posterior.mean[:, None],
      np.exp(0.5 * posterior.log_var)[:, None],
      np.ones(len(rows), np.int32),
    )
    direction_Z = np.sum(
      [_direction(posterior.mean, labels, *pair) for pair in targets.items()],
      axis=0,
    )
    prior = _with_temperature(prior, options.latent_temperature)
  classifiers = attribute_classifier.fit(
    features, labels, names, moments, shares=labelled.shares
  )
  return AttributeController(
    options,
    names,
    latent_steering.AttributeTarget(
      tuple(classifiers[name] for name in names),
      tuple(classifiers[name].values.index(targets[name]) for name in names),
      np.full(len(names), options.steer_weight, np.float32),
    ),
    prior,
    direction_Z,
    correct=latents_lib.uses_prior(options, model)
    and options.latent_temperature > 0,
  )


def _encodable(
  rows: list[np.ndarray],
  labels: list[dict[str, str]],
  config: config_lib.Config,
) -> tuple[list[np.ndarray], list[dict[str, str]]]:
  """Texts that the encoder can read, and their labels."""
  limit = latents_lib.max_encoder_tokens(config) - 1
  fits = [0 < len(row) <= limit for row in rows]
  if not all(fits):
    logging.info(
      '%d labelled texts left out: they have 0 or more than %d tokens',
      len(fits) - sum(fits),
      limit,
    )
  return (
    [row for row, fit in zip(rows, fits, strict=True) if fit],
    [label for label, fit in zip(labels, fits, strict=True) if fit],
  )


def _with_temperature(
  prior: latent_lib.Mixture, temperature: float
) -> latent_lib.Mixture:
  """The distribution of draws from the prior with a temperature."""
  log_scale = 2 * np.log(max(temperature, 1e-6))
  log_var_CZ = prior.normals.log_var + np.float32(log_scale)
  return dataclasses.replace(
    prior, normals=dataclasses.replace(prior.normals, log_var=log_var_CZ)
  )


def target_shares(
  controller: AttributeController,
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  texts: Sequence[str],
) -> dict[str, float]:
  """Share of the texts that each classifier predicts the target value for.

  The same classifiers steered the texts, so these shares are higher than those
  of an independent classifier.
  """
  rows = [np.asarray(tokenizer.encode(text), np.int32) for text in texts]
  if controller.prior is None:
    documents = [transforms.join([row], tokenizer)[0] for row in rows]
    latents = _prior_latents(model, params, len(documents))
    _, x_NF = guided_decoding.text_features(model, params, documents, latents)
  else:
    limit = latents_lib.max_encoder_tokens(config) - 1
    rows = [row[:limit] for row in rows if len(row)]
    if not rows:
      return dict.fromkeys(controller.names, 0.0)
    x_NF = latents_lib.encode_ids(config, model, params, tokenizer, rows).mean
  shares = {}
  target = controller.target
  for name, attribute, index in zip(
    controller.names, target.attributes, target.target_index, strict=True
  ):
    with sharding.on_one_device():
      log_probs_NC = np.asarray(
        jax.vmap(attribute.log_probs)(jnp.asarray(x_NF))
      )
    count = np.sum(log_probs_NC.argmax(axis=1) == index)
    shares[name] = float(count) / len(texts)
  return shares


def _prior_latents(
  model: gemini.Gemini, params: Any, count: int
) -> np.ndarray | None:
  """Draws of the prior, so that a text's features do not depend on its z."""
  if not model.config.latent.dim:
    return None
  keys_N = latents_lib.sample_keys(0, count)
  return np.asarray(latents_lib.draw_prior(model, params, keys_N, 1.0))


def _direction(
  mean_NZ: np.ndarray,
  labels: attribute_classifier.Labels,
  name: str,
  value: str,
) -> np.ndarray:
  """From the mean z of texts with another value to that of texts with it."""
  known_N = np.array([name in label for label in labels])
  has_N = np.array([label.get(name) == value for label in labels])
  others_N = known_N & ~has_N
  return mean_NZ[has_N].mean(axis=0) - mean_NZ[others_N].mean(axis=0)
