"""Labelled texts of the training data that attributes are learned from."""

import collections
import dataclasses

from gemini_jax import config as config_lib
from gemini_jax.data import splits
from gemini_jax.steer import attribute_classifier

# At least one text in so many has the target value, and one another value.
_QUOTA = 4


@dataclasses.dataclass(frozen=True)
class Examples:
  """Labelled texts, of which enough have each attribute's target value.

  Attributes:
    texts: the texts.
    labels: of each text, the values of the attributes that it was chosen for.
    shares: the share of each value among all texts, by attribute.
  """

  texts: tuple[str, ...]
  labels: tuple[dict[str, str], ...]
  shares: dict[str, dict[str, float]]


def choose(
  config: config_lib.Data, steer: str, num_labels: int, seed: int = 0
) -> Examples:
  """`num_labels` texts for each attribute, chosen at random.

  At least a quarter has the target value and a quarter another one, where
  there are so many: 400 texts at random would hold 4 with a value that one text
  in a hundred has. Beyond that the values keep their natural frequencies.

  Args:
    config: its training data, read in a random order until there are enough.
    steer: as `generate.steer`.
    num_labels: texts for each attribute, at least 2.
    seed: of the order.

  Raises:
    ConfigError: no label has a target value, or see
      `attribute_classifier.parse` and `splits.each_labelled`.
  """
  targets = attribute_classifier.parse(steer)
  selections = {
    name: _Selection(value, num_labels) for name, value in targets.items()
  }
  counts: dict[str, collections.Counter] = collections.defaultdict(
    collections.Counter
  )
  for index, (text, label) in enumerate(
    splits.each_labelled(config, 'train', seed)
  ):
    for name, value in label.items():
      counts[name][value] += 1
      if name in selections:
        selections[name].add(_Example(index, text, value))
    if all(selection.complete for selection in selections.values()):
      break
  seen = [{name: value} for name, values in counts.items() for value in values]
  attribute_classifier.check(steer, targets, seen)
  chosen: dict[int, tuple[str, dict[str, str]]] = {}
  for name, selection in selections.items():
    for example in selection.chosen():
      _, label = chosen.setdefault(example.index, (example.text, {}))
      label[name] = example.value
  texts, labels = zip(*chosen.values(), strict=True)
  shares = {
    name: {v: count / counts[name].total() for v, count in counts[name].items()}
    for name in targets
  }
  return Examples(texts, labels, shares)


@dataclasses.dataclass(frozen=True)
class _Example:
  """A text, its number in the order of reading, and its value."""

  index: int
  text: str
  value: str


class _Selection:
  """The first texts with the target value of an attribute, and without it."""

  def __init__(self, target: str, num_labels: int):
    self._target, self._num_labels = target, num_labels
    self._quota = max(1, num_labels // _QUOTA)
    self._with_target: list[_Example] = []
    self._without_target: list[_Example] = []
    # Texts with the target among the first `num_labels`.
    self._natural = 0

  def add(self, example: _Example):
    has_target = example.value == self._target
    if len(self._with_target) + len(self._without_target) < self._num_labels:
      self._natural += has_target
    examples = self._with_target if has_target else self._without_target
    if len(examples) < self._num_labels:
      examples.append(example)

  @property
  def complete(self) -> bool:
    counts = len(self._with_target), len(self._without_target)
    return min(counts) >= self._quota and sum(counts) >= self._num_labels

  def chosen(self) -> list[_Example]:
    total, quota = self._num_labels, self._quota
    count = min(max(self._natural, quota), total - quota)
    count = max(count, total - len(self._without_target))
    examples = self._with_target[:count]
    return examples + self._without_target[: total - len(examples)]
