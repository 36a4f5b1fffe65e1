"""Likelihoods of texts, and how much a latent knows of them.

B batch, N sequences, Z numbers in z.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.data import transforms
from gemini_jax.models import gemini
from gemini_jax.models import latent as latent_lib
from gemini_jax.objectives import kl, language
from gemini_jax.parallel import processes

# A number of z is active if its mean varies more than this over the texts
# (Burda et al. 2016, section 5.1).
_ACTIVE = 0.01
# Most texts of a batch, and most of its tokens.
_MAX_ROWS, _MAX_TOKENS = 64, 2**14


def measure(
  model: gemini.Gemini,
  params: Any,
  batches: Iterable[batch_lib.Batch],
  *,
  num_samples: int,
  num_sequences: int,
) -> dict[str, float]:
  """Metrics of the first sequences, each in a row of its own.

  nll: nats a sequence; with a latent, by importance weights (Burda et al.
  2016, equation 8), an upper bound that falls with more samples. With a latent
  also kl: mean KL of posterior to prior; mi: mutual information of sequences
  and z under the posterior in nats (Hoffman and Johnson 2016), at most log N;
  active_units: dims of z whose posterior mean varies.

  Args:
    model: with or without a latent.
    params: of the model.
    batches: on the devices; rows without weights do not count.
    num_samples: draws of z for each sequence.
    num_sequences: most sequences to read.
  """
  nlls, latents, count = [], [], 0
  for index, batch in enumerate(batches):
    key = jax.random.fold_in(jax.random.key(0), index)
    nll_B, latent = _measure(model, num_samples, params, batch, key)
    nll_B, latent, weights_BT = processes.fetch((nll_B, latent, batch.weights))
    real_B = weights_BT.any(axis=1)
    real_B &= np.cumsum(real_B) <= num_sequences - count
    count += int(real_B.sum())
    nlls.append(nll_B[real_B])
    latents.append(
      jax.tree.map(lambda leaf, real_B=real_B: leaf[real_B], latent)
    )
    if count >= num_sequences:
      break
  nll_N = np.concatenate(nlls)
  values = {'nll': float(nll_N.mean())}
  if not model.config.latent.dim:
    return values
  posterior, z_NZ, kl_N = jax.tree.map(
    lambda *parts: np.concatenate(parts), *latents
  )
  return values | {
    'kl': float(kl_N.mean()),
    'mi': mutual_information(posterior, z_NZ),
    'active_units': int((posterior.mean.var(axis=0) > _ACTIVE).sum()),
  }


def of_texts(
  model: gemini.Gemini,
  params: Any,
  tokenizer: tokenizer_lib.Tokenizer,
  texts: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
  """-log p of each text in nats, float32[N], and its tokens, int64[N].

  Exact, for a decoder without a latent. The end of a text is one of its tokens;
  tokens beyond `model.max_length` are left out of both.
  """
  assert not model.config.latent.dim and not model.config.cross
  max_length = model.config.max_length
  documents = [
    transforms.join([tokenizer.encode(text)], tokenizer)[0][: max_length + 1]
    for text in texts
  ]
  lengths_N = np.array([len(row) - 1 for row in documents])
  width = min(max_length, -(-lengths_N.max(initial=1) // 8) * 8)
  size = min(_MAX_ROWS, max(1, _MAX_TOKENS // width))
  size = min(1 << (size.bit_length() - 1), 1 << (len(texts) - 1).bit_length())
  nats = []
  for first in range(0, len(texts), size):
    part = documents[first : first + size]
    tokens, targets = np.full((2, size, width), tokenizer.pad_id, np.int32)
    for i, row in enumerate(part):
      tokens[i, : len(row) - 1] = row[:-1]
      targets[i, : len(row) - 1] = row[1:]
    lengths = np.zeros(size, np.int32)
    lengths[: len(part)] = lengths_N[first : first + size]
    decoder = batch_lib.plain_sequence(tokens, lengths)
    batch = batch_lib.Batch(
      decoder=decoder,
      targets=targets,
      weights=decoder.segments.astype(np.float32),
    )
    nats.append(processes.fetch(_nats(model, params, batch))[: len(part)])
  return np.concatenate(nats), lengths_N


@functools.partial(jax.jit, static_argnums=0)
def _nats(model, params, batch):
  return -language.log_likelihood(model, params, batch)


def mutual_information(posterior: latent_lib.Normal, z_NZ: Any) -> float:
  """E log q(z|x) - E log q(z) in nats, q(z) over the N posteriors.

  Args:
    posterior: [N, Z].
    z_NZ: a draw of each.
  """

  def log_sum(z_Z):
    each_NZ = posterior.log_prob(z_Z[None])
    return jax.nn.logsumexp(jnp.sum(each_NZ, axis=-1))

  log_prob_N = jnp.sum(posterior.log_prob(z_NZ), axis=-1)
  log_sum_N = jax.jit(lambda z_NZ: jax.lax.map(log_sum, z_NZ))(
    jnp.asarray(z_NZ)
  )
  return float(jnp.mean(log_prob_N - log_sum_N)) + math.log(len(z_NZ))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(model, num_samples, params, batch, key) -> tuple[Any, Any]:
  """-log p of each row in nats; with a latent, posterior, a draw and the KL."""
  apply = functools.partial(gemini.apply, model, params)
  memory_BSD = None
  inputs = apply(batch, method='encoder_inputs')
  if model.config.cross:
    memory_BSD, _ = apply(inputs, method='encode')
  if not model.config.latent.dim:
    nats_B = language.log_likelihood(
      model, params, batch, memory_BSD=memory_BSD
    )
    return -nats_B, ()
  posterior = apply(inputs, method='posterior')
  prior = apply(method='prior')

  def weigh(key):
    z_BZ = posterior.sample(key)
    log_ratio_B = prior.log_prob(z_BZ) - jnp.sum(
      posterior.log_prob(z_BZ), axis=-1
    )
    log_likelihood_B = language.log_likelihood(
      model, params, batch, z_BZ, memory_BSD
    )
    return log_likelihood_B + log_ratio_B

  log_weights_SB = jax.lax.map(weigh, jax.random.split(key, num_samples))
  nll_B = math.log(num_samples) - jax.nn.logsumexp(log_weights_SB, axis=0)
  z_BZ = posterior.sample(jax.random.fold_in(key, 1))
  kl_B = jnp.sum(kl.divergence(posterior, prior, z_BZ), axis=-1)
  return nll_B, (posterior, z_BZ, kl_B)
