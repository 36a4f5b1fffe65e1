"""Documents whose targets are classes: which token predicts which class."""

import types
from collections.abc import Mapping, Sequence

import numpy as np

from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.data import transforms, unusable


def classified(
  inputs: Sequence[transforms.Piece],
  targets: transforms.Classes,
  tokenizer: tokenizer_lib.Tokenizer,
  placeholders: Mapping[str, int] = types.MappingProxyType({}),
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of an example with classes, and the classes.

  The tokens are `bos inputs eos eos`, of which the last is never read: what
  reads the first eos predicts the class of the example, and what reads the
  last token of a word its tag.

  Args:
    inputs: texts and media; of tags, the words joined by spaces.
    targets: the classes.
    tokenizer: encodes text.
    placeholders: token id of each kind of medium.

  Returns:
    int32[n] and uint16[n]: what is predicted in the place of each token, plus
    1; 0: nothing.

  Raises:
    UnusableError: a word has no token of its own, or no tag.
  """
  if targets.are_of_words:
    (text,) = inputs
    assert isinstance(text, str)
    tokens, spans = tokenizer.encode_spans(text)
    # Of tokens, the first of which follows bos.
    ends = 1 + last_tokens(text, spans)
    if len(ends) != len(targets.ids):
      raise unusable.UnusableError(
        f'{len(ends)} words have {len(targets.ids)} tags'
      )
  else:
    tokens = transforms.encode(inputs, tokenizer, placeholders)
    ends = [len(tokens) + 1]
  return with_classes(tokens, ends, targets.ids, tokenizer)


def with_classes(
  inputs: np.ndarray,
  ends: Sequence[int] | np.ndarray,
  ids: Sequence[int] | np.ndarray,
  tokenizer: tokenizer_lib.Tokenizer,
) -> tuple[np.ndarray, np.ndarray]:
  """As `classified`, of inputs that are token ids already.

  Args:
    inputs: the ids.
    ends: index of the token that predicts each class; that of bos is 0.
    ids: the classes.
    tokenizer: of the ids.
  """
  ends_with = [tokenizer.eos_id] * 2
  tokens = np.concatenate([[tokenizer.bos_id], inputs, ends_with])
  classes = np.zeros(len(tokens), np.uint16)
  classes[np.asarray(ends) + 1] = np.asarray(ids) + 1
  return tokens.astype(np.int32), classes


def last_tokens(text: str, spans: np.ndarray) -> np.ndarray:
  """int64[W], the last token of each word of a text.

  Args:
    text: words with spaces between them.
    spans: int64[n, 2], the characters of each token.

  Raises:
    UnusableError: a word has no token of its own.
  """
  lengths = np.array([len(word) for word in text.split(' ')])
  stops = np.cumsum(lengths + 1) - 1
  last = np.searchsorted(spans[:, 0], stops, 'left') - 1
  # It reaches into the word, and is not that of the word before.
  is_own = (last >= 0) & (spans[last, 1] > stops - lengths)
  is_own[1:] &= last[1:] > last[:-1]
  if not is_own.all():
    word = text.split(' ')[int(np.argmin(is_own))]
    raise unusable.UnusableError(f'the word {word!r} has no token of its own')
  return last
