"""Sentences of a small grammar, whose entropy and coherence are known exactly.

A sentence has one topic of 24, by Zipf's law, and one tone of 2; every noun
and verb is of its topic, every adjective of its tone.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable

import numpy as np

NUM_TOPICS = 24
TOPICS = tuple(f't{i}' for i in range(NUM_TOPICS))
TONES = ('negative', 'positive')
POSITIVE = 0.3

_ORDER = ('D', 'A', 'N', 'V', 'F', 'D', 'N', 'P', 'D', 'N', 'F', 'A')
# Words of a topic or a tone, at each kind of slot.
_NUM_WORDS = {'A': 10, 'N': 5, 'V': 3}
# The chance that an optional slot is filled.
_OPTIONAL = {'F': 0.5}


def _lexicon() -> dict[tuple[str, str], list[str]]:
  """Made-up words of each (slot, topic or tone), all different."""
  syllables = [c + v for c in 'bdfgklmnprst' for v in 'aeiou']
  # A step that shares no factor with the number of words visits them all.
  total = len(syllables) ** 2
  places = (i * 1117 % total for i in range(total))
  words = (
    syllables[place // len(syllables)] + syllables[place % len(syllables)]
    for place in places
  )
  sizes = {('D', ''): 4, ('F', ''): 16, ('P', ''): 8}
  sizes |= {('A', tone): _NUM_WORDS['A'] for tone in TONES}
  sizes |= {(s, topic): _NUM_WORDS[s] for s in ('N', 'V') for topic in TOPICS}
  return {key: [next(words) for _ in range(n)] for key, n in sizes.items()}


_WORDS = _lexicon()
_KINDS = {word: key for key, words in _WORDS.items() for word in words}


def topic_shares() -> np.ndarray:
  """Probability of each topic."""
  shares = 1 / np.arange(1, NUM_TOPICS + 1)
  return shares / shares.sum()


def topic_entropy() -> float:
  """Of the topics, in bits."""
  shares = topic_shares()
  return float(-(shares * np.log2(shares)).sum())


def entropy() -> float:
  """Of a sentence, in nats: what no model can go below."""
  words = {slot: len(found) for (slot, _), found in _WORDS.items()}
  total = topic_entropy() * math.log(2)
  total -= sum(p * math.log(p) for p in (POSITIVE, 1 - POSITIVE))
  for slot in _ORDER:
    chance = _OPTIONAL.get(slot, 1.0)
    total += chance * math.log(words[slot])
    if chance < 1:
      total -= chance * math.log(chance) + (1 - chance) * math.log(1 - chance)
  return total


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the rule says of a text: topic and tone are None where it is wrong."""

  topic: str | None
  tone: str | None

  @property
  def coherent(self) -> bool:
    """Slots in order, one topic, one tone."""
    return self.topic is not None and self.tone is not None


def records(count: int, seed: int = 0) -> list[dict]:
  """`{'text': ..., 'label': {'topic': ..., 'tone': ...}}`, independent."""
  generator = np.random.default_rng(seed)
  topics = generator.choice(NUM_TOPICS, count, p=topic_shares())
  tones = generator.random(count) < POSITIVE
  made = []
  for topic, tone in zip(topics, tones, strict=True):
    label = {'topic': TOPICS[topic], 'tone': TONES[int(tone)]}
    made.append({'text': sentence(generator, **label), 'label': label})
  return made


def sentence(
  generator: np.random.Generator, topic: str, tone: str | None
) -> str:
  """One of a topic and a tone; without a tone it has no adjective."""
  words = []
  for slot in _ORDER:
    if slot == 'A' and tone is None:
      continue
    if generator.random() >= _OPTIONAL.get(slot, 1.0):
      continue
    of = {'A': tone, 'N': topic, 'V': topic}
    choices = _WORDS[slot, of.get(slot) or '']
    words.append(choices[generator.integers(len(choices))])
  return ' '.join(words)


def adjectives(tone: str) -> list[str]:
  """All words that only sentences of a tone have."""
  return list(_WORDS['A', tone])


def write(path: pathlib.Path, count: int, seed: int = 0):
  """The records as JSON lines."""
  lines = (json.dumps(record) + '\n' for record in records(count, seed))
  path.write_text(''.join(lines))


def judge(text: str) -> Verdict:
  """What the rule says of `text`."""
  order, topics, tones = iter(_ORDER), set(), set()
  for word in text.split():
    kind, of = _KINDS.get(word, ('', ''))
    # Optional slots may be skipped, others may not.
    for slot in order:
      if slot == kind:
        break
      if slot not in _OPTIONAL:
        return Verdict(None, None)
    else:
      return Verdict(None, None)
    if kind == 'A':
      tones.add(of)
    elif kind in ('N', 'V'):
      topics.add(of)
  if any(slot not in _OPTIONAL for slot in order):
    return Verdict(None, None)
  return Verdict(
    topics.pop() if len(topics) == 1 else None,
    tones.pop() if len(tones) == 1 else None,
  )


def entropy_of(values: Iterable[str | None]) -> float:
  """Of the distribution of `values` that are not None, in bits."""
  _, counts = np.unique(
    [value for value in values if value is not None], return_counts=True
  )
  shares = counts / counts.sum()
  return float(-(shares * np.log2(shares)).sum())
