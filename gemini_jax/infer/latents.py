"""Draws of z to decode from: the prior, posteriors, or points between them.

N texts, Z numbers in z.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.data import transforms
from gemini_jax.infer import request as request_lib
from gemini_jax.models import gemini
from gemini_jax.models import latent as latent_lib

# Texts that are encoded together at most.
_MAX_ROWS = 64


def draw_latents(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
) -> np.ndarray:
  """Z of each of `generate.count` samples of texts, float32[N, Z].

  The z of sample i does not depend on the number of samples, except for
  `generate.source='interpolate'`.

  Raises:
    ConfigError: the model has no latent, a text cannot be encoded, the encoder
      reads more than the text, or `generate.latent` has another size.
  """
  options, dim = config.generate, model.config.latent.dim
  source, temperature = options.source, options.latent_temperature
  asked = f'generate.source={source!r}'
  if options.latent:
    asked = f'generate.latent with {len(options.latent)} numbers'
  config_lib.check(
    dim > 0, f'{asked} needs a model with a latent; model.latent.dim is 0'
  )
  if options.latent:
    config_lib.check(
      len(options.latent) == dim, f'{asked} must have model.latent.dim={dim}'
    )
    given_Z = np.asarray(options.latent, np.float32)
    return np.tile(given_Z, (options.count, 1))
  keys = sample_keys(options.seed, options.count)
  if uses_prior(options, model):
    return np.asarray(draw_prior(model, params, keys, temperature))
  config_lib.check(
    source in ('prompt', 'posterior') or not model.config.cross,
    f'{asked} is of a model whose decoder reads z alone, not the text too; '
    "model.architecture='encoder_decoder' takes prompt, prior or posterior",
  )
  config_lib.check(
    model.config.cross or not config.data.pairs,
    f'{asked} is of plain text; the latent of a decoder of pairs '
    f'(data.inputs_field={config.data.inputs_field!r}) reads inputs and '
    'targets together',
  )
  posteriors = encode(config, model, params, tokenizer, options.texts)
  if source == 'interpolate':
    start_Z, end_Z = np.asarray(posteriors.mean)
    return slerp(start_Z, end_Z, options.count)
  if source == 'analogy':
    a_Z, b_Z, c_Z = posteriors.mean
    posterior = latent_lib.Normal(c_Z + b_Z - a_Z, posteriors.log_var[2])
  else:
    posterior = jax.tree.map(lambda leaf: leaf[0], posteriors)
  repeated = jax.tree.map(
    lambda leaf: np.tile(leaf, (options.count, 1)), posterior
  )
  return np.asarray(draw_posteriors(repeated, keys, temperature))


def draw_request_latents(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[tuple[request_lib.Request, int]],
) -> np.ndarray | None:
  """Z of each sample of requests, float32[N, Z]; None without a latent.

  Drawn from the posterior of a request's inputs, media included, where the
  encoder reads them; else from the prior. The z of a row does not depend on the
  other rows.

  Args:
    config: its sections `generate` and `data`.
    model: of the run.
    params: of the model.
    tokenizer: of the run.
    rows: a request and the number of its sample, for each row.

  Raises:
    ConfigError: `generate` asks for a z that only texts have.
  """
  options, dim = config.generate, model.config.latent.dim
  for name in ('source', 'latent', 'steer'):
    value = getattr(options, name)
    config_lib.check(
      value in ('', (), 'prompt') or (name == 'steer' and not dim),
      f'generate.{name}={value!r} is of a latent and texts, not of the inputs '
      'of data.tasks',
    )
  if not dim:
    return None
  numbers = np.array([number for _, number in rows])
  keys = sample_keys(options.seed, int(numbers.max()) + 1)[numbers]
  temperature = options.latent_temperature
  if uses_prior(options, model):
    return np.asarray(draw_prior(model, params, keys, temperature))
  requests = [request for request, _ in rows]
  ids = [request.tokens for request in requests]
  posteriors = encode_ids(config, model, params, tokenizer, ids, requests)
  return np.asarray(draw_posteriors(posteriors, keys, temperature))


def uses_prior(options: config_lib.Generate, model: gemini.Gemini) -> bool:
  """Whether z is drawn from the prior, and not from the posterior of a text."""
  if options.latent:
    return False
  # A prompt that is read by an encoder has a posterior.
  return options.source == 'prior' or (
    options.source == 'prompt' and not model.config.cross
  )


def sample_keys(seed: int, count: int) -> jax.Array:
  """A key for each sample; its tokens are drawn with other keys."""
  key = jax.random.fold_in(jax.random.key(np.uint32(seed % 2**32)), 2**31)
  return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


@functools.partial(jax.jit, static_argnums=0)
def draw_prior(
  model: gemini.Gemini, params: Any, keys: jax.Array, temperature: Any
) -> jax.Array:
  """One draw from the prior for each key, float32[N, Z]."""
  distribution = prior(model, params)
  return jax.vmap(lambda key: distribution.sample(key, 1, temperature)[0])(keys)


def prior(model: gemini.Gemini, params: Any) -> latent_lib.Mixture:
  """The prior over z, p(z)."""
  mixture: Any = gemini.apply(model, params, method='prior')
  return mixture


@jax.jit
def draw_posteriors(
  posteriors: latent_lib.Normal, keys: jax.Array, temperature: Any
) -> jax.Array:
  """One draw from each posterior, [N, Z], with its key, float32[N, Z]."""
  draw = lambda posterior, key: posterior.sample(key, temperature)
  return jax.vmap(draw)(posteriors, keys)


def max_encoder_tokens(config: config_lib.Config) -> int:
  """Tokens that the encoder can read, eos included."""
  if config.data.objective == 'seq2seq':
    return config.data.inputs_length
  return config.data.sequence_length


def encode(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  texts: Sequence[str],
) -> latent_lib.Normal:
  """The posterior of each text, numpy's [N, Z].

  Raises:
    ConfigError: a text is empty, or has more tokens than `max_encoder_tokens`.
  """
  rows, length = [], max_encoder_tokens(config)
  for text in texts:
    config_lib.check(bool(text), 'an empty text has no posterior; give a text')
    ids = np.asarray(tokenizer.encode(text), np.int32)
    config_lib.check(
      len(ids) < length,
      f'{text[:40]!r} has {len(ids) + 1} tokens; the encoder reads at most '
      f'{length}',
    )
    rows.append(ids)
  return encode_ids(config, model, params, tokenizer, rows)


def encode_ids(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[np.ndarray],
  requests: Sequence[request_lib.Request] = (),
) -> latent_lib.Normal:
  """The posterior of each row of token ids, numpy's [N, Z].

  Args:
    config: its section `data`.
    model: of the run.
    params: of the model.
    tokenizer: of the run.
    rows: token ids of each text, without eos.
    requests: of each row, where there are media to read with it.

  Raises:
    ConfigError: a row has more tokens than `max_encoder_tokens`, with eos.
  """
  length = max_encoder_tokens(config)
  encoder_rows = []
  for row in rows:
    tokens = transforms.encoder_tokens(row, config.data, tokenizer)
    config_lib.check(
      len(tokens) <= length,
      f'a text has {len(tokens)} tokens; the encoder reads at most {length}',
    )
    encoder_rows.append(tokens)
  size = batch_lib.padded_size(len(rows), _MAX_ROWS)
  posteriors = []
  for first in range(0, len(rows), size):
    chunk = slice(first, first + size)
    sequence = batch_lib.plain_sequence(
      *batch_lib.pad_rows(encoder_rows[chunk], size, length, tokenizer.pad_id)
    )
    media = request_lib.stack_media(model.config, requests[chunk], size)
    posterior = _encode(
      model, params, dataclasses.replace(sequence, media=media)
    )
    posteriors.append(jax.tree.map(np.asarray, posterior))
  return jax.tree.map(
    lambda *parts: np.concatenate(parts)[: len(rows)], *posteriors
  )


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, sequence):
  return gemini.apply(model, params, sequence, method='posterior')


def slerp(start_Z: np.ndarray, end_Z: np.ndarray, count: int) -> np.ndarray:
  """Spherical interpolation from one z to another, float32[N, Z].

  Directions follow a great arc and norms change linearly, so points between
  two typical z are typical (White 2016, Sampling Generative Networks); on a
  straight line their norms would be too small.
  """
  lengths = np.linalg.norm(start_Z), np.linalg.norm(end_Z)
  share_N1 = np.linspace(0, 1, count)[:, None]
  product = np.dot(start_Z, end_Z) / max(lengths[0] * lengths[1], 1e-12)
  angle = np.arccos(np.clip(product, -1, 1))
  if np.sin(angle) < 1e-4:
    return ((1 - share_N1) * start_Z + share_N1 * end_Z).astype(np.float32)
  directions = (
    np.sin((1 - share_N1) * angle) * start_Z / lengths[0]
    + np.sin(share_N1 * angle) * end_Z / lengths[1]
  ) / np.sin(angle)
  sizes = (1 - share_N1) * lengths[0] + share_N1 * lengths[1]
  return (directions * sizes).astype(np.float32)
