"""Where the z of a text comes from: the prior, other texts, or between them.

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
from gemini_jax.infer import request
from gemini_jax.models import gemini
from gemini_jax.models import latent as latent_lib

# Texts that are encoded together at most.
_MAX_ROWS = 64


def latents(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
) -> np.ndarray:
  """Z of each of `generate.count` samples, float32[N, Z].

  Sample i has the same z whatever the number of samples, but on the way from
  one text to another.

  Raises:
    ConfigError: the model has no latent, a text cannot be used, the encoder
      reads more than the text, or the z that is given has another size.
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
  found = encode(config, model, params, tokenizer, options.texts)
  if source == 'interpolate':
    start_Z, end_Z = np.asarray(found.mean)
    return between(start_Z, end_Z, options.count)
  if source == 'analogy':
    one, other, third = found.mean
    found = latent_lib.Normal(third + other - one, found.log_var[2])
  else:
    found = jax.tree.map(lambda leaf: leaf[0], found)
  found = jax.tree.map(lambda leaf: np.tile(leaf, (options.count, 1)), found)
  return np.asarray(draw_posteriors(found, keys, temperature))


def of_requests(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[tuple[request.Request, int]],
) -> np.ndarray | None:
  """Z of each numbered output of inputs of tasks; None without a latent.

  Float32[N, Z], draws of the posteriors of the inputs, media and all, where the
  encoder reads those, else of the prior. The z of a request and a number does
  not depend on the other rows.

  Raises:
    ConfigError: another z is asked for, which only texts have.
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
  requests = [own for own, _ in rows]
  ids = [own.tokens for own in requests]
  found = encode_ids(config, model, params, tokenizer, ids, requests)
  return np.asarray(draw_posteriors(found, keys, temperature))


def uses_prior(options: config_lib.Generate, model: gemini.Gemini) -> bool:
  """Whether z is a draw of the prior, not of a text."""
  if options.latent:
    return False
  # A prompt that is read by an encoder has a posterior.
  return options.source == 'prior' or (
    options.source == 'prompt' and not model.config.cross
  )


def sample_keys(seed: int, count: int) -> jax.Array:
  """A key for each sample, other than those of its tokens."""
  key = jax.random.fold_in(jax.random.key(np.uint32(seed % 2**32)), 2**31)
  return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


@functools.partial(jax.jit, static_argnums=0)
def draw_prior(
  model: gemini.Gemini, params: Any, keys: jax.Array, temperature: Any
) -> jax.Array:
  """A draw of the prior for each key, float32[N, Z]."""
  prior = find_prior(model, params)
  return jax.vmap(lambda key: prior.sample(key, 1, temperature)[0])(keys)


def find_prior(model: gemini.Gemini, params: Any) -> latent_lib.Mixture:
  """Which z there are."""
  prior: Any = model.apply({'params': params}, method='prior')
  return prior


@jax.jit
def draw_posteriors(
  posteriors: latent_lib.Normal, keys: jax.Array, temperature: Any
) -> jax.Array:
  """A draw of each posterior of [N, Z] with its key, float32[N, Z]."""
  draw = lambda own, key: own.sample(key, temperature)
  return jax.vmap(draw)(posteriors, keys)


def limit(config: config_lib.Config) -> int:
  """Tokens that the encoder reads at most, eos included."""
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
    ConfigError: a text is empty, or has more tokens than `limit`.
  """
  rows, length = [], limit(config)
  for text in texts:
    config_lib.check(bool(text), 'an empty text has no latent; write one')
    ids = np.asarray(tokenizer.encode(text), np.int32)
    config_lib.check(
      len(ids) < length,
      f'{text[:40]!r} has {len(ids) + 1} tokens, of which {length} can be '
      'encoded',
    )
    rows.append(ids)
  return encode_ids(config, model, params, tokenizer, rows)


def encode_ids(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  rows: Sequence[np.ndarray],
  requests: Sequence[request.Request] = (),
) -> latent_lib.Normal:
  """The posterior of the ids of each text, numpy's [N, Z].

  Those of requests are read with their media.

  Raises:
    ConfigError: one has more tokens than `limit`, with the end.
  """
  length = limit(config)
  size = min(_MAX_ROWS, 1 << (len(rows) - 1).bit_length())
  found = []
  for first in range(0, len(rows), size):
    part = rows[first : first + size]
    tokens = np.full((size, length), tokenizer.pad_id, np.int32)
    lengths = np.zeros(size, np.int32)
    for i, row in enumerate(part):
      own = transforms.source(row, config.data, tokenizer)
      config_lib.check(
        len(own) <= length,
        f'a text has {len(own)} tokens, of which {length} can be encoded',
      )
      tokens[i, : len(own)] = own
      lengths[i] = len(own)
    media = request.stack(model.config, requests[first : first + size], size)
    sequence = batch_lib.plain_sequence(tokens, lengths)
    posterior = _encode(
      model, params, dataclasses.replace(sequence, media=media)
    )
    found.append(jax.tree.map(np.asarray, posterior))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *found)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, sequence):
  return model.apply({'params': params}, sequence, method='posterior')


def between(start_Z: np.ndarray, end_Z: np.ndarray, count: int) -> np.ndarray:
  """`count` points from one z to another, float32[N, Z], on a great arc.

  The length changes evenly, so that points between two typical z are typical
  (White 2016, Sampling Generative Networks); on a line they would be short.
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
