"""One update, as a pure function of state and batch."""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import cross_entropy
from gemini_jax.models import gemini
from gemini_jax.objectives import losses
from gemini_jax.parallel import sharding
from gemini_jax.train import optimizer as optimizer_lib

# What the text decoder alone has, of the parameters of a Gemini.
_DECODER = ('decoder', 'decoder_norm', 'head', 'latent_embedding')


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
  shardings = sharding.param_shardings(mesh, boxed)
  params = nn.meta.unbox(boxed)
  opt_state = jax.eval_shape(optimizer.init, params)
  average = None
  if config.optimizer.ema_decay:
    average = jax.eval_shape(optimizer_lib.to_float32, params)
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
    opt_state=sharding.like_params(mesh, opt_state, params, shardings),
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


def train_step(
  state: TrainState,
  batch: batch_lib.Batch,
  index: jax.Array,
  *,
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update. Returns the new state and scalar metrics, still on device.

  A step whose loss or gradient is not finite changes nothing, and no later
  one does: batch `index` is applied only to the state after `index` updates.
  The state thus stays as it was until the host has looked.
  """
  key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
  state = with_new_decoder(
    state, config=config, model=model, optimizer=optimizer
  )
  loss_weights = losses.weights_at(config, state.step)
  grads, sums = accumulated_gradient(
    config, model, state.params, batch, key, loss_weights
  )
  weight = jnp.maximum(sums.weight, 1e-9)
  trained = functools.partial(optimizer_lib.trained, config.optimizer)
  grads = jax.tree.map(lambda grad: grad / weight.astype(grad.dtype), grads)
  objective = sums.objective / weight
  updates, opt_state = optimizer.update(
    grads, state.opt_state, trained(state.params), value=objective
  )
  metrics = {
    'loss': sums.loss / weight,
    'token_accuracy': sums.correct / weight,
    'grad_norm': optax.tree.norm(grads),
    'learning_rate': optimizer_lib.learning_rate(
      config.optimizer, config.train.num_steps, state.opt_state, state.step
    ),
    'tokens': sums.weight,
  }
  metrics |= losses.media_means(sums.terms)
  if config.model.latent.dim:
    metrics['kl'] = sums.terms['kl'] / sums.terms['sequences']
    metrics['kl_weight'] = loss_weights['kl']
  params = optimizer_lib.apply_updates(state.params, updates)
  ema = state.ema
  if ema is not None:
    # The average starts as a plain mean, so that it forgets the first values.
    decay = jnp.minimum(
      config.optimizer.ema_decay, (1 + state.step) / (10 + state.step)
    )
    average = optax.incremental_update(
      optimizer_lib.to_float32(trained(params)), trained(ema), 1 - decay
    )
    ema = optimizer_lib.merged(average, ema)
  applies = (
    jnp.isfinite(objective)
    & jnp.isfinite(metrics['grad_norm'])
    & (state.step == index)
  )
  new = TrainState(state.step + 1, params, opt_state, ema)
  new = jax.tree.map(lambda a, b: jnp.where(applies, a, b), new, state)
  return new, metrics | {'finite': applies}


def with_new_decoder(
  state: TrainState,
  *,
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
) -> TrainState:
  """The state with a fresh decoder at the one step where it is due.

  What the encoder has learned stays, in the tokens' table too; the optimizer
  forgets the old decoder (Li et al. 2019).
  """
  due = losses.decoder_reset(config.train.kl_annealing, config.train.num_steps)
  if not due or not config.model.latent.dim:
    return state
  params = {
    path for path, _ in jax.tree_util.tree_flatten_with_path(state.params)[0]
  }

  def is_replaced(path):
    mirrored = sharding.param_path(path, params)
    return mirrored is not None and mirrored[0].key in _DECODER

  def reset(state):
    key = jax.random.fold_in(jax.random.key(config.train.seed), due)
    return jax.tree_util.tree_map_with_path(
      lambda path, old, new: new if is_replaced(path) else old,
      state,
      fresh_state(config, model, optimizer, key),
    )

  return jax.lax.cond(state.step == due, reset, lambda state: state, state)


def jitted(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: TrainState,
) -> Any:
  """`train_step` to be compiled; a new state takes the place of the old."""
  where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(
    functools.partial(
      train_step, config=config, model=model, optimizer=optimizer
    ),
    donate_argnums=0,
    out_shardings=(where, None),
  )


def accumulated_gradient(
  config: config_lib.Config,
  model: gemini.Gemini,
  params: Any,
  batch: batch_lib.Batch,
  key: jax.Array,
  loss_weights: dict[str, Any],
) -> tuple[Any, cross_entropy.Sums]:
  """Gradient of the summed objective, and the sums, part after part.

  The gradient is float32: so are then its sums over tokens and parts. It has
  no array for a frozen parameter.
  """
  trained = optimizer_lib.to_float32(
    optimizer_lib.trained(config.optimizer, params)
  )

  def gradient(batch, key):
    def objective(trained):
      sums = losses.model_sums(
        model,
        optimizer_lib.merged(trained, params),
        batch,
        key=key,
        config=config.train,
        loss_weights=loss_weights,
      )
      return sums.objective, sums

    return jax.grad(objective, has_aux=True)(trained)

  parts = config.optimizer.accumulation_steps
  if parts == 1:
    return gradient(batch, key)

  def body(total, part):
    batch, index = part
    new = gradient(batch, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, new), None

  split_batch = split(batch, parts)
  first = jax.eval_shape(
    gradient, jax.tree.map(lambda leaf: leaf[0], split_batch), key
  )
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
  return jax.lax.scan(body, zeros, (split_batch, jnp.arange(parts)))[0]


def split(batch: batch_lib.Batch, parts: int) -> batch_lib.Batch:
  """A batch in parts, one after the other: [parts, B / parts, ...]."""
  return jax.tree.map(
    # Every part takes rows from every device: part is the inner dim.
    lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1),
    batch,
  )


def microbatches(
  config: config_lib.Config, batch: batch_lib.Batch, key: jax.Array
) -> Iterator[tuple[batch_lib.Batch, jax.Array]]:
  """What `accumulated_gradient` reads, part after part, with its randomness."""
  parts = config.optimizer.accumulation_steps
  if parts == 1:
    yield batch, key
    return
  split_batch = split(batch, parts)
  for index in range(parts):
    part = jax.tree.map(lambda leaf, index=index: leaf[index], split_batch)
    yield part, jax.random.fold_in(key, index)
