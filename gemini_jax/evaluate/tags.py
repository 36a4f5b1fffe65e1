"""BIO tags of words: which follow which, and the likeliest that may.

W words of a sequence, C tags.
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


def likeliest(names: Sequence[str], probabilities_WC: np.ndarray) -> np.ndarray:
  """int64[W], the likeliest tags of a sequence in which no span lacks its B.

  By dynamic programming (Viterbi 1967). Where no tag is B- or I-, those that
  are the likeliest of each word.

  Args:
    names: of the tags.
    probabilities_WC: of the tags of each word.
  """
  begins_C, follows_CC = _transitions(names)
  logs_WC = np.log(np.maximum(probabilities_WC, np.finfo(np.float32).tiny))
  logs_WC[:1] += begins_C[None]
  before_WC = np.zeros(logs_WC.shape, np.int64)
  best_C = np.zeros(len(names))
  for i, logs_C in enumerate(logs_WC):
    ways_CC = best_C[:, None] + (follows_CC if i else 0.0)
    before_WC[i] = ways_CC.argmax(axis=0)
    best_C = ways_CC.max(axis=0) + logs_C
  tags_W = np.zeros(len(logs_WC), np.int64)
  tag = best_C.argmax()
  for i in reversed(range(len(tags_W))):
    tags_W[i], tag = tag, before_WC[i, tag]
  return tags_W


def _transitions(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Of the first word's tag, and from one word's tag to that of the next.

  0 where it is allowed, else minus infinity.
  """
  needs = [
    {f'B-{name[2:]}', name} if name.startswith('I-') else set()
    for name in names
  ]
  # I- of a type without B- begins spans itself.
  needs = [need if need <= set(names) else set() for need in needs]
  begins_C = np.where([not need for need in needs], 0.0, -np.inf)
  follows_CC = np.where(
    [[not need or name in need for need in needs] for name in names],
    0.0,
    -np.inf,
  )
  return begins_C, follows_CC
