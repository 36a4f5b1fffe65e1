"""Gates on heads, channels and layers, by which a run removes some of them."""

from typing import Literal

from gemini_jax.config import schema


@schema.section('gates')
class Gates:
  """Which units a run removes while it trains; `commands/shrink` cuts them out.

  Every layer loses equally many heads and channels, so that what is left is a
  model of smaller sizes.
  """

  # l0: gates are learned with the model, by the hard-concrete distribution
  # (Louizos et al. 2018) and multipliers that hold the shares below (Xia et al.
  # 2024). taylor: units whose removal would change the loss least, to first
  # order, are removed one after another (Molchanov et al. 2017).
  method: Literal['none', 'l0', 'taylor'] = 'none'
  # Shares that are removed in the end: of the heads, within each group of those
  # that share keys and values; of such groups as a whole; of the channels of
  # feed-forward layers; and of all layers. Rounded down.
  heads: schema.PartialShare = 0.0
  kv_heads: schema.PartialShare = 0.0
  channels: schema.PartialShare = 0.0
  layers: schema.PartialShare = 0.0
  # Shares of the steps at which removal begins and ends. What is left then
  # stays, and its gates with it, while the parameters train on.
  begin: schema.PartialShare = 0.1
  end: schema.PositiveShare = 0.7
  # Of the gates of l0 and of their multipliers.
  learning_rate: schema.Positive = 0.1
  # Decay rate of the mean of the importance by taylor.
  decay: schema.PartialShare = 0.95

  def __post_init__(self):
    shares = (self.heads, self.kv_heads, self.channels, self.layers)
    schema.check(
      (self.method != 'none') == any(shares),
      f'gates.method={self.method!r} goes with shares above 0 of gates.heads, '
      'kv_heads, channels or layers, and none with 0 of all',
    )
    schema.check(
      self.begin < self.end,
      f'gates.begin={self.begin} must be below gates.end={self.end}',
    )


def check(gates: Gates, model, method: str):
  """Sees that a model has what is to be removed.

  Args:
    gates: the section.
    model: section of the config.
    method: of tuning.

  Raises:
    ConfigError: it has not.
  """
  if gates.method == 'none':
    return
  name = f'gates.method={gates.method!r}'
  schema.check(
    method == 'full',
    f'{name} changes the parameters that tune.method={method!r} keeps',
  )
  schema.check(
    not model.num_experts,
    f'{name} has no one feed-forward layer with model.num_experts='
    f'{model.num_experts}',
  )
  schema.check(
    not gates.kv_heads or model.num_heads > model.kv_heads,
    f'gates.kv_heads={gates.kv_heads} needs model.num_kv_heads below '
    f'model.num_heads={model.num_heads}; here heads have keys of their own, '
    'and gates.heads counts them',
  )
  period = len(model.attention_pattern)
  schema.check(
    not gates.layers or period == 1,
    f'gates.layers={gates.layers} needs layers that are alike, not the '
    f'{period} kinds of model.attention_pattern',
  )
  layers = (model.num_layers, model.encoder_layers)
  for field, sizes in {
    'heads': (num_inside(model),),
    'kv_heads': (model.kv_heads,),
    'channels': (model.mlp_width,),
    'layers': tuple(size for size in layers if size),
  }.items():
    share = getattr(gates, field)
    schema.check(
      not share or any(int(share * size) for size in sizes),
      f'gates.{field}={share} of {max(sizes)} removes none',
    )


def num_inside(model) -> int:
  """Of how many heads `gates.heads` is a share."""
  groups = model.num_heads // model.kv_heads
  return groups if groups > 1 else model.num_heads
