"""How likely a model finds texts, and what its latent tells of them.

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
from gemini_jax.parallel import processes

# A number of z is active if its mean varies more than this over the texts
# (Burda et al. 2016, section 5.1).
_ACTIVE = 0.01
# Texts that are read together at most, and their scores of tokens.
_MAX_ROWS, _MAX_LOGITS = 64, 2**26


def measure(
  model: gemini.Gemini,
  params: Any,
  batches: Iterable[batch_lib.Batch],
  *,
  num_samples: int,
  most: int,
) -> dict[str, float]:
  """Numbers of the first sequences, each a row of its own.

  nll: nats a sequence; with a latent, by importance weights (Burda et al.
  2016, equation 8), an upper bound that falls with more samples. Of a latent
  also rate: mean KL of posterior to prior; mi: between sequences and z under
  the posterior, nats (Hoffman and Johnson 2016), at most log N;
  active_units: numbers of z whose mean varies.

  Args:
    model: with or without a latent.
    params: of it.
    batches: on the devices; rows of weight 0 do not count.
    num_samples: draws of z for each sequence.
    most: sequences.
  """
  nlls, found, count = [], [], 0
  for index, batch in enumerate(batches):
    key = jax.random.fold_in(jax.random.key(0), index)
    nll_B, more = _measure(model, num_samples, params, batch, key)
    nll_B, more, weights_BT = processes.fetch((nll_B, more, batch.weights))
    real_B = weights_BT.any(axis=1)
    real_B &= np.cumsum(real_B) <= most - count
    count += int(real_B.sum())
    nlls.append(nll_B[real_B])
    found.append(jax.tree.map(lambda leaf, real_B=real_B: leaf[real_B], more))
    if count >= most:
      break
  nll_N = np.concatenate(nlls)
  values = {'nll': float(nll_N.mean())}
  if not model.config.latent.dim:
    return values
  posterior, z_NZ, kl_N = jax.tree.map(
    lambda *parts: np.concatenate(parts), *found
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
  """Nats of each text, float32[N], and tokens that they are of, int64[N].

  Exact: of a decoder without a latent. The end of a text is one of its tokens;
  what does not fit `model.max_length` is left out of both.
  """
  assert not model.config.latent.dim and not model.config.cross
  most, vocab_size = model.config.max_length, model.config.vocab_size
  assert vocab_size, 'the tokenizer sets model.vocab_size'
  documents = [
    transforms.join([tokenizer.encode(text)], tokenizer)[0][: most + 1]
    for text in texts
  ]
  lengths_N = np.array([len(row) - 1 for row in documents])
  width = min(most, -(-lengths_N.max(initial=1) // 8) * 8)
  size = min(_MAX_ROWS, max(1, _MAX_LOGITS // (width * vocab_size)))
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
  return -model.apply({'params': params}, batch, method='log_likelihood')


def mutual_information(posterior: latent_lib.Normal, z_NZ: Any) -> float:
  """E log q(z|x) - E log q(z) in nats, q(z) over the N posteriors.

  Args:
    posterior: [N, Z].
    z_NZ: a draw of each.
  """

  def of_all(z_Z):
    each_NZ = posterior.log_prob(z_Z[None])
    return jax.nn.logsumexp(jnp.sum(each_NZ, axis=-1))

  own_N = jnp.sum(posterior.log_prob(z_NZ), axis=-1)
  all_N = jax.jit(lambda z_NZ: jax.lax.map(of_all, z_NZ))(jnp.asarray(z_NZ))
  return float(jnp.mean(own_N - all_N)) + math.log(len(z_NZ))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(model, num_samples, params, batch, key) -> tuple[Any, Any]:
  """Nats of each row; posterior, a draw and the rate of each."""
  apply = functools.partial(model.apply, {'params': params})
  memory_BSD = None
  source = apply(batch, method='encoder_inputs')
  if model.config.cross:
    memory_BSD, _ = apply(source, method='encode')
  if not model.config.latent.dim:
    return -apply(batch, None, memory_BSD, method='log_likelihood'), ()
  posterior = apply(source, method='posterior')
  prior = apply(method='prior')

  def weigh(key):
    z_BZ = posterior.sample(key)
    log_ratio_B = prior.log_prob(z_BZ) - jnp.sum(
      posterior.log_prob(z_BZ), axis=-1
    )
    log_likelihood_B = apply(batch, z_BZ, memory_BSD, method='log_likelihood')
    return log_likelihood_B + log_ratio_B

  log_weights_SB = jax.lax.map(weigh, jax.random.split(key, num_samples))
  nll_B = math.log(num_samples) - jax.nn.logsumexp(log_weights_SB, axis=0)
  z_BZ = posterior.sample(jax.random.fold_in(key, 1))
  kl_terms = latent_lib.KLTerms.of(posterior, prior, z_BZ, 0.0)
  return nll_B, (posterior, z_BZ, jnp.sum(kl_terms.kl_BZ, axis=-1))
