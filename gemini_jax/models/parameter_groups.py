"""What each parameter is, and which parameters a choice is about.

Weight decay, freezing, Muon's matrices and resets each choose parameters by a
pattern, and so can adapters, pruning and importers. A pattern is a regular
expression that is searched for in a parameter's path:

    ^encoder/                 all of the encoder
    attention/.*/kernel$      the projections of all attention layers
    @(bias|norm)$             all biases and norm scales
    ^decoder/.*@matrix$       the matrices of the decoder

After an `@` stands what the parameter is, one of KINDS. A pattern without an
`@` sees the path alone.
"""

import dataclasses
import difflib
import itertools
import logging
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import config as config_lib

# What a parameter can be, and the paths of those that are; the first counts.
KINDS = {
  # One matrix for each expert of a layer.
  'expert': r'/expert_\w+/kernel$',
  'convolution': r'(^|/)(neighbours|frames/kernel|tokens/kernel)$',
  'matrix': r'(^|/)kernel$',
  'bias': r'(^|/)bias$',
  'temperature': r'(^|/)contrast/scale$',
  'norm': r'(^|/)scale$',
  # Of positions that a model has learned.
  'positions': r'(^|/)(position/embedding|positions)$',
  'embedding': r'(^|/)embedding$',
  # Vectors that ask for something, in the place of a token.
  'query': r'(^|/)(query|queries)$',
  # The prior of z, and the multiplier of its KL term.
  'latent': r'^latent/(multiplier|prior_\w+)$',
  'other': '',
}
# The matrices that `layers/matmul.py` reads, but those of experts: in layers,
# and the tables and heads of tokens.
LAYER_MATRICES = r'/layers/(?!.*router/).*@matrix$'
TABLES = r'^token/embedding$|^head/kernel$'
# The output of a model that names classes, in the tree of parameters.
CLASSES = 'classes'
# The stacks of layers, by the beginning of their parameters' paths.
_STACK = re.compile(
  r'(encoder|decoder|perception/encoders_\w+)/(tower/)?(layers/)?layers/'
)
# What lies below the layers of an encoder of media; what makes the vectors of
# tokens, of text and soft ones; what lies between encoder and decoder.
_BELOW_MEDIA = re.compile(
  r'(perception/encoders_\w+)/(tower/)?(stem|position)/'
)
_BELOW_TEXT = re.compile(
  r'(token|position|'
  r'perception/(encoders_\w+|projectors_\w+|video|number|series))/'
)
_BELOW_DECODER = re.compile(r'(encoder_norm|latent|latent_embedding)/')
# Matrices of which the first two dims are contracted, not the first alone.
_TWO_INPUT_DIMS = re.compile(r'(^|/)(output|down_\d+|frames|tokens)/kernel$')


@dataclasses.dataclass(frozen=True)
class Selection:
  """Parameters that something in the config is about.

  Attributes:
    name: what chooses them, as messages call it, such as 'optimizer.frozen'.
    pattern: which they are; '': none.
    can_be_all: whether the pattern may match every parameter.
    empty: what '' stands for.
  """

  name: str
  pattern: str
  can_be_all: bool = True
  empty: str = 'none'


def kind(path: str) -> str:
  """What the parameter at a path is, one of KINDS."""
  return next(k for k, pattern in KINDS.items() if re.search(pattern, path))


def matching(pattern: str, params: Any) -> Any:
  """A tree of bools: which parameters a pattern matches.

  A parameter whose leaf is a tree itself, such as a quantised matrix, matches
  as a whole or by the path of a part.
  """

  def one(path, _):
    return bool(pattern) and any(
      matches(pattern, name) for name in {_parameter_path(path), _join(path)}
    )

  return jax.tree_util.tree_map_with_path(one, params)


def matches(pattern: str, path: str) -> bool:
  """Whether a pattern matches the parameter at a path."""
  if re.search(pattern, path):
    return True
  return '@' in pattern and bool(re.search(pattern, f'{path}@{kind(path)}'))


def _join(path: Iterable[Any]) -> str:
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def _parameter_path(path: tuple[Any, ...]) -> str:
  """The path in the tree of parameters, without what is inside a leaf."""
  is_name = lambda key: isinstance(key, jax.tree_util.DictKey)
  return _join(itertools.takewhile(is_name, path))


def check(selections: Sequence[Selection], params: Any, *, log: bool = True):
  """Sees that each pattern matches parameters; logs how many, with `log`.

  Raises:
    ConfigError: a pattern matches no parameter, or all where that is wrong.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  sizes = {_join(path): leaf.size for path, leaf in flat}
  for selection in selections:
    name, pattern = selection.name, selection.pattern
    if not pattern:
      continue
    for word in re.findall(r'@(\w+)', pattern):
      config_lib.check(
        word in KINDS,
        f'{name}={pattern!r}: {word!r} is no kind of parameter; kinds are '
        f'{", ".join(KINDS)}',
      )
    is_selected = jax.tree.leaves(matching(pattern, params))
    selected = list(itertools.compress(sizes, is_selected))
    if not selected:
      names = [*sizes]
      if '@' in pattern:
        names += sorted({f'@{kind(path)}' for path in sizes})
      raise config_lib.ConfigError(
        f'{name}={pattern!r} matches the path of no parameter; the nearest are '
        f"{', '.join(_nearest(pattern, names))}; '' is for {selection.empty}"
      )
    config_lib.check(
      selection.can_be_all or len(selected) < len(sizes),
      f'{name}={pattern!r} matches every parameter: none would be trained',
    )
    if log:
      logging.info(
        '%s=%r: %d of %d tensors, %s parameters',
        name,
        pattern,
        len(selected),
        len(sizes),
        f'{sum(sizes[path] for path in selected):,}',
      )


def _nearest(pattern: str, paths: Iterable[str], count: int = 3) -> list[str]:
  """The paths of which some components in a row are most like the pattern."""
  text = pattern.strip('^$/')

  def likeness(path):
    parts = path.split('/')
    runs = [
      '/'.join(parts[i:j])
      for i in range(len(parts))
      for j in range(i + 1, len(parts) + 1)
    ]
    return max(difflib.SequenceMatcher(None, text, run).ratio() for run in runs)

  return sorted(paths, key=likeness, reverse=True)[:count]


def frozen(
  optimizer: config_lib.Optimizer, tune: config_lib.Tune, params: Any
) -> Any:
  """A tree of bools: which arrays training leaves as they are."""
  return jax.tree.map(
    lambda by_pattern, is_tuned: by_pattern or not is_tuned,
    matching(optimizer.frozen, params),
    _tuned(tune, params),
  )


def _tuned(tune: config_lib.Tune, params: Any) -> Any:
  """A tree of bools: which arrays the method of tuning is about."""
  if tune.method == 'full':
    return jax.tree.map(lambda _: True, params)
  if tune.method == 'head':
    # A tied head is the table of tokens.
    heads = (CLASSES, 'head', 'token')
    head = next(name for name in heads if name in params)
    return matching(tune.pattern or f'^({head}|decoder_norm)/', params)

  def is_added(path, _):
    """Whether no base has it: of a leaf, what is not the matrix beside it."""
    if path[0].key == CLASSES:
      return True
    parts = [key for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return bool(parts) and parts[0].name != 'base'

  return jax.tree_util.tree_map_with_path(is_added, params)


def trained(config: config_lib.Config, params: Any) -> Any:
  """The parameters that are not frozen.

  A MaskedNode, which holds no array, stands in the place of a frozen one.
  """
  return _masked(frozen(config.optimizer, config.tune, params), params)


def own(tune: config_lib.Tune, params: Any) -> Any:
  """The parameters that are not those of the run that is tuned.

  As `trained`, but for what `optimizer.frozen` says; all, if none is tuned.
  """
  is_base = jax.tree.map(lambda is_tuned: not is_tuned, _tuned(tune, params))
  return _masked(is_base, params)


def _masked(is_left_out: Any, params: Any) -> Any:
  return jax.tree.map(
    lambda leaves_out, leaf: optax.MaskedNode() if leaves_out else leaf,
    is_left_out,
    params,
  )


def merged(trained_params: Any, params: Any) -> Any:
  """`params` with the values of `trained_params`, the frozen ones as before."""
  return jax.tree.map(
    lambda new, old: old if is_masked(new) else new,
    trained_params,
    params,
    is_leaf=is_masked,
  )


def is_masked(leaf: Any) -> bool:
  """Whether it stands in the place of an array that is left out."""
  return isinstance(leaf, optax.MaskedNode)


def to_float32(tree: Any) -> Any:
  """The same numbers in float32."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def distances(params: Any) -> Any:
  """How many layers down from the output each parameter is.

  A decoder lies above its encoder, and both above the layers of encoders of
  media. Layers count themselves, embeddings are one further down, and heads,
  with all that has a loss of its own, are at 0.

  Returns:
    A tree of ints, and of int[L] for the arrays of a stack, [L, ...].
  """
  sizes: dict[str, int] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if stack := _STACK.match(_parameter_path(path)):
      sizes[stack[1]] = leaf.shape[0]
  decoder = sizes['decoder']
  text = decoder + sizes.get('encoder', 0)
  above = {'decoder': 0, 'encoder': decoder}

  def one(path, _):
    name = _parameter_path(path)
    if stack := _STACK.match(name):
      size = sizes[stack[1]]
      return above.get(stack[1], text) + size - np.arange(size)
    if media := _BELOW_MEDIA.match(name):
      return text + sizes.get(media[1], 0) + 1
    if _BELOW_TEXT.match(name):
      return text + 1
    return decoder if _BELOW_DECODER.match(name) else 0

  return jax.tree_util.tree_map_with_path(one, params)


@dataclasses.dataclass(frozen=True)
class MatrixDims:
  """The dims of a parameter that holds matrices.

  Attributes:
    stack: over which there are several matrices: layers, experts.
    inputs: contracted with the input.
    outputs: of the output.
  """

  stack: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


def matrix_dims(path: str, num_dims: int) -> MatrixDims:
  """The dims of a matrix, an expert's matrix or a convolution."""
  begin = ('/layers/' in path) + (kind(path) == 'expert')
  split = begin + (2 if _TWO_INPUT_DIMS.search(path) else 1)
  dims = tuple(range(num_dims))
  return MatrixDims(dims[:begin], dims[begin:split], dims[split:])


def map_matrices(function: Any, pattern: str, params: Any) -> Any:
  """`function(MatrixDims)` for what a pattern matches, None for the rest."""
  return jax.tree_util.tree_map_with_path(
    lambda path, is_matched, leaf: (
      function(matrix_dims(_parameter_path(path), leaf.ndim))
      if is_matched
      else None
    ),
    matching(pattern, params),
    params,
  )


def mirrored(
  tree: Any, params: Any, values: Any, default: Any, *, same_shape: bool
) -> Any:
  """For each leaf of a state, the value of the parameter that it mirrors.

  A leaf mirrors the parameter with whose path its own ends, as moments,
  averages and masks do; of several the one with the longest path, since the
  path of one parameter can be the end of another's.

  Args:
    tree: the state, which may hold the parameters themselves.
    params: the parameters.
    values: a value for each of them.
    default: of leaves that mirror none.
    same_shape: leaves of another shape than the parameter's mirror none.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  known = {
    path: (leaf.shape, value)
    for (path, leaf), value in zip(flat, jax.tree.leaves(values), strict=True)
  }

  def one(path, leaf):
    end = _mirrored_path(path, known)
    if end is None or (same_shape and known[end][0] != leaf.shape):
      return default
    return known[end][1]

  return jax.tree_util.tree_map_with_path(one, tree)


def like_params(mesh: Mesh, tree: Any, params: Any, shardings: Any) -> Any:
  """Shardings of what mirrors the parameters: moments, averages, masks.

  What has the shape of the parameter that it mirrors lies like it; all else
  is replicated.
  """
  replicated = NamedSharding(mesh, PartitionSpec())
  return mirrored(tree, params, shardings, replicated, same_shape=True)


def _mirrored_path(
  path: tuple[Any, ...], params: Container[tuple[Any, ...]]
) -> tuple[Any, ...] | None:
  ends = (path[i:] for i in range(len(path)))
  return next((end for end in ends if end in params), None)
