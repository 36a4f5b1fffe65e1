"""Named tensors of the layers of a stack, captured and edited.

A module marks a tensor by `x = hooks.point(self, 'query', x)`. Its name is the
path of the module in its layer and this name, such as 'attention/query'. A
point adds nothing to a program until `apply` captures its tensor or
`EditedParams` edit it. Both travel in collections of variables, which
`models/stack.py` hands to each layer and stacks over layers, however the stack
runs.

Points of a layer, in order (`output` is before dropout and the post-norm, and
query and key are before the rotation):

    residual_before
    attention/ input query key value attended output
    residual_after_attention
    cross_attention/ as attention, where a decoder reads an encoder; with a
      cache, keys and values are those of the cache and have no points
    residual_after_cross_attention
    feedforward/ input gate up hidden output; with experts input router output,
      and those of the expert that all tokens visit under feedforward/shared/
    residual_after_feedforward

B batch, T length, L layers of a stack.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util


class Tensors(dict):
  """The tensors of one layer by name, each [B, T, ...].

  `real` is there too: bool[B, T], false at padding; None: there is none.
  """

  def __missing__(self, name: str) -> Any:
    near = difflib.get_close_matches(name, self, n=1)
    hint = f'did you mean {near[0]}?' if near else f'there are {sorted(self)}'
    raise ValueError(f'{name} is no tensor of this layer; {hint}')


@dataclasses.dataclass(frozen=True)
class Capture:
  """What is kept of each layer.

  Attributes:
    function: from the tensors of a layer to a tree of arrays, inside the
      layer: what it drops is never stored.
    sums: False: each array is [B, ...]. True: each array is a sum over rows.
      A stack in stages computes a batch in parts, and joins or adds them.
  """

  function: Callable[[Tensors], Any]
  sums: bool = False


@flax.struct.dataclass
class Edit:
  """A change of one tensor in the layers of a stack.

  Attributes:
    data: a tree of arrays [L, B or 1, ...].
    function: of the tensor and its layer's part of `data`, [B or 1, ...], to
      the tensor that takes its place.
  """

  data: Any
  function: Callable[[jax.Array, Any], jax.Array] = flax.struct.field(
    pytree_node=False
  )


def tensor(name: str) -> Capture:
  """The tensor `name` of every layer, [L, B, T, ...]."""
  return Capture(lambda tensors: tensors[name])


def affine(
  layers_L: jax.typing.ArrayLike,
  *,
  scale: jax.typing.ArrayLike = 1.0,
  shift: jax.typing.ArrayLike = 0.0,
  positions_BT: jax.typing.ArrayLike = True,
) -> Edit:
  """`x * scale + shift` at chosen layers and positions; x elsewhere.

  Adds (`shift`), scales (`scale`), or replaces (`scale=0` with `shift`). Edits
  of equal shapes share a compiled program, whatever they do and where.

  Args:
    layers_L: bool[L], the layers that are edited.
    scale: a number, or [L or 1, B or 1, ...] where the rest aligns with the
      last dims of x: a vector_D as `vector_D[None, None]`.
    shift: as `scale`.
    positions_BT: bool[B or 1, T or 1], of the tokens of this call.
  """
  layers_L = jnp.asarray(layers_L, bool)
  positions_BT = jnp.atleast_2d(jnp.asarray(positions_BT, bool))

  def stack(leaf):
    leaf = jnp.asarray(leaf, jnp.float32)
    leaf = leaf.reshape(1, 1) if leaf.ndim == 0 else leaf
    return jnp.broadcast_to(leaf, (layers_L.size, *leaf.shape[1:]))

  mask_LBT = layers_L[:, None, None] & positions_BT[None]
  return Edit((mask_LBT, stack(scale), stack(shift)), _affine)


def _affine(x: jax.Array, data: Any) -> jax.Array:
  mask_BT, scale, shift = data
  # Between the batch and the dims that are given.
  align = lambda leaf: leaf.reshape(
    leaf.shape[:1] + (1,) * (x.ndim - leaf.ndim) + leaf.shape[1:]
  )
  edited = x.astype(jnp.float32) * align(scale) + align(shift)
  mask = mask_BT.reshape(mask_BT.shape + (1,) * (x.ndim - 2))
  return jnp.where(mask, edited.astype(x.dtype), x)


def point(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
  """The tensor after its edit, if there is one; kept if it is asked for."""
  if module.has_variable('edit', name):
    edit: Any = module.get_variable('edit', name)
    x = edit.function(x, edit.data)
  # `init` makes every collection mutable.
  if not module.is_initializing() and module.is_mutable_collection('tensors'):
    module.put_variable('tensors', name, x)
  return x


@flax.struct.dataclass
class EditedParams:
  """Parameters with edits; it stands where `models.gemini.apply` takes them.

  So losses, likelihoods and the loops of decoding run edited as they are. An
  edit of a stack that a call does not run has no effect on that call.

  Attributes:
    params: of the model.
    edits: by path of a stack and name of a tensor, such as
      'decoder/attention/query'.
  """

  params: Any
  edits: dict[str, Edit]


def variables(params: Any) -> dict[str, Any]:
  """The variables of a model that has these parameters, edited or plain.

  Raises:
    ValueError: there is no stack at the path of an edit.
  """
  if not isinstance(params, EditedParams):
    return {'params': params}
  for path in params.edits:
    if _stack_of(params.params, path) is None:
      raise ValueError(f'no stack of this model is at {path}')
  edits = traverse_util.unflatten_dict(params.edits, sep='/')
  return {'params': params.params, 'edit': edits}


def _stack_of(params: Any, path: str) -> str | None:
  """The stack whose path `path` starts with; None: it does with none."""
  node, names = params, path.split('/')
  for i, name in enumerate(names):
    node = node.get(name) if isinstance(node, Mapping) else None
    layers = node.get('layers') if isinstance(node, Mapping) else None
    if isinstance(layers, Mapping) and 'attention' in layers:
      return '/'.join(names[: i + 1])
  return None


def apply(
  model: nn.Module,
  params: Any,
  *args: Any,
  capture: Mapping[str, Capture],
  **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
  """`models.gemini.apply` that also captures tensors of the model's stacks.

  Args:
    model: has stacks, such as `decoder` and `encoder` of a Gemini.
    params: of the model. Captures see tensors after the edits of EditedParams.
    *args: as of `model.apply`.
    capture: by path of a stack and a label without '/', such as
      'decoder/queries'.
    **kwargs: as of `model.apply`.

  Returns:
    The output, and by the keys of `capture` trees of [L, ...] arrays. Of a
    stack that runs more than once in the call they are those of the last run.

  Raises:
    ValueError: there is no such stack, it did not run, or its layers have no
      such tensor.
  """
  given = variables(params)
  for path in capture:
    if _stack_of(given['params'], path) != path.rpartition('/')[0]:
      raise ValueError(f'no stack of this model is at {path}')
  asked = {'capture': traverse_util.unflatten_dict(capture, sep='/')}
  output, state = model.apply(
    given | asked, *args, mutable=['captured'], **kwargs
  )
  captured: dict[str, Any] = traverse_util.flatten_dict(
    state.get('captured', {}), sep='/'
  )
  for path in capture:
    if path not in captured:
      raise ValueError(f'the stack of {path} does not run in this call')
  return output, {path: captured[path][0] for path in capture}


def check_edits(edits: Mapping[str, Any], tensors: Tensors):
  """ValueError unless the edits are of tensors that a layer has."""
  # With a cache, those of the encoder's output were edited when it was filled.
  cached = ('cross_attention/key', 'cross_attention/value')
  for name in traverse_util.flatten_dict(edits, sep='/'):
    if name not in cached or 'cross_attention/query' not in tensors:
      assert tensors[name] is not None
