"""Labelled texts that wishes are learned from, out of the training data."""

import collections
import dataclasses

from gemini_jax import config as config_lib
from gemini_jax.data import splits
from gemini_jax.steer import attribute_classifier

# One of so many texts has the wished value at least, and one another value.
_QUOTA = 4


@dataclasses.dataclass(frozen=True)
class Examples:
  """Labelled texts, of which enough have what is wished for.

  Attributes:
    texts: the texts.
    labels: of each, the values of the attributes that it was chosen for.
    shares: how many of all texts have each value, by attribute.
  """

  texts: tuple[str, ...]
  labels: tuple[dict[str, str], ...]
  shares: dict[str, dict[str, float]]


def choose(
  config: config_lib.Data, steer: str, most: int, seed: int = 0
) -> Examples:
  """`most` texts for each attribute, chosen at random.

  A quarter has the wished value, and a quarter another one, where there are so
  many: of 400 texts 4 would teach a value that one in a hundred has. Else all
  values come as often as they are.

  Args:
    config: its training data, read in a random order until there are enough.
    steer: as `generate.steer`.
    most: of each attribute, at least 2.
    seed: of the order.

  Raises:
    ConfigError: the labels do not hold what is wished for; or see
      `attribute.parse` and `splits.each_labelled`.
  """
  wishes = attribute_classifier.parse(steer)
  draws = {name: _Draw(value, most) for name, value in wishes.items()}
  counts: dict[str, collections.Counter] = collections.defaultdict(
    collections.Counter
  )
  for place, (text, label) in enumerate(
    splits.each_labelled(config, 'train', seed)
  ):
    for name, value in label.items():
      counts[name][value] += 1
      if name in draws:
        draws[name].add(_Example(place, text, value))
    if all(draw.enough for draw in draws.values()):
      break
  seen = [{name: value} for name, found in counts.items() for value in found]
  attribute_classifier.check(steer, wishes, seen)
  chosen: dict[int, tuple[str, dict[str, str]]] = {}
  for name, draw in draws.items():
    for found in draw.chosen():
      _, label = chosen.setdefault(found.place, (found.text, {}))
      label[name] = found.value
  texts, labels = zip(*chosen.values(), strict=True)
  shares = {
    name: {v: count / counts[name].total() for v, count in counts[name].items()}
    for name in wishes
  }
  return Examples(texts, labels, shares)


@dataclasses.dataclass(frozen=True)
class _Example:
  """A text, its place among all that were read, and its value."""

  place: int
  text: str
  value: str


class _Draw:
  """The first texts with the wished value of an attribute, and without."""

  def __init__(self, wished: str, most: int):
    self._wished, self._most = wished, most
    self._quota = max(1, most // _QUOTA)
    self._having: list[_Example] = []
    self._others: list[_Example] = []
    # Of the first `most`, those that have it.
    self._natural = 0

  def add(self, found: _Example):
    wished = found.value == self._wished
    if len(self._having) + len(self._others) < self._most:
      self._natural += wished
    part = self._having if wished else self._others
    if len(part) < self._most:
      part.append(found)

  @property
  def enough(self) -> bool:
    fewest = min(len(self._having), len(self._others))
    total = len(self._having) + len(self._others)
    return fewest >= self._quota and total >= self._most

  def chosen(self) -> list[_Example]:
    most, quota = self._most, self._quota
    num = min(max(self._natural, quota), most - quota)
    num = max(num, most - len(self._others))
    having = self._having[:num]
    return having + self._others[: most - len(having)]
