"""Accepted and replaced tokens together have the target's distribution.

B rows, K drafted tokens, V vocabulary, M = K + 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import frequencies
from gemini_jax.infer import rejection_sampling

VOCAB_SIZE = 8


def wrong_rule(accept_keys_BK, correct_keys_BM, draft_BK, draft, target):
  """A draw from p, not from max(p - q, 0), in the place of a rejected token."""
  num_B, _ = rejection_sampling.verify(
    accept_keys_BK, correct_keys_BM, draft_BK, draft, target
  )
  rows_B = jnp.arange(len(num_B))
  return num_B, jax.vmap(jax.random.categorical)(
    correct_keys_BM[rows_B, num_B], jnp.log(target[rows_B, num_B])
  )


def always(accept_keys_BK, correct_keys_BM, draft_BK, draft, target):
  """All drafted tokens are accepted."""
  target = jnp.concatenate([draft, target[:, -1:]], axis=1)
  return rejection_sampling.verify(
    accept_keys_BK, correct_keys_BM, draft_BK, draft, target
  )


@pytest.mark.parametrize(
  ('rule', 'is_right'),
  [(rejection_sampling.verify, True), (wrong_rule, False), (always, False)],
)
def test_only_the_rule_of_the_paper_is_exact(rule, is_right):
  """The first token of each row, whatever the draft says."""
  rng = np.random.default_rng(0)
  target_MV = rng.dirichlet(np.ones(VOCAB_SIZE), 3).astype(np.float32)
  draft_KV = rng.dirichlet(np.ones(VOCAB_SIZE), 2).astype(np.float32)
  num_rows = 20_000
  keys = jax.random.split(jax.random.key(1), 3)
  draft_BK = jax.random.categorical(
    keys[0], jnp.log(draft_KV), shape=(num_rows, 2)
  )
  spread = lambda probs: jnp.broadcast_to(probs, (num_rows, *probs.shape))
  num_B, token_B = jax.jit(rule)(
    jax.random.split(keys[1], (num_rows, 2)),
    jax.random.split(keys[2], (num_rows, 3)),
    draft_BK,
    spread(draft_KV),
    spread(target_MV),
  )
  first_B = np.where(num_B > 0, draft_BK[:, 0], token_B)
  counts = np.bincount(first_B, minlength=VOCAB_SIZE)
  value, limit = frequencies.chi_square(counts, target_MV[0].astype(np.float64))
  assert (value < limit) if is_right else (value > 10 * limit)
  # As many as min(p, q) holds.
  if is_right:
    share = np.minimum(target_MV[0], draft_KV[0]).sum()
    assert np.mean(np.asarray(num_B) > 0) == pytest.approx(share, abs=0.02)
