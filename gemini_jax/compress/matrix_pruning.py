"""Which weights of a matrix are pruned, and what becomes of the others.

F outputs, D inputs, G scales of an output. A Hessian is the sum of x x^T over
the inputs x of a product, half that of the squared error of its outputs by the
weights of one output.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from gemini_jax.adapt import selection
from gemini_jax.weights import block_ell, grids

# Columns that the compensating pass treats before it updates those after.
_BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is done with a matrix.

  Attributes:
    method: as `compress.method`.
    alpha: share that is pruned; 0: what is zero already.
    n_m: weights that are kept of neighbouring inputs; (0, 0): wherever.
    block: inputs and outputs of the blocks that are pruned; 0: single weights.
    grid: of the codes; None: weights stay as they are.
    damping: as `compress.damping`.
  """

  method: str
  alpha: float = 0.0
  n_m: tuple[int, int] = (0, 0)
  block: int = 0
  grid: grids.Grid | None = None
  damping: float = 0.01

  @property
  def prunes(self) -> bool:
    """Whether weights are pruned that are not zero yet."""
    return self.alpha > 0 or self.n_m[1] > 0

  @property
  def compensates(self) -> bool:
    """Whether weights make up for what others lose."""
    return self.method in ('gptq', 'sparsegpt')


@functools.partial(jax.jit, static_argnames='settings')
def compress(
  w_FD: jax.Array, hessian: jax.Array | None, settings: Settings
) -> tuple[jax.Array, jax.Array | None]:
  """The weights that are left, as they will be stored, and their scales.

  What is zero stays zero.

  Args:
    w_FD: float32, the weights.
    hessian: float32[D, D], or its diagonal for wanda; None: nothing is known
      of the inputs.
    settings: what is done.

  Returns:
    float32[F, D] and [F, G], or None without a grid.
  """
  if settings.compensates:
    assert hessian is not None
    return _compensated(w_FD, hessian, settings)
  kept_FD = w_FD != 0
  if settings.prunes:
    scores_FD = jnp.abs(w_FD)
    if settings.method == 'wanda':
      assert hessian is not None
      # Where no input is known, as of a tower that read nothing, it is by size.
      scale_D = jnp.where(jnp.any(hessian > 0), jnp.sqrt(hessian), 1)
      scores_FD *= scale_D[None]
    kept_FD &= _best(scores_FD, settings)
  w_FD = jnp.where(kept_FD, w_FD, 0)
  if settings.grid is None:
    return w_FD, None
  scale_FG = settings.grid.scale(w_FD)
  return settings.grid.rounded(w_FD, scale_FG), scale_FG


def _best(scores_FD: jax.Array, settings: Settings) -> jax.Array:
  """bool[F, D]: the weights that are kept, by their scores."""
  n, m = settings.n_m
  if m:
    return _best_of_neighbours(scores_FD, n, m)
  if settings.block:
    return _best_blocks(scores_FD, settings)
  dims = (1,) if settings.method == 'wanda' else (0, 1)
  size = math.prod(scores_FD.shape[dim] for dim in dims)
  return selection.highest(scores_FD, size - int(settings.alpha * size), dims)


def _best_blocks(scores_FD: jax.Array, settings: Settings) -> jax.Array:
  """bool[F, D]: of each block of outputs the blocks of largest norms."""
  (F, D), b = scores_FD.shape, settings.block
  squares = jnp.square(scores_FD).reshape(F // b, b, D // b, b)
  sums = jnp.sum(squares, axis=(1, 3))
  count = block_ell.num_kept(settings.alpha, D // b)
  kept = _best_of_neighbours(sums, count, D // b)
  return jnp.repeat(jnp.repeat(kept, b, axis=0), b, axis=1)


def _best_of_neighbours(scores_FD: jax.Array, n: int, m: int) -> jax.Array:
  """bool[F, D]: the n largest of m neighbours; of equal ones the first."""
  groups = scores_FD.reshape(scores_FD.shape[0], -1, m)
  order = jnp.argsort(-groups, axis=-1, stable=True)
  ranks = jnp.argsort(order, axis=-1, stable=True)
  return (ranks < n).reshape(scores_FD.shape)


def _compensated(
  w_FD: jax.Array, hessian_DD: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array | None]:
  """One pass over the inputs that prunes and rounds (SparseGPT, GPTQ).

  What an input's weights lose is made up for by those of the inputs after it,
  as far as their Hessian tells. Blocks of inputs are padded with inputs that
  are always 0.
  """
  D = w_FD.shape[1]
  block = _block(settings)
  pad = -D % block
  inverse_DD = inverse_factor(hessian_DD, settings.damping)
  inverse_DD = jnp.pad(inverse_DD, ((0, pad), (0, pad)))
  inverse_DD += jnp.diag(jnp.pad(jnp.zeros(D), (0, pad), constant_values=1.0))
  kept_FD = jnp.pad(w_FD != 0, ((0, 0), (0, pad)))
  grid = settings.grid
  scale_FG = None
  if grid is not None:
    # Of groups each gets its own when the pass comes to it.
    scale_FG = grid.scale(jnp.pad(w_FD, ((0, 0), (0, pad))))
  padded_FD = jnp.pad(w_FD, ((0, 0), (0, pad)))

  def one_block(index, carry):
    w_FD, scale_FG = carry
    start = index * block
    part_FB = jax.lax.dynamic_slice_in_dim(w_FD, start, block, 1)
    rows_BD = jax.lax.dynamic_slice_in_dim(inverse_DD, start, block, 0)
    factor_BB = jax.lax.dynamic_slice_in_dim(rows_BD, start, block, 1)
    kept_FB = jax.lax.dynamic_slice_in_dim(kept_FD, start, block, 1)
    if settings.prunes and not settings.n_m[1]:
      kept_FB &= _cheapest(
        part_FB, factor_BB, kept_FB, start, D, settings.alpha
      )
    scales = scale_FG
    if grid is not None and grid.has_groups:
      scales = grid.scale(jnp.where(kept_FB, part_FB, 0))
      scale_FG = jax.lax.dynamic_update_slice_in_dim(
        scale_FG, scales, index * scales.shape[1], 1
      )
    done_FB, error_FB = _through_block(
      part_FB, factor_BB, kept_FB, scales, settings
    )
    # Left of the block the factor's rows are zero, and in it the last columns
    # are those of `done_FB`.
    w_FD = w_FD - error_FB @ rows_BD
    w_FD = jax.lax.dynamic_update_slice_in_dim(w_FD, done_FB, start, 1)
    return w_FD, scale_FG

  w_FD, scale_FG = jax.lax.fori_loop(
    0, (D + pad) // block, one_block, (padded_FD, scale_FG)
  )
  w_FD = w_FD[:, :D]
  if grid is not None and grid.has_groups:
    assert scale_FG is not None
    scale_FG = scale_FG[:, : -(-D // grid.group)]
  return w_FD, scale_FG


def _block(settings: Settings) -> int:
  """Inputs of a block: whole groups of a scale, whole neighbours of N:M."""
  m = settings.n_m[1] or 1
  if settings.grid is not None and settings.grid.has_groups:
    return math.lcm(settings.grid.group, m)
  return m * -(-_BLOCK // m)


def inverse_factor(hessian_DD: jax.Array, damping: float) -> jax.Array:
  """Upper U with U^T U the inverse of the damped Hessian.

  By one factorisation from the last input to the first.
  """
  D = hessian_DD.shape[0]
  mean = jnp.mean(jnp.diag(hessian_DD))
  eye_DD = jnp.eye(D, dtype=hessian_DD.dtype)
  damped_DD = hessian_DD + jnp.maximum(damping * mean, 1e-12) * eye_DD
  lower_DD = jnp.linalg.cholesky(damped_DD[::-1, ::-1])
  inverse_DD = jax.scipy.linalg.solve_triangular(lower_DD, eye_DD, lower=True)
  return inverse_DD[::-1, ::-1]


def _cheapest(
  w_FB: jax.Array,
  factor_BB: jax.Array,
  kept_FB: jax.Array,
  start: jax.Array,
  num_inputs: int,
  alpha: float,
) -> jax.Array:
  """bool[F, B]: what is left once the share that costs least is pruned."""
  F, B = w_FB.shape
  costs_FB = jnp.square(w_FB / jnp.diag(factor_BB)[None])
  costs_FB = jnp.where(kept_FB, costs_FB, 0)
  is_input_B = start + jnp.arange(B) < num_inputs
  costs_FB = jnp.where(is_input_B[None], costs_FB, jnp.inf)
  count = jnp.ceil(alpha * F * jnp.sum(is_input_B) - 1e-4).astype(jnp.int32)
  return selection.highest(costs_FB, F * B - count, (0, 1))


def _through_block(
  w_FB: jax.Array,
  factor_BB: jax.Array,
  kept_FB: jax.Array,
  scale_FG: jax.Array | None,
  settings: Settings,
) -> tuple[jax.Array, jax.Array]:
  """The weights of a block after the pass, and the errors of its inputs."""
  n, m = settings.n_m
  diagonal_B = jnp.diag(factor_BB)

  def one_input(j, carry):
    w_FB, kept_FB, error_FB = carry
    if m:
      # With what the inputs before have changed.
      first = j // m * m
      size = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=m
      )
      costs_Fm = jnp.square(size(w_FB, axis=1) / size(diagonal_B)[None])
      costs_Fm = jnp.where(size(kept_FB, axis=1), costs_Fm, -1.0)
      best_Fm = _best_of_neighbours(costs_Fm, n, m) & size(kept_FB, axis=1)
      chosen = jax.lax.dynamic_update_slice_in_dim(kept_FB, best_Fm, first, 1)
      kept_FB = jnp.where(j == first, chosen, kept_FB)
    w_F = jax.lax.dynamic_index_in_dim(w_FB, j, 1, keepdims=False)
    new_F = jnp.where(kept_FB[:, j], w_F, 0)
    if settings.grid is not None:
      assert scale_FG is not None
      scale_F1 = scale_FG[:, :1]
      if settings.grid.has_groups:
        scale_F1 = scale_FG[:, j // settings.grid.group][:, None]
      new_F = settings.grid.rounded(new_F[:, None], scale_F1)[:, 0]
    error_F = (w_F - new_F) / diagonal_B[j]
    w_FB = w_FB - error_F[:, None] * factor_BB[j][None]
    w_FB = w_FB.at[:, j].set(new_F)
    return w_FB, kept_FB, error_FB.at[:, j].set(error_F)

  carry = (w_FB, kept_FB, jnp.zeros_like(w_FB))
  w_FB, _, error_FB = jax.lax.fori_loop(0, w_FB.shape[1], one_input, carry)
  return w_FB, error_FB
