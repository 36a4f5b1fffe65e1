"""--help: how a command is called, and what the fields of a config mean."""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from gemini_jax import config as config_lib
from gemini_jax.config import manual


def exit_code(
  argv: Sequence[str], text: str, options: Mapping[str, str | None]
) -> int | None:
  """Prints how a command is called, where that is asked for.

  Args:
    argv: the program's name, then its arguments.
    text: the docstring of the command.
    options: its flags with their defaults; None: it must be given.

  Returns:
    The exit code: 0 for --help, 2 without any arguments; None: go on.
  """
  asked = topic_of(argv) is not None
  if not asked and len(argv) > 1:
    return None
  lines = [
    f'  --{name}=...' if default is None else f'  --{name}={default}'
    for name, default in options.items()
  ]
  text = '\n'.join([text.strip(), '', 'Flags and their defaults:', *lines])
  show(text, sys.stdout if asked else sys.stderr)
  return 0 if asked else 2


def topic_of(argv: Sequence[str]) -> str | None:
  """`optimizer` of `--help=optimizer`, '' of `--help` or `-h`, or None."""
  for argument in argv[1:]:
    if found := re.fullmatch(r'--?(h|help(?:full|short)?)(?:=(.*))?', argument):
      return found[2] or ''
  return None


def without_help(argv: Sequence[str]) -> list[str]:
  """The command line without what asks for help."""
  return [argv[0], *(a for a in argv[1:] if topic_of(['', a]) is None)]


def describe(config: config_lib.Config, topic: str) -> str:
  """The fields of a config whose paths begin with `topic`: value and meaning.

  Raises:
    ConfigError: there are none.
  """
  width = max(shutil.get_terminal_size().columns, 40)
  pages = list(manual.pages(config, topic, width))
  config_lib.check(
    bool(pages),
    f'--help={topic}: no field begins so'
    f'{config_lib.nearest(topic, vars(config))}',
  )
  return '\n\n'.join(pages)


def show(text: str, stream: TextIO):
  """Prints a text that a pager or `head` may not read to its end."""
  try:
    print(text, file=stream, flush=True)
  except BrokenPipeError:
    # Python would write what is left once more, as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
