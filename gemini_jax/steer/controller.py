"""What `generate.steer` asks for: learned from labels, then granted.

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
class Guide:
  """How the samples of a model come to have what is wished for.

  Attributes:
    options: of generation.
    names: the wished attributes.
    wish: their models and values.
    prior: of z, with the deviations that z is drawn with; None where the
      decoder is steered, not z.
    direction_Z: from the mean z of texts without to that of texts with.
    correct: whether z is a draw of that prior and stays one.
  """

  options: config_lib.Generate
  names: tuple[str, ...]
  wish: latent_steering.AttributeTarget
  prior: latent_lib.Mixture | None = None
  direction_Z: Any = None
  correct: bool = False

  @property
  def draws(self) -> int:
    """Z that one sample is made of."""
    return (
      latent_steering.BEST_OF if self.options.steer_method == 'best_of' else 1
    )

  def steer(self, z_NZ: np.ndarray) -> np.ndarray:
    """Z of each sample, [N / draws, Z], of `draws` z for each in a row."""
    method, weight = self.options.steer_method, self.options.steer_weight
    if self.prior is None:
      return z_NZ
    if method == 'vector':
      return z_NZ + np.float32(weight) * self.direction_Z
    with sharding.on_one_device():
      if method == 'best_of':
        z_NKZ = z_NZ.reshape(-1, self.draws, z_NZ.shape[-1])
        return np.asarray(latent_steering.best_of(self.wish, z_NKZ))
      if method == 'gradient':
        return np.asarray(
          latent_steering.gradient(self.wish, self.prior, z_NZ, weight)
        )
      keys_N = latents_lib.sample_keys(self.options.seed + 1, len(z_NZ))
      return np.asarray(
        latent_steering.ode(
          self.wish, self.prior, z_NZ, keys_N, correct=self.correct
        )
      )

  def decoder(
    self, decoder: decoding.Decoder, params: Any
  ) -> tuple[decoding.Decoder, Any]:
    """The decoder that grants the wish, and its parameters."""
    if self.prior is not None:
      return decoder, params
    guided = guided_decoding.METHODS[self.options.steer_method].of(decoder)
    return guided, guided_decoding.Params(params, self.wish)

  def cost(
    self, model: gemini.Gemini, num_tokens: float
  ) -> latent_steering.Cost:
    """Passes that a sample of so many tokens takes."""
    method = self.options.steer_method
    if self.prior is not None:
      cost = latent_steering.cost(method, self.correct)
      return dataclasses.replace(cost, decoder_forward=num_tokens)
    assert model.config.vocab_size, 'the tokenizer sets model.vocab_size'
    token = guided_decoding.cost(method, model.config.vocab_size)
    each = dataclasses.asdict(token).items()
    return latent_steering.Cost(
      **{name: num * num_tokens for name, num in each}
    )


def check(options: config_lib.Generate, model: config_lib.Model):
  """Raises ConfigError unless the model has what the method needs."""
  asked = f'generate.steer_method={options.steer_method!r}'
  if options.steer_method in guided_decoding.METHODS:
    config_lib.check(
      not model.cross,
      f"{asked} needs model.architecture='decoder', not 'encoder_decoder'",
    )
  else:
    config_lib.check(
      model.latent.dim > 0,
      f'{asked} needs a model with a latent; model.latent.dim is 0; use '
      f'{" or ".join(guided_decoding.METHODS)}',
    )


def examples(config: config_lib.Config) -> labelled_examples_lib.Examples:
  """The labelled texts that the wish is learned from, before any of it is.

  Raises:
    ConfigError: the wish is not written as one, the model has not what the
      method needs, or the labels do not hold what is wished for.
  """
  options = config.generate
  attribute_classifier.parse(options.steer)
  check(options, config.model)
  return labelled_examples_lib.choose(
    config.data, options.steer, options.num_labels, options.seed
  )


def learn(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  labelled: labelled_examples_lib.Examples,
) -> Guide:
  """The guide to what `generate.steer` asks for.

  What is learned does not depend on the method, but that some read z and the
  others the decoder: `options` may be replaced by those of another like it.

  Args:
    config: its sections `generate` and `data`.
    model: what generates.
    params: of the model.
    tokenizer: of the model.
    labelled: what `examples` gave.

  Raises:
    ConfigError: too few of the texts can be read.
  """
  options = config.generate
  wishes = attribute_classifier.parse(options.steer)
  names = tuple(wishes)
  rows = [np.asarray(tokenizer.encode(t), np.int32) for t in labelled.texts]
  labels = list(labelled.labels)
  direction_Z = prior = None
  if options.steer_method in guided_decoding.METHODS:
    read = [transforms.join([row], tokenizer)[0] for row in rows]
    features, _ = guided_decoding.read_texts(
      model, params, read, _any_latents(model, params, len(read))
    )
    moments = features.moments()
  else:
    most = latents_lib.limit(config) - 1
    fits = [0 < len(row) <= most for row in rows]
    rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    labels = [label for label, fit in zip(labels, fits, strict=True) if fit]
    if len(rows) < len(fits):
      logging.info(
        '%d labelled texts left out, of 0 or more than %d tokens',
        len(fits) - len(rows),
        most,
      )
    attribute_classifier.check(options.steer, wishes, labels)
    posterior: Any = latents_lib.encode_ids(
      config, model, params, tokenizer, rows
    )
    prior = jax.tree.map(np.asarray, latents_lib.find_prior(model, params))
    moments = jax.tree.map(np.asarray, prior.moments())
    features = attribute_classifier.Features(
      posterior.mean[:, None],
      np.exp(0.5 * posterior.log_var)[:, None],
      np.ones(len(rows), np.int32),
    )
    direction_Z = np.sum(
      [_direction(posterior.mean, labels, *wish) for wish in wishes.items()],
      axis=0,
    )
    # Draws of the prior have this temperature.
    log_scale = 2 * np.log(max(options.latent_temperature, 1e-6))
    log_var_CZ = prior.normals.log_var + np.float32(log_scale)
    prior = dataclasses.replace(
      prior, normals=dataclasses.replace(prior.normals, log_var=log_var_CZ)
    )
  models = attribute_classifier.fit(
    features, labels, names, moments, shares=labelled.shares
  )
  wanted = tuple(models[name].values.index(wishes[name]) for name in names)
  weights_A = np.full(len(names), options.steer_weight, np.float32)
  return Guide(
    options,
    names,
    latent_steering.AttributeTarget(
      tuple(models[name] for name in names), wanted, weights_A
    ),
    prior,
    direction_Z,
    correct=latents_lib.uses_prior(options, model)
    and options.latent_temperature > 0,
  )


def shares(
  guide: Guide,
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  texts: Sequence[str],
) -> dict[str, float]:
  """Share of the texts that the model of each attribute reads as wished for.

  It is the model that steered, so it thinks better of them than others would.
  """
  rows = [np.asarray(tokenizer.encode(text), np.int32) for text in texts]
  if guide.prior is None:
    read = [transforms.join([row], tokenizer)[0] for row in rows]
    latents = _any_latents(model, params, len(read))
    _, x_NF = guided_decoding.read_texts(model, params, read, latents)
  else:
    most = latents_lib.limit(config) - 1
    rows = [row[:most] for row in rows if len(row)]
    if not rows:
      return dict.fromkeys(guide.names, 0.0)
    x_NF = latents_lib.encode_ids(config, model, params, tokenizer, rows).mean
  found = {}
  for name, learned, place in zip(
    guide.names, guide.wish.attributes, guide.wish.wanted, strict=True
  ):
    with sharding.on_one_device():
      log_probs_NC = np.asarray(jax.vmap(learned.log_probs)(jnp.asarray(x_NF)))
    having = np.sum(log_probs_NC.argmax(axis=1) == place)
    found[name] = float(having) / len(texts)
  return found


def _any_latents(
  model: gemini.Gemini, params: Any, count: int
) -> np.ndarray | None:
  """Z of the prior: so that the tokens tell of a text, not its z."""
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
  """From the mean of texts with another value to that of texts with it."""
  known_N = np.array([name in label for label in labels])
  has_N = np.array([label.get(name) == value for label in labels])
  others_N = known_N & ~has_N
  return mean_NZ[has_N].mean(axis=0) - mean_NZ[others_N].mean(axis=0)
