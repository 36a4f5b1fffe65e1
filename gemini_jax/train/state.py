"""Everything that training changes."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.weights import tuning


@flax.struct.dataclass
class TrainState:
  """Everything that training changes.

  Attributes:
    step: int32, updates made.
    params: the parameters.
    opt_state: of the optimizer.
    extra: the states of the extensions that are on, by name; see `adapt/`.
  """

  step: Any
  params: Any
  opt_state: Any
  extra: dict[str, Any]


def evaluation_params(config: config_lib.Config, state: TrainState) -> Any:
  """The parameters to evaluate and to generate with."""
  params = optimizer_lib.evaluation_params(state.params, state.opt_state)
  return enabled.extensions(config).evaluation_params(state, params)


def abstract_state(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  mesh: Mesh,
) -> TrainState:
  """Shapes, types and shardings of the state; nothing is computed.

  Raises:
    ConfigError: an axis of the mesh does not divide a parameter.
  """
  params = tuning.abstract_params(config, model, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)

  def placed(init):
    tree = jax.eval_shape(init, params)
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      tree,
      parameter_groups.like_params(mesh, tree, params, shardings),
    )

  return TrainState(
    step=jax.ShapeDtypeStruct(
      (), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec())
    ),
    params=params,
    opt_state=placed(optimizer.init),
    extra=placed(
      lambda params: enabled.extensions(config).init(
        params, optimizer.init(params)
      )
    ),
  )


def init_state(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: TrainState,
) -> TrainState:
  """A fresh state, made on the devices where it belongs, from the seed."""
  init = functools.partial(fresh_state, config, model, optimizer)
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(init, out_shardings=where)(jax.random.key(config.train.seed))


def fresh_state(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  key: jax.Array,
) -> TrainState:
  """The state before the first update."""
  params = nn.meta.unbox(gemini.init_params(model, key))
  params = tuning.wrapped(config.tune, params, key)
  opt_state = optimizer.init(params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=opt_state,
    extra=enabled.extensions(config).init(params, opt_state),
  )


def state_from_params(
  config: config_lib.Config,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: TrainState,
  params: Any,
) -> TrainState:
  """A fresh state around given parameters, which are not copied."""
  params = jax.tree.map(
    lambda leaf, shape: leaf.astype(shape.dtype), params, abstract.params
  )

  def rest(params):
    opt_state = optimizer.init(params)
    extra = enabled.extensions(config).init(params, opt_state)
    return jnp.zeros((), jnp.int32), opt_state, extra

  where = jax.tree.map(
    lambda leaf: leaf.sharding,
    (abstract.step, abstract.opt_state, abstract.extra),
  )
  step, opt_state, extra = jax.jit(rest, out_shardings=where)(params)
  return TrainState(step, params, opt_state, extra)


def observe(
  config: config_lib.Config, state: TrainState, value: float | None
) -> TrainState:
  """The state after a validation, by whose loss extensions may change it."""
  if value is None:
    return state
  extensions = enabled.extensions(config)
  return extensions.after_validation(state, np.float32(value))


def saved(config: config_lib.Config, state: TrainState) -> TrainState:
  """What a checkpoint holds: not the parameters of the base of a tuned run."""
  params = parameter_groups.own(config.tune, state.params)
  return dataclasses.replace(state, params=params)


def check_patterns(config: config_lib.Config, params: Any, *, log: bool = True):
  """Sees that what the config chooses parameters by matches some; logs them.

  Raises:
    ConfigError: a pattern matches no parameter, or all would be frozen; or an
      extension cannot work on what it matches.
  """
  extensions = enabled.extensions(config)
  parameter_groups.check(
    [
      *optimizer_lib.selections(config.optimizer),
      *extensions.selections(),
    ],
    params,
    log=log,
  )
  extensions.check(params)
