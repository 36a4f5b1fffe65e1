"""The tokenizer that a config asks for: loaded, or trained on texts."""

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator

import sentencepiece

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import (
  huggingface_tokenizer,
  sentencepiece_tokenizer,
  tokenizer,
)

# SentencePiece holds its training text in memory; this much is enough.
_MAX_TRAINING_CHARACTERS = 100_000_000
_LINE_CHARACTERS = 4096


class TooLargeError(config_lib.ConfigError):
  """The vocabulary is larger than `limit`, the most that the texts can fill."""

  def __init__(self, message: str, limit: int):
    super().__init__(message)
    self.limit = limit


def build(
  config: config_lib.Tokenizer, texts: Callable[[], Iterable[str]]
) -> tokenizer.Tokenizer:
  """The tokenizer of a config.

  Args:
    config: the section `tokenizer`; the vocabulary becomes smaller than
      `vocab_size` if the texts cannot fill it.
    texts: gives the training texts, for kinds that are trained.

  Raises:
    ConfigError: the model cannot be read, or the vocabulary is too small for
      the texts.
  """
  config_lib.check(
    config.path is None or config.kind in ('sentencepiece', 'huggingface'),
    f'tokenizer.path={config.path!r} is for tokenizer.kind=sentencepiece and '
    f'huggingface, not {config.kind}',
  )
  if config.kind == 'bytes':
    return tokenizer.Bytes()
  if config.kind == 'characters':
    return tokenizer.Characters(''.join(set().union(*texts())))
  if config.path is None:
    config_lib.check(
      config.kind != 'huggingface',
      'tokenizer.kind=huggingface needs tokenizer.path, a folder with '
      'tokenizer.json or tokenizer.model; or set train.init_from',
    )
    try:
      return train(texts(), config.vocab_size)
    except TooLargeError as error:
      logging.info('%s; training %d', error, error.limit)
      return train(texts(), error.limit)
  path = host.expand_path(config.path)
  try:
    if config.kind == 'huggingface' and path.is_dir():
      return huggingface_tokenizer.from_folder(path)
    loaded = tokenizer.load(path)
    config_lib.check(
      config.kind == 'huggingface'
      or isinstance(loaded, sentencepiece_tokenizer.SentencePiece),
      f'{config.path} is not a SentencePiece model',
    )
    return loaded
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'tokenizer.path: {error}') from error


def train(
  texts: Iterable[str], vocab_size: int
) -> sentencepiece_tokenizer.SentencePiece:
  """A byte-fallback BPE model of `texts`, for which decoding inverts encoding.

  Raises:
    ConfigError: `vocab_size` is larger than the texts can fill, or too small.
  """
  proto = io.BytesIO()
  failed: list[BaseException] = []

  def lines():
    # SentencePiece would raise its own error in place of one of the texts.
    try:
      yield from _lines(texts)
    except BaseException as error:
      failed.append(error)
      raise

  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines(),
      model_writer=proto,
      model_type='bpe',
      vocab_size=vocab_size,
      byte_fallback=True,
      split_digits=True,
      # With these four text is encoded unchanged.
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      allow_whitespace_only_pieces=True,
      user_defined_symbols=['\n'],
      max_sentence_length=4 * _LINE_CHARACTERS,
      pad_id=0,
      bos_id=1,
      eos_id=2,
      unk_id=3,
      minloglevel=2,
    )
  except RuntimeError as error:
    if failed:
      raise failed[0] from None
    raise _config_error(vocab_size, str(error)) from error
  return sentencepiece_tokenizer.SentencePiece(proto.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
  """Lines of the texts, cut to lengths that SentencePiece accepts."""
  remaining = _MAX_TRAINING_CHARACTERS
  lines = (line for text in texts for line in text.splitlines(keepends=True))
  for line in lines:
    for start in range(0, len(line), _LINE_CHARACTERS):
      yield line[start : start + _LINE_CHARACTERS]
    remaining -= len(line)
    if remaining <= 0:
      return


def _config_error(vocab_size: int, message: str) -> config_lib.ConfigError:
  """The ConfigError for an error message of SentencePiece."""
  field = f'tokenizer.vocab_size={vocab_size}'
  if largest := re.search(r'value <= (\d+)', message):
    return TooLargeError(
      f'{field} is too large for the training text; at most {largest[1]}',
      int(largest[1]),
    )
  if smallest := re.search(r'required_chars\. \d+ vs (\d+)', message):
    return config_lib.ConfigError(
      f'{field} is too small for the training text; at least {smallest[1]}'
    )
  return config_lib.ConfigError(
    f'{field} cannot be trained: {message.strip().splitlines()[-1]}'
  )
