"""Files of prompts: `generate.prompts`."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import chat
from gemini_jax.infer import prompts

_FIELDS = ('prompt', 'messages', 'adapter')


class Line(NamedTuple):
  """One prompt.

  Attributes:
    prompt: a text, or the messages of a conversation.
    adapter: one of `generate.adapters`, which answers it; '': the run itself.
  """

  prompt: prompts.Asked
  adapter: str = ''


def read(path: str, adapters: Sequence[str]) -> list[Line]:
  """The prompts in a JSONL file; empty lines are left out.

  Args:
    path: of the file.
    adapters: `generate.adapters`, each of which must have a prompt.

  Raises:
    ConfigError: it cannot be read, a line is no prompt, or an adapter is
      unknown or has no prompt.
  """
  field = f'generate.prompts={path!r}'
  try:
    text = host.read_file(host.expand_path(path)).decode()
  except OSError as error:
    raise config_lib.ConfigError(f'{field}: {error.strerror}') from error
  except UnicodeError as error:
    raise config_lib.ConfigError(f'{field} is not UTF-8') from error
  lines = [
    _line(line, f'{field}, line {number}', adapters)
    for number, line in enumerate(text.split('\n'), 1)
    if line.strip()
  ]
  config_lib.check(len(lines) > 0, f'{field} holds no prompt')
  idle = [name for name in adapters if name not in {x.adapter for x in lines}]
  config_lib.check(
    not idle,
    f'generate.adapters has {", ".join(idle)}, which no line of {field} names '
    'as its "adapter"',
  )
  return lines


def _line(text: str, where: str, adapters: Sequence[str]) -> Line:
  try:
    values: Any = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise config_lib.ConfigError(f'{where} is not JSON') from error
  config_lib.check(
    isinstance(values, dict) and ('prompt' in values) != ('messages' in values),
    f'{where} must be an object with either "prompt" or "messages"',
  )
  unknown = [name for name in values if name not in _FIELDS]
  config_lib.check(
    not unknown,
    f'{where}: {str(unknown[:1])[:80]} is not one of {", ".join(_FIELDS)}',
  )
  adapter = values.get('adapter', '')
  config_lib.check(
    adapter == '' or adapter in adapters,
    f'{where}: adapter={str(adapter)[:80]!r} is none of generate.adapters='
    f'{tuple(adapters)}',
  )
  prompt: Any = values.get('prompt')
  if 'messages' in values:
    try:
      prompt = chat.check_messages(values['messages'])
    except chat.ChatError as error:
      raise config_lib.ConfigError(f'{where}: {error}') from error
  config_lib.check(
    not isinstance(prompt, dict | int | float | None),
    f'{where}: prompt={str(prompt)[:80]} must be a text',
  )
  return Line(prompt, adapter)
