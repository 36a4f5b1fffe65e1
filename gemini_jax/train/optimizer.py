"""Optax chains from a config: rules, schedules, decay, freezing, plateau."""

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gemini_jax import config as config_lib
from gemini_jax.config import schema
from gemini_jax.parallel import sharding

Schedule = Callable[[Any], Any]


def make_schedule(
  config: config_lib.Optimizer, num_steps: int
) -> optax.Schedule:
  """Learning rate at each step: linear warm-up, then the named shape."""
  peak, warmup = config.peak, config.warmup_steps
  final = peak * config.final_scale
  after = max(1, num_steps - warmup)
  decay = max(1, round(config.decay_share * after))
  name = 'constant' if config.name == 'schedule_free' else config.schedule
  shapes: dict[str, Callable[[], Schedule]] = {
    'constant': lambda: optax.constant_schedule(peak),
    'cosine': lambda: optax.cosine_decay_schedule(
      peak, after, config.final_scale
    ),
    'wsd': lambda: optax.join_schedules(
      [
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, final, decay),
      ],
      [after - decay],
    ),
    'inverse_sqrt': lambda: (
      lambda step: peak * (1 + jnp.maximum(step, 0) / max(1, warmup)) ** -0.5
    ),
  }
  shape = shapes[name]()
  if not warmup:
    return shape
  rise = optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1)
  return optax.join_schedules([rise, shape], [warmup])


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
    lambda new, old: old if _is_masked(new) else new,
    trained_params,
    params,
    is_leaf=_is_masked,
  )


def apply_updates(params: Any, updates: Any) -> Any:
  """The parameters after float32 updates; each sum is rounded once."""
  return jax.tree.map(
    lambda update, param: (
      param if _is_masked(update) else (param + update).astype(param.dtype)
    ),
    updates,
    params,
    is_leaf=_is_masked,
  )


def to_float32(tree: Any) -> Any:
  """The same numbers in float32."""
  return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _is_masked(leaf: Any) -> bool:
  return isinstance(leaf, optax.MaskedNode)


def make_optimizer(
  config: config_lib.Optimizer, num_steps: int
) -> optax.GradientTransformationExtraArgs:
  """The update rule of a config; `update` wants the loss as `value=`.

  Its state and its updates are float32, in whatever type parameters are.
  """
  schedule = make_schedule(config, num_steps)
  decayed = lambda params: jax.tree.map(
    lambda skip: not skip, paths_matching(config.no_decay, params)
  )
  with_decay = lambda *rule: optax.chain(
    *rule,
    optax.add_decayed_weights(config.weight_decay, decayed),
    optax.scale_by_learning_rate(schedule),
  )
  b1, b2, eps = config.b1, config.b2, config.eps
  rules: dict[str, Callable[[], Any]] = {
    'adamw': lambda: with_decay(optax.scale_by_adam(b1, b2, eps)),
    'lion': lambda: with_decay(optax.scale_by_lion(b1, b2)),
    'adafactor': lambda: with_decay(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
    'muon': lambda: optax.contrib.muon(
      schedule,
      weight_decay=config.weight_decay,
      weight_decay_mask=decayed,
      adam_b1=b1,
      adam_b2=b2,
      # Updates as large as Adam's, so that one learning rate serves both
      # (Liu et al. 2025, Moonlight, section 2.2).
      consistent_rms=0.2,
      muon_weight_dimension_numbers=matrix_dims,
    ),
    'prodigy': lambda: decay_beside(
      optax.contrib.prodigy(
        schedule,
        (b1, b2),
        eps=eps,
        safeguard_warmup=config.warmup_steps > 0,
      ),
      lambda state: (
        config.weight_decay * state.estim_lr * schedule(state.count)
      ),
      decayed,
    ),
    'momo_adam': lambda: decay_beside(
      optax.contrib.momo_adam(schedule, b1, b2, eps),
      lambda state: config.weight_decay * schedule(state.count),
      decayed,
    ),
    'schedule_free': lambda: optax.contrib.schedule_free(
      with_decay(
        optax.scale_by_rms(
          decay=b2, eps=eps, eps_in_sqrt=False, bias_correction=True
        )
      ),
      schedule,
      b1=b1,
    ),
  }
  chain = [rules[config.name]()]
  if config.clip_norm:
    chain.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.plateau_patience:
    chain.append(scale_on_plateau(config))
  optimizer = optax.chain(*chain)
  if config.frozen:
    # set_to_zero, since optax.masked would pass the rest through unchanged.
    optimizer = optax.partition(
      {False: optimizer, True: optax.set_to_zero()},
      lambda params: paths_matching(config.frozen, params),
    )
  return in_float32(optimizer)


def in_float32(
  rule: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """`rule` of float32 gradients and parameters, so that its state is too."""
  rule = optax.with_extra_args_support(rule)

  def update(updates, state, params=None, **extra):
    return rule.update(to_float32(updates), state, to_float32(params), **extra)

  return optax.GradientTransformationExtraArgs(
    lambda params: rule.init(to_float32(params)), update
  )


def matrix_dims(params: Any) -> Any:
  """Muon's view of each parameter; None, for Adam, where it is no matrix.

  Kernels of a stack are [layers, in dims, out dims]; only the output
  projection of attention contracts two dims (heads, head width). Those of
  experts are [layers, experts, in, out].
  """

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if '/layers/' not in name or not name.endswith('kernel'):
      return None
    begin = 2 if '/expert_' in name else 1
    split = 3 if name.endswith('output/kernel') else begin + 1
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(begin, split)), tuple(range(split, leaf.ndim))
    )

  return jax.tree_util.tree_map_with_path(one, params)


def decay_beside(
  rule: optax.GradientTransformationExtraArgs,
  rate: Callable[[Any], Any],
  decayed: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
  """`rule` with decoupled weight decay at `rate(its state)`, masked."""

  def update(updates, state, params=None, **extra):
    new_updates, new_state = rule.update(updates, state, params, **extra)
    shrink = rate(state)
    new_updates = jax.tree.map(
      lambda decays, update, param: (
        update - (shrink * param).astype(update.dtype) if decays else update
      ),
      decayed(params),
      new_updates,
      params,
    )
    return new_updates, new_state

  return optax.GradientTransformationExtraArgs(rule.init, update)


def _plateau(config: config_lib.Optimizer):
  return optax.contrib.reduce_on_plateau(
    factor=config.plateau_factor, patience=config.plateau_patience
  )


def scale_on_plateau(
  config: config_lib.Optimizer,
) -> optax.GradientTransformationExtraArgs:
  """Scales updates by what `observe_validation` has decided so far."""

  def update(updates, state, params=None, **extra):
    del params, extra
    scale = state.scale
    return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

  return optax.GradientTransformationExtraArgs(_plateau(config).init, update)


def observe_validation(
  config: config_lib.Optimizer, opt_state: Any, loss: jax.typing.ArrayLike
) -> Any:
  """The optimizer's state after one more validation loss."""
  rule = _plateau(config)
  kind = optax.contrib.ReduceLROnPlateauState

  def one(state):
    if not isinstance(state, kind):
      return state
    return rule.update({}, state, value=loss)[1]

  return jax.tree.map(
    one, opt_state, is_leaf=lambda state: isinstance(state, kind)
  )


def find_state(opt_state: Any, kind: Any) -> Any | None:
  """The first state of this kind inside a chain's state, or None."""
  is_kind = lambda state: isinstance(state, kind)
  found = filter(is_kind, jax.tree.leaves(opt_state, is_leaf=is_kind))
  return next(found, None)


def evaluation_params(params: Any, opt_state: Any) -> Any:
  """What to evaluate: schedule-free's average, otherwise the parameters."""
  state = find_state(opt_state, optax.contrib.ScheduleFreeState)
  if state is None:
    return params
  # Frozen parameters, which the rule does not see, are masked in its state.
  seen = jax.tree.map(
    lambda z, param: z if _is_masked(z) else param,
    state.z,
    params,
    is_leaf=_is_masked,
  )
  averaged = optax.contrib.schedule_free_eval_params(state, seen)
  return merged(averaged, params)


def learning_rate(
  config: config_lib.Optimizer, num_steps: int, opt_state: Any, step: jax.Array
) -> jax.Array:
  """The rate in force, adapted by plateau or by Prodigy's estimate."""
  rate = jnp.asarray(make_schedule(config, num_steps)(step), jnp.float32)
  plateau = find_state(opt_state, optax.contrib.ReduceLROnPlateauState)
  prodigy = find_state(opt_state, optax.contrib.ProdigyState)
  if plateau is not None:
    rate = rate * plateau.scale
  if prodigy is not None:
    rate = rate * prodigy.estim_lr
  return rate


def course_change(
  config: config_lib.Config, before: Mapping[str, Any], step: int
) -> str:
  """A line where the learning rate of the next step is not the one planned.

  Args:
    config: of the run that goes on.
    before: the config, as JSON, of the run that wrote the checkpoint.
    step: of the checkpoint.
  """
  try:
    optimizer = schema.convert(
      before['optimizer'], config_lib.Optimizer, 'optimizer'
    )
    train = schema.convert(
      {'num_steps': before['train']['num_steps']}, config_lib.Train, 'train'
    )
  except (config_lib.ConfigError, KeyError):
    # Written by a version with other fields.
    return ''
  with sharding.on_one_device():
    rate, planned = (
      f'{float(np.asarray(schedule(step))):.6g}'
      for schedule in (
        make_schedule(config.optimizer, config.train.num_steps),
        make_schedule(optimizer, train.num_steps),
      )
    )
  if rate == planned:
    return ''
  return (
    f'the learning rate at step {step + 1:,} is {rate}; the run before would '
    f'have had {planned}\n'
  )
