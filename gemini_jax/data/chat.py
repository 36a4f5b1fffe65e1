"""Conversations as tokens, by the chat template of a tokenizer.

Only the template writes special tokens: in a message their text is plain text.
The answers of the assistant are known by `{% generation %}` in the template, or
else by rendering the conversation up to each answer.
"""

import contextlib
import functools
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import tokenizer

Messages = Sequence[Mapping[str, Any]]

# Noncharacters of Unicode, put around special tokens in messages, and around
# what the template marks as generated.
_QUOTED = '\ufdd0', '\ufdd1'
_GENERATED = '\ufdd2', '\ufdd3'
_MARKS = (*_QUOTED, *_GENERATED)
_MARK = re.compile(f'[{"".join(_MARKS)}]')
_GENERATION = re.compile(r'\{%[-+]?\s*generation\b')
# What a template gets for one request: CPU time, time, memory, and output.
_SECONDS, _WALL_SECONDS = 2.0, 60.0
_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 1 << 20
_WORKER = pathlib.Path(__file__).with_name('chat_worker.py')
_ASSISTANT = 'assistant'


class ChatError(config_lib.ConfigError):
  """A conversation that the template cannot render."""


class Rendered(NamedTuple):
  """What a template wrote.

  Attributes:
    text: of the conversation.
    quoted: spans of its characters that are special tokens in messages.
    answers: spans that the assistant wrote.
  """

  text: str
  quoted: list[tuple[int, int]]
  answers: list[tuple[int, int]]


class Document(NamedTuple):
  """A conversation as tokens.

  Attributes:
    tokens: int32[n].
    is_target: bool[n], tokens that the assistant wrote.
    num_bytes: UTF-8 bytes of the text that it wrote.
  """

  tokens: np.ndarray
  is_target: np.ndarray
  num_bytes: int


def check_messages(messages: Any) -> Messages:
  """Messages as they are read from files.

  Raises:
    ChatError: they are not a list of {role, content}.
  """
  _check(
    isinstance(messages, list) and len(messages) > 0,
    'not a list of messages such as {"role": "user", "content": "..."}',
  )
  for i, message in enumerate(messages):
    for name in ('role', 'content'):
      value = message.get(name) if isinstance(message, dict) else None
      _check(
        isinstance(value, str),
        f'messages[{i}] has no {name!r} that is text',
      )
  try:
    json.dumps(messages, ensure_ascii=False).encode()
  except (UnicodeError, RecursionError) as error:
    raise ChatError('messages that are not Unicode text') from error
  return messages


def read_file(path: str) -> Messages:
  """The messages in a file of JSON: a list, or an object with `messages`.

  Raises:
    ConfigError: it cannot be read, or holds none; begins with the path.
  """
  try:
    values = json.loads(host.read_file(host.expand_path(path)))
    if isinstance(values, dict):
      values = values.get('messages')
    return check_messages(values)
  except OSError as error:
    raise config_lib.ConfigError(f'{path}: {error.strerror}') from error
  except ChatError as error:
    raise config_lib.ConfigError(f'{path}: {error}') from error
  except (ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{path} is not JSON: {error}') from error


def prompt(words: tokenizer.Tokenizer, messages: Messages) -> np.ndarray:
  """int32[n], the tokens after which the assistant answers.

  Raises:
    ConfigError: the tokenizer has no chat template, or it fails.
  """
  (rendered,) = _render(words, [(messages, True)])
  return words.encode_chat(rendered.text, rendered.quoted).ids


def document(words: tokenizer.Tokenizer, messages: Messages) -> Document:
  """A whole conversation, as a model is trained on it.

  Raises:
    ChatError: the assistant says nothing in it, or the template refuses it.
    ConfigError: the tokenizer has no chat template, or it goes on for ever.
  """
  _check(
    any(message['role'] == _ASSISTANT for message in messages),
    f'no message of the {_ASSISTANT}',
  )
  rendered = (
    _render(words, [(messages, False)])[0]
    if _GENERATION.search(words.chat_template)
    else _with_prefixes(words, messages)
  )
  ids, spans = words.encode_chat(rendered.text, rendered.quoted)
  is_target = np.zeros(len(ids), bool)
  for start, stop in rendered.answers:
    is_target |= (spans[:, 1] > start) & (spans[:, 0] < stop)
  # Nothing comes before the first token that could predict it.
  is_target[:1] = False
  _check(bool(is_target.any()), f'the {_ASSISTANT} says nothing')
  texts = [rendered.text[start:stop] for start, stop in rendered.answers]
  return Document(ids, is_target, sum(len(text.encode()) for text in texts))


def _with_prefixes(words: tokenizer.Tokenizer, messages: Messages) -> Rendered:
  """A conversation whose answers are found by rendering its beginnings.

  An answer begins after what the template writes to ask for it, and ends with
  the token that ends a text; what the template writes after that is not of it.
  """
  places = [
    i for i, message in enumerate(messages) if message['role'] == _ASSISTANT
  ]
  beginnings = [
    part
    for i in places
    for part in ((messages[:i], True), (messages[: i + 1], False))
  ]
  whole, *parts = _render(words, [(messages, False), *beginnings])
  answers = []
  for before, after in zip(parts[::2], parts[1::2], strict=True):
    _check(
      after.text.startswith(before.text) and whole.text.startswith(after.text),
      'its chat template does not write a conversation by adding to it, so the '
      'answers are not known; mark them in it by {% generation %}',
    )
    answer = slice(len(before.text), len(after.text))
    ends = [
      answer.start + whole.text[answer].rfind(text) + len(text)
      for text, i in words.special_ids.items()
      if i in words.end_ids and text in whole.text[answer]
    ]
    answers.append((answer.start, max(ends, default=answer.stop)))
  return whole._replace(answers=answers)


def _render(
  words: tokenizer.Tokenizer, conversations: Iterable[tuple[Messages, bool]]
) -> list[Rendered]:
  """What the template writes for conversations.

  Raises:
    ConfigError: the tokenizer has no chat template, or it fails.
  """
  config_lib.check(
    bool(words.chat_template), 'the tokenizer has no chat template'
  )
  names = {i: text for text, i in words.special_ids.items()}
  roles = {
    'bos_token': words.bos_id,
    'eos_token': words.eos_id,
    'pad_token': words.pad_id,
    'unk_token': words.unk_id,
  }
  variables = {role: names[i] for role, i in roles.items() if i in names}
  renderer = _renderer(words.chat_template, tuple(variables.items()))
  special = words.special_pattern
  texts = renderer.render(
    [(_quote(messages, special), ask) for messages, ask in conversations]
  )
  return [_parse(text) for text in texts]


def _quote(value: Any, special: re.Pattern) -> Any:
  """The value with marks around special tokens in its texts."""
  if isinstance(value, str):
    return special.sub(
      lambda match: _QUOTED[0] + match[0] + _QUOTED[1], _MARK.sub('', value)
    )
  if isinstance(value, Mapping):
    return {name: _quote(item, special) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_quote(item, special) for item in value]
  return value


def _parse(text: str) -> Rendered:
  """The text without marks, and what they mark."""
  spans: dict[str, list[tuple[int, int]]] = {mark: [] for mark in _MARKS}
  begins: dict[str, int] = {}
  parts, size, end = [], 0, 0
  for match in _MARK.finditer(text):
    parts.append(text[end : match.start()])
    size, end = size + len(parts[-1]), match.end()
    index = _MARKS.index(match[0])
    if index % 2 == 0:
      begins[match[0]] = size
    elif (first := _MARKS[index - 1]) in begins:
      # What only ends was cut in two by the template.
      spans[first].append((begins.pop(first), size))
  parts.append(text[end:])
  return Rendered(''.join(parts), spans[_QUOTED[0]], spans[_GENERATED[0]])


def _check(condition: bool, message: str):
  if not condition:
    raise ChatError(message)


class _Renderer:
  """A process that renders one template."""

  def __init__(self, template: str, variables: Mapping[str, str]):
    config_lib.optional('jinja2', 'chat templates need it', 'weights')
    self._first = {
      'template': template,
      'variables': dict(variables),
      'generated': _GENERATED,
      'seconds': _SECONDS,
      'memory_bytes': _MEMORY_BYTES,
      'max_characters': _MAX_CHARACTERS,
    }
    self._process: subprocess.Popen | None = None

  def render(self, conversations: Sequence[tuple[Any, bool]]) -> list[str]:
    """The text of each conversation.

    Raises:
      ChatError: the template refuses one of them.
      ConfigError: it needs too much time or memory.
    """
    process = self._process or self._start()
    line, code = self._ask(process, conversations)
    if not line.endswith(b'\n'):
      self._process = None
      timed_out = code == -getattr(signal, 'SIGPROF', 0)
      reason = f'ended with code {code}'
      if timed_out:
        reason = f'was not done after {_SECONDS:.0f} s'
      raise config_lib.ConfigError(f'the chat template {reason}')
    answer = json.loads(line)
    _check('texts' in answer, f'the chat template: {answer.get("error")}')
    return answer['texts']

  def _start(self) -> subprocess.Popen:
    process = subprocess.Popen(
      [sys.executable, '-P', str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
    )
    self._process = process
    weakref.finalize(self, _stop, process)
    _send(process, self._first)
    return process

  def _ask(
    self, process: subprocess.Popen, request: Any
  ) -> tuple[bytes, int | None]:
    """The line that answers, and the exit code where it is not whole."""
    assert process.stdout is not None
    limit = threading.Timer(_WALL_SECONDS, process.kill)
    limit.start()
    try:
      _send(process, request)
      line = process.stdout.readline()
    finally:
      limit.cancel()
    if line.endswith(b'\n'):
      return line, None
    _stop(process)
    return line, process.returncode


def _send(process: subprocess.Popen, value: Any):
  assert process.stdin is not None
  # If it has ended, the missing answer tells.
  with contextlib.suppress(OSError):
    process.stdin.write(json.dumps(value).encode() + b'\n')
    process.stdin.flush()


def _stop(process: subprocess.Popen):
  """Ends a process, if it has not ended, and frees what belongs to it."""
  if process.poll() is None:
    process.kill()
  process.wait()
  for pipe in (process.stdin, process.stdout):
    # What it was sent last may be not read.
    with contextlib.suppress(OSError):
      if pipe is not None:
        pipe.close()


@functools.lru_cache(maxsize=4)
def _renderer(
  template: str, variables: tuple[tuple[str, str], ...]
) -> _Renderer:
  return _Renderer(template, dict(variables))
