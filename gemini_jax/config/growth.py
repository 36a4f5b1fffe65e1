"""A model that becomes larger, between two runs or at a step of one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gemini_jax.config import schema

# Fields of a model that may grow; what sections and experiments call sizes.
SIZES = (
  'width',
  'num_layers',
  'num_encoder_layers',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'mlp_dim',
)


@schema.section('growth')
class Growth:
  """How parameters of a smaller model become those of `model`.

  Sizes that may differ: layers, heads, the feed-forward width, and the width
  of the residual stream by a whole factor. Units are copied, and what reads a
  copied unit is divided among its copies, so that the model computes the same
  (Net2Net, Chen et al. 2016).
  """

  # none: train.init_from must have the sizes of `model`. preserve: new layers
  # begin as the identity, by zeros where they write to the residual stream, so
  # the loss does not change. copy: new layers are copies that count (Gong et
  # al. 2019), and the loss jumps.
  method: Literal['none', 'preserve', 'copy'] = 'none'
  # Layers A, B become A, B, A, B or A, A, B, B.
  order: Literal['stack', 'interleave'] = 'stack'
  # How unevenly a weight is divided among copies of what it reads; at 0 these
  # would have equal gradients, and stay equal.
  split_noise: schema.PartialShare = 0.2
  # Updates after which this run grows to the sizes of `model`. Until then it
  # has those below. 0: it has them from the start.
  at_step: schema.StepsOrZero = 0
  # What becomes of the optimizer's moments at that step: each unit's are copied
  # with it, and a new layer's are those of the layer it is a copy of; or zeros.
  moments: Literal['copy', 'reset'] = 'copy'
  # Sizes before at_step; None: those of `model`.
  width: schema.Size | None = None
  num_layers: schema.Layers | None = None
  num_encoder_layers: schema.Layers | None = None
  num_heads: schema.Size | None = None
  num_kv_heads: schema.Size | None = None
  mlp_dim: schema.Size | None = None

  def __post_init__(self):
    schema.check(
      not self.at_step or self.method != 'none',
      f'growth.at_step={self.at_step} needs growth.method preserve or copy',
    )
    given = self._given()
    schema.check(
      bool(given) or not self.at_step,
      f'growth.at_step={self.at_step} needs the sizes before it, such as '
      'growth.num_layers',
    )
    schema.check(
      bool(self.at_step) or not given,
      f'growth.{next(iter(given), "")} is a size before growth.at_step, which '
      'is 0',
    )

  def _given(self) -> dict[str, int]:
    values = {name: getattr(self, name, None) for name in SIZES}
    return {name: value for name, value in values.items() if value}

  def before(self, model: Any) -> Any:
    """The model that a run of `model` trains until `at_step`.

    Raises:
      ConfigError: a model cannot have those sizes.
    """
    return with_sizes(model, self._given())


def sizes(model: Any) -> dict[str, int | None]:
  """The sizes of a model, those that it leaves to others as well."""
  return {
    'width': model.width,
    'num_layers': model.num_layers,
    'num_encoder_layers': model.encoder_layers or None,
    'num_heads': model.num_heads,
    'num_kv_heads': model.kv_heads,
    'head_dim': model.head_width,
    'mlp_dim': model.mlp_width,
  }


def with_sizes(model: Any, sizes: Mapping[str, int | None]) -> Any:
  """A model of other sizes; what is not given stays as wide as it is."""
  fixed = {
    'num_kv_heads': model.kv_heads,
    'head_dim': model.head_width,
    'mlp_dim': model.mlp_width,
  }
  if model.encodes:
    fixed['num_encoder_layers'] = model.encoder_layers
  if model.num_kv_heads is None:
    # As many as there are heads.
    del fixed['num_kv_heads']
  return dataclasses.replace(model, **{**fixed, **sizes})


def check(growth: Growth, model: Any, num_steps: int, optimizer: str):
  """Sees that a run can grow as it says.

  Raises:
    ConfigError: it cannot.
  """
  if not growth.at_step:
    return
  schema.check(
    growth.at_step < num_steps,
    f'growth.at_step={growth.at_step} must be below train.num_steps='
    f'{num_steps}',
  )
  schema.check(
    optimizer in ('adamw', 'lion', 'muon'),
    f'growth.at_step={growth.at_step} needs optimizer.name adamw, lion or muon,'
    f' not {optimizer}: the state of others has more than moments',
  )
  check_sizes(growth, growth.before(model), model, 'growth')


def check_sizes(growth: Growth, before: Any, after: Any, where: str):
  """Sees that one model can become the other by growth.

  Args:
    growth: how.
    before: the smaller model.
    after: the larger one.
    where: what has the sizes of the smaller one, for messages.

  Raises:
    ConfigError: a size becomes smaller, or does not divide.
  """
  _check_not_smaller(before, after, where, 'growth makes no size smaller')
  schema.check(
    after.width % before.width == 0,
    f'{where}.width={before.width} must divide model.width={after.width}: '
    'norms over copied dims are the same for a whole factor alone',
  )
  schema.check(
    before.head_width == after.head_width,
    f'{where}: heads of width {before.head_width} cannot become heads of width '
    f'{after.head_width}; set model.head_dim={before.head_width}',
  )
  groups = [model.num_heads // model.kv_heads for model in (before, after)]
  schema.check(
    groups[0] <= groups[1],
    f'{where}: {groups[0]} query heads for each key/value head cannot become '
    f'{groups[1]}; raise model.num_heads={after.num_heads} or lower '
    f'model.num_kv_heads={after.kv_heads}',
  )
  period = len(after.attention_pattern)
  deeper = before.num_layers < after.num_layers or (
    before.encoder_layers < after.encoder_layers
  )
  schema.check(
    not deeper
    or period == 1
    or (growth.order == 'stack' and before.num_layers % period == 0),
    f'{where}.num_layers={before.num_layers} must be a multiple of the '
    f'{period} layers of model.attention_pattern, and growth.order stack: a '
    'copied layer must attend as it did',
  )
  plain_check(before, after, where)


def plain_check(before: Any, after: Any, where: str):
  """Refuses other widths of a model that is more than a text Transformer."""
  extras = {
    'num_experts': after.num_experts,
    'latent.dim': after.latent.dim,
    'contrast_dim': after.contrast_dim,
    'image, audio, video, series or num_numbers': len(after.kinds),
  }
  used = [f'model.{name}' for name, value in extras.items() if value]
  widths = ('width', 'num_heads', 'kv_heads', 'head_width', 'mlp_width')
  changed = [n for n in widths if getattr(before, n) != getattr(after, n)]
  schema.check(
    not (used and changed),
    f'{where}: {", ".join(used)} goes with another number of layers alone, not '
    f'with another {", ".join(changed)}',
  )


def _check_not_smaller(before: Any, after: Any, where: str, why: str):
  for name in (
    'width',
    'num_layers',
    'encoder_layers',
    'num_heads',
    'kv_heads',
    'mlp_width',
  ):
    old, new = getattr(before, name), getattr(after, name)
    schema.check(
      old <= new,
      f'{where}: {name} is {old} there and {new} in model; {why}',
    )
