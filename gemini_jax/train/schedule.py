"""The learning rate at each step."""

from collections.abc import Callable, Mapping
from typing import Any

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
    'cosine': lambda: _cosine(config, after),
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


def _cosine(config: config_lib.Optimizer, num_steps: int) -> Schedule:
  """Half a cosine, again and again."""
  length = -(-num_steps // config.cycles)
  fall = optax.cosine_decay_schedule(config.peak, length, config.final_scale)
  # The step after the last, if there is one, stays in the last cycle.
  last = config.cycles - 1
  return lambda step: fall(step - length * jnp.minimum(step // length, last))


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
