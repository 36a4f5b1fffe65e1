"""Which parameters: by path, frozen or trained, and what mirrors them."""

import difflib
import logging
import re
from collections.abc import Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import config as config_lib


def paths_matching(pattern: str, params: Any) -> Any:
  """A tree of bools: which parameters' paths the expression finds."""
  expression = re.compile(pattern)

  def one(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return bool(pattern and expression.search(name))

  return jax.tree_util.tree_map_with_path(one, params)


def check_patterns(
  config: config_lib.Optimizer, params: Any, *, tell: bool = True
):
  """Sees that patterns match parameters; logs how many, with `tell`.

  Raises:
    ConfigError: a pattern matches no parameter, or all would be frozen.
  """
  sizes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.size
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  for name in ('no_decay', 'frozen'):
    pattern = getattr(config, name)
    if not pattern:
      continue
    matches = [path for path in sizes if re.search(pattern, path)]
    if not matches:
      raise config_lib.ConfigError(
        f'optimizer.{name}={pattern!r} matches the path of no parameter; the '
        f"nearest are {', '.join(_nearest(pattern, sizes))}; '' is for none"
      )
    config_lib.check(
      name != 'frozen' or len(matches) < len(sizes),
      f'optimizer.frozen={pattern!r} matches every parameter: none would be '
      'trained',
    )
    if not tell:
      continue
    logging.info(
      'optimizer.%s=%r: %d of %d tensors, %s parameters',
      name,
      pattern,
      len(matches),
      len(sizes),
      f'{sum(sizes[path] for path in matches):,}',
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


def trained(config: config_lib.Optimizer, params: Any) -> Any:
  """The parameters that are not frozen.

  A MaskedNode, which holds no array, stands in the place of a frozen one.
  """
  return jax.tree.map(
    lambda is_frozen, leaf: optax.MaskedNode() if is_frozen else leaf,
    paths_matching(config.frozen, params),
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


def like_params(mesh: Mesh, tree: Any, params: Any, shardings: Any) -> Any:
  """Shardings of what mirrors the parameters: moments, averages, masks.

  A leaf whose path ends with a parameter's path and that has its shape lies
  like that parameter; every other leaf is replicated.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  known = {
    path: (leaf.shape, where)
    for (path, leaf), where in zip(
      flat, jax.tree.leaves(shardings), strict=True
    )
  }

  def one(path, leaf):
    mirrored = param_path(path, known)
    if mirrored is not None and known[mirrored][0] == leaf.shape:
      return known[mirrored][1]
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(one, tree)


def param_path(
  path: tuple[Any, ...], params: Container[tuple[Any, ...]]
) -> tuple[Any, ...] | None:
  """The path of the parameter that a leaf of a state is, or mirrors.

  The longest end of the leaf's path that is among the paths `params`: that of
  one parameter can be the end of another's. None: it mirrors no parameter.
  """
  ends = (path[i:] for i in range(len(path)))
  return next((end for end in ends if end in params), None)
