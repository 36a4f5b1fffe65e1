"""A training state of a checkpoint, whatever extensions are on now.

Arrays of a checkpoint are named by their paths in the saved state, such as
`params/head/kernel` and `extra/ema/head/kernel`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled
from gemini_jax.checkpoint import checkpointer, storage
from gemini_jax.train import state as state_lib


def restore(
  checkpoints: checkpointer.Checkpointer,
  config: config_lib.Config,
  abstract: state_lib.TrainState,
  step: int | None = None,
  *,
  set_aside: bool = True,
) -> checkpointer.Restored | None:
  """The newest whole checkpoint, or that of `step`; None if there is none.

  An extension that the checkpoint does not have begins now, and the log says
  so; one that is off now is left out, and the log says that too.

  Args:
    checkpoints: to restore from.
    config: of the run that goes on.
    abstract: shapes and shardings of its state.
    step: only this one.
    set_aside: renames damaged checkpoints, see `Checkpointer.restore`.

  Raises:
    MismatchError: parameters or state of the optimizer are others.
    DamageError: all checkpoints are damaged.
  """
  select = lambda saved: _select(saved, config, abstract)[0]
  restored = checkpoints.restore_arrays(select, step, set_aside=set_aside)
  if restored is None:
    return None
  saved = restored.manifest['arrays']
  _, names, begun = _select(saved, config, abstract)
  for name in begun:
    logging.info(
      'extension %s begins at step %d: %s has none of it',
      name,
      restored.step,
      checkpoints.path(restored.step),
    )
  for name in sorted(_extensions_of(saved, config) - set(abstract.extra)):
    logging.info(
      'extension %s is off now: what %s has of it is not used',
      name,
      checkpoints.path(restored.step),
    )
  arrays = restored.state
  state = dataclasses.replace(
    abstract,
    extra={
      name: own for name, own in abstract.extra.items() if name not in begun
    },
  )
  state = jax.tree_util.tree_map_with_path(
    lambda path, _: arrays[names[_name(path)]], state
  )
  if begun:
    state = _with_fresh(state, config, abstract, begun)
  return dataclasses.replace(restored, state=state)


def _select(
  saved: Mapping[str, str],
  config: config_lib.Config,
  abstract: state_lib.TrainState,
) -> tuple[dict[str, Any], dict[str, str], set[str]]:
  """What to read: shapes by saved name, saved names by name, what begins.

  Raises:
    MismatchError: there is an array that no extension has and nothing wants.
  """
  saved_names = _today(saved, config)
  wanted = {
    _name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]
  }
  begun = set()
  for name, own in abstract.extra.items():
    for path, shape in storage.shapes({'extra': {name: own}}).items():
      before = saved.get(saved_names.get(path, ''), '')
      if before != shape and not storage.is_convertible(before, shape):
        begun.add(name)
  names, arrays = {}, {}
  for path, leaf in wanted.items():
    if not path.startswith(tuple(f'extra/{name}/' for name in begun)):
      names[path] = saved_names.get(path, path)
      arrays[names[path]] = leaf
  for path, name in saved_names.items():
    if path not in wanted and not path.startswith('extra/'):
      raise checkpointer.MismatchError(
        f'the checkpoint holds another state of training: {name} is '
        f'{saved[name]} there and absent in this config'
      )
  return arrays, names, begun


def _today(
  saved: Mapping[str, str], config: config_lib.Config
) -> dict[str, str]:
  """The names of saved arrays, by those that they have in this version."""
  names = {}
  for name in saved:
    path = name
    for earlier, now in enabled.earlier_names(config).items():
      if name.startswith(earlier):
        path = now + name.removeprefix(earlier)
    names[path] = name
  return names


def _extensions_of(
  saved: Mapping[str, str], config: config_lib.Config
) -> set[str]:
  paths = _today(saved, config)
  return {p.split('/')[1] for p in paths if p.startswith('extra/')}


def _with_fresh(
  state: state_lib.TrainState,
  config: config_lib.Config,
  abstract: state_lib.TrainState,
  begun: set[str],
) -> state_lib.TrainState:
  """The state with what the extensions `begun` have beside its parameters."""
  extensions = enabled.extensions(config)

  def init(params, opt_state):
    extra = extensions.init(params, opt_state)
    return {name: extra[name] for name in begun}

  where = jax.tree.map(
    lambda leaf: leaf.sharding,
    {name: abstract.extra[name] for name in begun},
  )
  fresh = jax.jit(init, out_shardings=where)(state.params, state.opt_state)
  return dataclasses.replace(state, extra=state.extra | fresh)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
