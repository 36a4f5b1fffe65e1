"""Everything that training changes."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import config as config_lib
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.parallel import sharding
from gemini_jax.train import optimizer as optimizer_lib


@flax.struct.dataclass
class TrainState:
  """Everything that training changes.

  Attributes:
    step: int32, updates made.
    params: the parameters.
    opt_state: of the optimizer.
    ema: moving average of the parameters, in float32, or None.
  """

  step: Any
  params: Any
  opt_state: Any
  ema: Any | None

  def evaluation_params(self) -> Any:
    """The parameters to evaluate and to generate with."""
    if self.ema is not None:
      return self.ema
    return optimizer_lib.evaluation_params(self.params, self.opt_state)


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
  boxed = jax.eval_shape(
    functools.partial(gemini.init_params, model), jax.random.key(0)
  )
  shardings = sharding.of_params(mesh, boxed)
  params = nn.meta.unbox(boxed)
  opt_state = jax.eval_shape(optimizer.init, params)
  average = None
  if config.optimizer.ema_decay:
    average = jax.eval_shape(parameter_groups.to_float32, params)
  replicated = NamedSharding(mesh, PartitionSpec())
  shapes = TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=params,
    opt_state=opt_state,
    ema=average,
  )
  where = TrainState(
    step=replicated,
    params=shardings,
    opt_state=parameter_groups.like_params(mesh, opt_state, params, shardings),
    ema=shardings if config.optimizer.ema_decay else None,
  )
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    where,
  )


def init_state(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: TrainState,
) -> TrainState:
  """A fresh state, born where it belongs; a function of the seed alone."""
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
  average = None
  if config.optimizer.ema_decay:
    # A copy, so that both can be donated.
    average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    ema=average,
  )


def check_patterns(config: config_lib.Config, params: Any, *, log: bool = True):
  """Sees that what the config chooses parameters by matches some; logs them.

  Raises:
    ConfigError: a pattern matches no parameter, or all would be frozen.
  """
  parameter_groups.check(
    optimizer_lib.selections(config.optimizer), params, log=log
  )
