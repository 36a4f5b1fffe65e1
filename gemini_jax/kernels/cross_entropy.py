"""Cross-entropy in chunks of tokens: no array of [tokens, vocabulary] is made.

B batch, T length, X = B T tokens, C tokens of a chunk, D width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# A chunk has _SCORES scores, but at least _CHUNK tokens.
_SCORES, _CHUNK = 2**22, 256


@flax.struct.dataclass
class Sums:
  """Weighted sums over tokens; they add up over batches and devices.

  Attributes:
    loss: of -log p(target), in nats, without smoothing.
    objective: of what is minimised: smoothing and other losses included.
    correct: of targets that are the likeliest token.
    weight: of the tokens.
    terms: sums of other quantities by name, each [sum, count].
  """

  loss: jax.Array
  objective: jax.Array
  correct: jax.Array
  weight: jax.Array
  terms: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class TokenScores:
  """How likely each target is, whatever its weight.

  Attributes:
    log_prob_BT: log p(target) in nats, float32, without smoothing.
    is_best_BT: bool, whether the target is the argmax of the scores: the first
      of the likeliest tokens, which greedy decoding would write.
  """

  log_prob_BT: jax.Array
  is_best_BT: jax.Array


@dataclasses.dataclass(frozen=True)
class Options:
  """How the loss is computed.

  Attributes:
    softcap: scores become softcap * tanh(scores / softcap); 0: off.
    label_smoothing: share of the target spread evenly over the classes.
    z_loss: weight of the squared log-partition (PaLM, section 5).
    vocab_axis: the mesh axis that splits the vocabulary, if one does.
    num_classes: smoothing is spread over so many rows of the table, the first
      ones; 0: all. The others are padding, or tokens of no text.
  """

  softcap: float = 0.0
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  vocab_axis: str | None = None
  num_classes: int = 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_sums(
  options: Options,
  x_BTD: jax.Array,
  table_VD: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
) -> Sums:
  """Sums over the tokens of one device, scores of the table's rows.

  The gradient of the objective is computed with the sums, chunk by chunk, so
  that neither scores nor their gradient are kept or computed twice. Only the
  objective has a gradient.

  Args:
    options: softcap and further terms.
    x_BTD: hidden states after each token.
    table_VD: a row for each token of the vocabulary, in the type of `x_BTD`.
    targets_BT: int32.
    weights_BT: float32; a token of weight 0 does not count.
  """
  return token_scores(options, x_BTD, table_VD, targets_BT, weights_BT)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_scores(
  options: Options,
  x_BTD: jax.Array,
  table_VD: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
) -> tuple[Sums, TokenScores]:
  """The sums of `token_sums`, and the scores of each token.

  Only `log_prob_BT` has a gradient, for which the scores are computed again,
  chunk by chunk. The arguments are those of `token_sums`.
  """
  sums, scores = _run(options, False, x_BTD, table_VD, targets_BT, weights_BT)
  return sums, jax.tree.map(
    lambda leaf: leaf.reshape(-1)[: targets_BT.size].reshape(targets_BT.shape),
    scores,
  )


def _forward(options, x_BTD, table_VD, targets_BT, weights_BT):
  """The sums, and the gradients of the objective by x and the table."""
  (sums, grad_table_VD), grad_x = _run(
    options, True, x_BTD, table_VD, targets_BT, weights_BT
  )
  num, width = targets_BT.size, x_BTD.shape[-1]
  grad_x_BTD = grad_x.reshape(-1, width)[:num].reshape(x_BTD.shape)
  return sums, (grad_x_BTD, grad_table_VD.astype(table_VD.dtype))


def _backward(options, grads, sums):
  scale = sums.objective
  if options.vocab_axis:
    # Every device of the axis has the same sums, and a part of what they cost.
    scale = jax.lax.psum(scale, options.vocab_axis)
  grad_x_BTD, grad_table_VD = grads
  return (
    grad_x_BTD * scale.astype(grad_x_BTD.dtype),
    grad_table_VD * scale.astype(grad_table_VD.dtype),
    None,
    None,
  )


token_sums.defvjp(_forward, _backward)


def _forward_scores(options, *args):
  return token_scores(options, *args), args


def _backward_scores(options, args, outputs):
  """The gradients of log-probabilities that are weighted and summed."""
  x_BTD, table_VD, targets_BT, _ = args
  weights_BT = -outputs[1].log_prob_BT
  if options.vocab_axis:
    # As in `_backward`.
    weights_BT = jax.lax.psum(weights_BT, options.vocab_axis)
  plain = dataclasses.replace(options, label_smoothing=0.0, z_loss=0.0)
  _, grads = _forward(plain, x_BTD, table_VD, targets_BT, weights_BT)
  return (*grads, None, None)


token_scores.defvjp(_forward_scores, _backward_scores)


def _run(options, differentiate, x_BTD, table_VD, targets_BT, weights_BT):
  """Totals over the chunks, and what each chunk has of its tokens.

  With `differentiate` (sums, gradient of the table) and the gradient of x;
  else the sums and the scores of the tokens.
  """
  num, rows = targets_BT.size, table_VD.shape[0]
  limit = max(_SCORES // rows, _CHUNK)
  count = -(-num // limit)
  size = -(-num // count)

  def cut(leaf):
    leaf = leaf.reshape(num, *leaf.shape[2:])
    padding = ((0, count * size - num), *((0, 0),) * (leaf.ndim - 1))
    return jnp.pad(leaf, padding).reshape(count, size, *leaf.shape[1:])

  def score(total, chunk) -> tuple[Any, Any]:
    sums, scores, _ = _chunk(options, False, table_VD, *chunk)
    return jax.tree.map(jnp.add, total, sums), scores

  def derive(total, chunk) -> tuple[Any, Any]:
    sums, _, grad_scores_CV = _chunk(options, True, table_VD, *chunk)
    x_CD = chunk[0]
    grad_x_CD = jnp.dot(grad_scores_CV, table_VD)
    grad_table_VD = jax.lax.dot_general(
      grad_scores_CV,
      x_CD,
      (((0,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    return jax.tree.map(jnp.add, total, (sums, grad_table_VD)), grad_x_CD

  zero = jnp.zeros((), jnp.float32)
  total = Sums(zero, zero, zero, zero)
  body = score
  if differentiate:
    total = total, jnp.zeros(table_VD.shape, jnp.float32)
    body = derive
  chunks = jax.tree.map(cut, (x_BTD, targets_BT, weights_BT))
  if count == 1:
    return body(total, jax.tree.map(lambda leaf: leaf[0], chunks))
  return jax.lax.scan(body, total, chunks)


def _chunk(
  options, differentiate, table_VD, x_CD, targets_C, weights_C
) -> tuple[Sums, Any, Any]:
  """The sums of a chunk, its tokens' scores, or its scores' gradient."""
  axis = options.vocab_axis
  smooth, z_loss = options.label_smoothing, options.z_loss
  over = lambda reduce, x: reduce(x, axis) if axis else x
  rows = table_VD.shape[0]
  first = jax.lax.axis_index(axis) * rows if axis else 0
  num_rows = rows * (jax.lax.axis_size(axis) if axis else 1)
  scores_CV = jax.lax.dot_general(
    x_CD,
    table_VD,
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  if options.softcap:
    scores_CV = options.softcap * jnp.tanh(scores_CV / options.softcap)
  # The largest score only keeps the exponentials in range.
  max_C = over(jax.lax.pmax, jnp.max(scores_CV, axis=-1))
  exp_CV = jnp.exp(scores_CV - max_C[:, None])
  sum_C = over(jax.lax.psum, jnp.sum(exp_CV, axis=-1))
  log_partition_C = max_C + jnp.log(sum_C)
  hit_CV = (targets_C - first)[:, None] == jnp.arange(rows)[None, :]
  target_C = over(
    jax.lax.psum, jnp.sum(jnp.where(hit_CV, scores_CV, 0), axis=-1)
  )
  loss_C = log_partition_C - target_C
  objective_C = loss_C
  num_classes = options.num_classes or num_rows

  def of_classes(x_CV):
    if num_classes == num_rows or not smooth:
      return x_CV
    is_class_V = first + jnp.arange(rows) < num_classes
    return jnp.where(is_class_V[None], x_CV, 0)

  if smooth:
    total_C = over(jax.lax.psum, jnp.sum(of_classes(scores_CV), axis=-1))
    mean_C = total_C / num_classes
    objective_C += smooth * (log_partition_C - mean_C - loss_C)
  if z_loss:
    objective_C += z_loss * jnp.square(log_partition_C)
  sums = Sums(
    loss=jnp.sum(loss_C * weights_C),
    objective=jnp.sum(objective_C * weights_C),
    correct=jnp.sum((target_C >= max_C) * weights_C),
    weight=jnp.sum(weights_C),
  )
  if not differentiate:
    # Rows of other devices have other numbers.
    ids_CV = jnp.where(
      scores_CV == max_C[:, None], first + jnp.arange(rows)[None], num_rows
    )
    best_C = over(jax.lax.pmin, jnp.min(ids_CV, axis=-1))
    return sums, TokenScores(-loss_C, best_C == targets_C), None
  share_C = weights_C * (1 + 2 * z_loss * log_partition_C) / sum_C
  grad_CV = exp_CV * share_C[:, None]
  grad_CV -= of_classes((weights_C * smooth / num_classes)[:, None])
  grad_CV -= jnp.where(hit_CV, ((1 - smooth) * weights_C)[:, None], 0)
  if options.softcap:
    grad_CV *= 1 - jnp.square(scores_CV / options.softcap)
  return sums, None, grad_CV.astype(x_CD.dtype)
