"""BIO tags of words: which follow which, and the likeliest that may.

N words in all, C tags.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from gemini_jax import config as config_lib

_TAG = re.compile(r'O|[BI]-\S.*')


def check(names: Iterable[str]):
  """Refuses names of tags that are not BIO.

  Raises:
    ConfigError: a name is not O, B-TYPE or I-TYPE, or no span can begin with
      the B- of its type.
  """
  names = list(names)
  for name in names:
    config_lib.check(
      bool(_TAG.fullmatch(name)),
      f'the tag {name!r} is not BIO: O, B-TYPE or I-TYPE',
    )
    begin = f'B-{name[2:]}'
    config_lib.check(
      name == 'O' or begin in names,
      f'the tag {name!r} has no {begin!r} that its spans begin with; BIO '
      'begins every span with B',
    )


def likeliest(
  names: Sequence[str], probabilities_NC: np.ndarray, examples_N: np.ndarray
) -> np.ndarray:
  """int64[N], the likeliest tags of each example in which no span lacks its B.

  By dynamic programming (Viterbi 1967). Where no tag is B- or I-, those that
  are the likeliest of each word.

  Args:
    names: of the tags.
    probabilities_NC: of the tags of each word.
    examples_N: the number of the example that each word belongs to, those of
      one side by side.
  """
  begins_CC, follows_CC = _transitions(names)
  logs_NC = np.log(np.maximum(probabilities_NC, np.finfo(np.float32).tiny))
  is_first_N = np.diff(examples_N, prepend=-1) != 0
  before_NC = np.zeros(logs_NC.shape, np.int64)
  best_C = np.zeros(len(names))
  for i, (logs_C, is_first) in enumerate(zip(logs_NC, is_first_N, strict=True)):
    ways_CC = best_C[:, None] + (begins_CC if is_first else follows_CC)
    before_NC[i] = ways_CC.argmax(axis=0)
    best_C = ways_CC.max(axis=0) + logs_C
  tags_N = np.zeros(len(logs_NC), np.int64)
  tag = best_C.argmax()
  for i in reversed(range(len(tags_N))):
    tags_N[i], tag = tag, before_NC[i, tag]
  return tags_N


def _transitions(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """From a tag to that of the first word of an example, and to any other's.

  0 where it is allowed, else minus infinity.
  """
  needs = [
    {f'B-{name[2:]}', name} if name.startswith('I-') else set()
    for name in names
  ]
  # I- of a type without B- begins spans itself.
  needs = [need if need <= set(names) else set() for need in needs]
  begins = [[not need for need in needs]] * len(names)
  follows = [[not need or name in need for need in needs] for name in names]
  begins_CC, follows_CC = (
    np.where(np.array(allowed, bool), 0.0, -np.inf)
    for allowed in (begins, follows)
  )
  return begins_CC, follows_CC
