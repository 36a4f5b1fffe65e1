"""The flags of `commands/steered`."""

import dataclasses
import typing
from collections.abc import Mapping

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import comparison

FLAGS: dict[str, str | None] = {
  'workdirs': None,
  'judge': None,
  'out': None,
  'attribute': None,
  'values': None,
  'methods': 'ode,vector,best_of,gradient',
  'count': '200',
  'temperature': '0.5',
  'num_labels': str(config_lib.Generate.num_labels),
  'weight': str(config_lib.Generate.steer_weight),
  'checkpoint': 'latest',
  'seed': '0',
}
METHODS = typing.get_args(
  typing.get_type_hints(config_lib.Generate)['steer_method']
)


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
  """What the command line asks for; see the head of `steered`."""

  attribute: str
  values: tuple[str, ...]
  methods: tuple[str, ...]
  temperature: float
  num_labels: int
  weight: float

  @classmethod
  def from_flags(cls, values: Mapping[str, str]) -> 'Options':
    """From FLAGS as they were given.

    Raises:
      ConfigError: a value is not of its kind.
    """
    flags = comparison.Flags(values)
    number = 'a number of at least 0'
    labels = 'an integer of at least 2'
    return cls(
      **flags.common(),
      attribute=flags.one('attribute', str, 'the name of one', bool),
      values=flags.parts('values'),
      methods=flags.choice('methods', METHODS),
      temperature=flags.one(
        'temperature', float, number, comparison.is_temperature
      ),
      num_labels=flags.one('num_labels', int, labels, lambda n: n > 1),
      weight=flags.one('weight', float, number, comparison.is_temperature),
    )

  def sampling(
    self, run: run_lib.Run, value: str, method: str
  ) -> config_lib.Config:
    """The config to write with, towards a value."""
    return comparison.sampling(
      run.config,
      self.temperature,
      self.count,
      self.seed,
      steer=f'{self.attribute}={value}',
      steer_method=method,
      steer_weight=self.weight,
      num_labels=self.num_labels,
    )
