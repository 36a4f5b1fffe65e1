"""A run that grows at a step: its parts, and the state between them.

The run trains the smaller model up to `growth.at_step`, saves it, and goes on
from that checkpoint with the larger one, whether it was interrupted there or
not. The two parts have a program each; nothing else compiles again.
"""

import logging
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.adapt import enabled
from gemini_jax.models import parameter_groups
from gemini_jax.train import state as state_lib
from gemini_jax.weights import surgery


class Smaller(NamedTuple):
  """The part of a run before it grows: its config and its state's shapes."""

  config: config_lib.Config
  abstract: state_lib.TrainState


def parts(
  config: config_lib.Config, workdir: str | os.PathLike
) -> tuple[bool, ...]:
  """Whether the run has grown, of each of its parts that are left to train."""
  growth = config.growth
  if not growth.at_step:
    return (True,)
  checkpoints = run_lib.open_checkpoints(config, pathlib.Path(workdir))
  step = checkpoints.newest_whole()
  if step is None or step < growth.at_step:
    return (False, True)
  # The evaluation of the last step before is still to be done.
  due = step == growth.at_step and checkpoints.manifest(step).get('due', False)
  return (False, True) if due else (True,)


def last_step(config: config_lib.Config, is_grown: bool) -> int:
  """The updates after which a part of the run ends."""
  return config.train.num_steps if is_grown else config.growth.at_step


def grown_params(
  params: Any,
  before: config_lib.Model,
  config: config_lib.Config,
  abstract: Any,
) -> Any:
  """Parameters of the model of `config`, of those of a smaller one.

  Args:
    params: plain arrays.
    before: the smaller model.
    config: of the run that goes on.
    abstract: shapes and shardings of its parameters.
  """
  expansion = surgery.Expansion(
    before, config.model, config.growth, config.train.seed
  )
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(expansion.tree, out_shardings=where)(params)


def grown_state(
  state: state_lib.TrainState,
  before: config_lib.Config,
  config: config_lib.Config,
  abstract: state_lib.TrainState,
) -> state_lib.TrainState:
  """The state of the larger model after the same updates.

  Moments follow `growth.moments`. The moving average grows as parameters do;
  an extension whose state has a size of the model in it begins anew.

  Args:
    state: of the smaller model.
    before: its config.
    config: that of the larger one.
    abstract: shapes and shardings of the larger model's state.
  """
  expansion = surgery.Expansion(
    before.model, config.model, config.growth, config.train.seed
  )
  moments = {'copy': expansion.copied, 'reset': expansion.zeros}
  extensions = enabled.extensions(config)
  begun = {
    name
    for name, own in abstract.extra.items()
    if name != 'ema' and _shapes(own) != _shapes(state.extra.get(name))
  }
  for name in sorted(begun):
    logging.info('extension %s begins anew where the run grows', name)

  def grow(state):
    params = expansion.tree(state.params)
    rest = {k: v for k, v in state.extra.items() if k not in begun}
    if 'ema' in rest:
      rest['ema'] = _mapped(expansion.values, rest['ema'], state.params)
    if begun:
      fresh = extensions.init(params)
      rest |= {name: fresh[name] for name in begun}
    return state_lib.TrainState(
      step=state.step,
      params=params,
      opt_state=_mapped(
        moments[config.growth.moments], state.opt_state, state.params
      ),
      extra={name: rest[name] for name in abstract.extra},
    )

  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  new = jax.jit(grow, out_shardings=where)(state)
  sizes = [
    sum(leaf.size for leaf in jax.tree.leaves(s.params)) for s in (state, new)
  ]
  logging.info(
    'step %d: the model grows from %s to %s parameters',
    *(config.growth.at_step, f'{sizes[0]:,}', f'{sizes[1]:,}'),
  )
  return new


def _mapped(function: Any, tree: Any, params: Any) -> Any:
  """`function(path, leaf)` of what mirrors a parameter; the rest as it is."""
  names = jax.tree_util.tree_map_with_path(
    lambda path, _: surgery.name_of(path), params
  )
  mirrored = parameter_groups.mirrored(
    tree, params, names, default='', same_shape=True
  )
  return jax.tree.map(
    lambda name, leaf: function(name, leaf) if name else leaf, mirrored, tree
  )


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: (jnp.shape(leaf), leaf.dtype), tree)
