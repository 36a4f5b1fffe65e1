"""The trials of a sweep: the file that describes them, and their configs."""

import dataclasses
import itertools
import json
import math
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.config import schema
from gemini_jax.train import run_report

# Where a sweep keeps its plan, in its folder.
FILE = 'sweep.json'
# Trials are numbered by three digits.
_MAX_TRIALS = 999
# Draws for each trial, of which one must differ from those of earlier trials.
_MAX_DRAWS = 100
# What must not change between two starts of a sweep.
_KEPT = ('search', 'seed', 'fields')

# The values of the swept fields by path, such as `model.width`.
Values = dict[str, Any]


@schema.section('sweep')
class Sweep:
  """What the file of a sweep says.

  Attributes:
    fields: for each path of a field of the config the values of a search: a
      list, or for a random search also `{"uniform": [low, high]}` or
      `{"log_uniform": [low, high]}`; `{"integers": [low, high]}`, both
      included, is for either.
    search: grid: all combinations, the last field changes fastest; random:
      `trials` different draws.
    trials: how many a random search has.
    seed: of a random search.
    metric: of metrics.jsonl, by whose best value trials are compared.
    goal: whether its least or its largest value is the best.
  """

  fields: dict = dataclasses.field(default_factory=dict)
  search: Literal['grid', 'random'] = 'random'
  trials: Annotated[int, schema.Range(0, _MAX_TRIALS)] = 0
  seed: schema.Natural = 0
  metric: str = 'validation/loss'
  goal: Literal['min', 'max'] = 'min'

  def __post_init__(self):
    is_random = self.search == 'random'
    schema.check(
      bool(self.fields), 'sweep.fields must have a field of the config'
    )
    schema.check(
      bool(self.trials) == is_random,
      f'sweep.trials={self.trials} must be at least 1 for a random search'
      if is_random
      else f'sweep.trials={self.trials} is of a random search; a grid has all '
      'combinations',
    )
    for name, choice in self.fields.items():
      _check_choice(name, choice, is_random)

  def draw(self) -> list[Values]:
    """The values of each trial; trial i depends on `self` and i alone.

    Raises:
      ConfigError: there are too many, or too few different ones.
    """
    if self.search == 'grid':
      count = math.prod(map(_num_values, self.fields.values()))
      schema.check(
        count <= _MAX_TRIALS,
        f'sweep.fields has {count:,} combinations; a sweep has at most '
        f'{_MAX_TRIALS} trials',
      )
      rows = itertools.product(*map(_values, self.fields.values()))
      return [dict(zip(self.fields, row, strict=True)) for row in rows]
    found: dict[str, Values] = {}
    for i in range(_MAX_DRAWS * self.trials):
      values = {
        name: _draw(choice, random.Random(f'{self.seed} {i} {name}').random())
        for name, choice in self.fields.items()
      }
      found.setdefault(json.dumps(values, sort_keys=True), values)
      if len(found) == self.trials:
        break
    schema.check(
      len(found) == self.trials,
      f'sweep.trials={self.trials}, but only {len(found)} different ones were '
      f'found in {_MAX_DRAWS * self.trials:,} draws',
    )
    return list(found.values())


def _check_choice(name: str, choice: Any, is_random: bool):
  """Refuses what is not a way to choose the values of a field."""
  given = f'sweep.fields: {name}={json.dumps(choice)}'
  if isinstance(choice, list):
    schema.check(bool(choice), f'{given} must have a value')
    texts = {json.dumps(value) for value in choice}
    schema.check(len(texts) == len(choice), f'{given} has a value twice')
    return
  kinds = ('uniform', 'log_uniform', 'integers')
  schema.check(
    isinstance(choice, dict) and len(choice) == 1,
    f'{given} must be a list of values or one of '
    + ', '.join(f'{{"{kind}": [low, high]}}' for kind in kinds),
  )
  ((kind, ends),) = choice.items()
  schema.check(
    kind in kinds,
    f'{given}: {kind!r} is not a distribution{schema.nearest(kind, kinds)}',
  )
  types = (int,) if kind == 'integers' else (int, float)
  schema.check(
    isinstance(ends, list)
    and len(ends) == 2
    and all(type(end) in types and abs(end) < 2**63 for end in ends),
    f'{given} must have two {"integers" if len(types) == 1 else "numbers"}: '
    'low, high',
  )
  low, high = ends
  schema.check(low < high, f'{given}: low={low} must be less than high={high}')
  schema.check(
    kind != 'log_uniform' or low > 0, f'{given}: low={low} must be above 0'
  )
  schema.check(
    is_random or kind == 'integers',
    f'{given} is for a random search; a grid needs a list or integers',
  )


def _num_values(choice: Any) -> int:
  """How many values a field of a grid has."""
  if isinstance(choice, list):
    return len(choice)
  low, high = choice['integers']
  return high - low + 1


def _values(choice: Any) -> Sequence[Any]:
  """The values of a field of a grid."""
  if isinstance(choice, list):
    return choice
  low, high = choice['integers']
  return range(low, high + 1)


def _draw(choice: Any, share: float) -> Any:
  """The value below which `share`, in [0, 1), of a choice lies."""
  if isinstance(choice, list):
    return choice[int(share * len(choice))]
  ((kind, (low, high)),) = choice.items()
  if kind == 'integers':
    return low + int(share * (high - low + 1))
  if kind == 'uniform':
    value = low + share * (high - low)
  else:
    value = low * math.exp(share * (math.log(high) - math.log(low)))
  # Readable, and the same where exp and log differ in their last bit.
  return min(max(float(f'{value:.6g}'), low), high)


def read(path: pathlib.Path) -> Sweep:
  """The sweep that a file describes.

  Raises:
    ConfigError: it cannot be read, or describes none.
  """
  try:
    content = host.read_file(path)
  except OSError as error:
    raise config_lib.ConfigError(
      f'--sweep={path} cannot be read: {error.strerror}'
    ) from error
  with config_lib.reading(f'--sweep={path}'):
    values = config_lib.parse_json(content, 'it')
    return schema.convert(values, Sweep, 'sweep')


def configs(
  base: config_lib.Config, trials: Sequence[Values]
) -> list[config_lib.Config]:
  """The config of each trial.

  Raises:
    ConfigError: a field is unknown or a value is refused, of any of them.
  """
  found = []
  for number, values in enumerate(trials, 1):
    try:
      found.append(_with(base, values))
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'trial {number}: {error}') from error
  return found


def _with(base: config_lib.Config, values: Values) -> config_lib.Config:
  """`base` with other values of some fields."""
  edited = dataclasses.asdict(base)
  for path, value in values.items():
    *sections, name = path.split('.')
    inner = edited
    for depth, section in enumerate(sections, 1):
      inner = inner.setdefault(section, {})
      config_lib.check(
        isinstance(inner, dict),
        f'{".".join(sections[:depth])} is not a section of the config, so '
        f'{path} is no field',
      )
    config_lib.check(
      not isinstance(inner.get(name), dict),
      f'{path} is a section of the config; name one of its fields',
    )
    inner[name] = value
  config = config_lib.from_config_dict(edited)
  made = json.loads(config_lib.to_json(config))
  for path, value in values.items():
    held = made
    for name in path.split('.'):
      held = held[name]
    config_lib.check(
      held == value,
      f'{path}={json.dumps(value)} has no effect: other fields of the config '
      f'make it {json.dumps(held)}',
    )
  return config


def keep(
  workdir: pathlib.Path,
  sweep: Sweep,
  base: config_lib.Config,
  trials: Sequence[Values],
):
  """Writes the plan into the folder of a sweep, or sees that it is the same.

  A random search may get more trials; metric and goal may change, since trials
  do not depend on them.

  Args:
    workdir: the folder.
    sweep: the sweep.
    base: the config of which trials change some fields.
    trials: values of each.

  Raises:
    ConfigError: the folder is that of another sweep, or of a run.
    OSError: the plan cannot be written.
  """
  path = workdir / FILE
  plan = dataclasses.asdict(sweep) | {
    'config': dataclasses.asdict(base),
    'values': trials,
  }
  text = json.dumps(plan, indent=1) + '\n'
  if path.exists():
    with config_lib.reading(path):
      _check_same(
        config_lib.parse_json(host.read_file(path), 'it'),
        json.loads(text),
        base,
      )
  else:
    config_lib.check(
      not (workdir / config_lib.FILE).exists(),
      f'--workdir={workdir} holds a run; give a folder for the sweep',
    )
  host.replace_file(path, text.encode())


def _check_same(
  earlier: Mapping[str, Any], plan: Mapping[str, Any], base: config_lib.Config
):
  """Refuses a plan that does not go on with an earlier one."""
  advice = 'go on with the same, or give another --workdir'
  for name in _KEPT:
    config_lib.check(
      earlier[name] == plan[name],
      f'of another sweep: {name} was {json.dumps(earlier[name])} and is '
      f'{json.dumps(plan[name])}; {advice}',
    )
  earlier_base = config_lib.from_json(json.dumps(earlier['config']))
  changed = list(run_report.changes(earlier_base, base))
  config_lib.check(
    not changed,
    f'of a sweep of another config: now {", ".join(changed[:3])}; {advice}',
  )
  count = len(earlier['values'])
  config_lib.check(
    count <= len(plan['values']),
    f'of a sweep of {count} trials, and sweep.trials={len(plan["values"])} is '
    f'fewer; {advice}',
  )
  config_lib.check(
    earlier['values'] == plan['values'][:count],
    f'of a sweep whose trials have other values; {advice}',
  )
