"""What every command does around its work: --help, errors, exit codes."""

import sys
from collections.abc import Callable, Mapping, Sequence

from gemini_jax import config as config_lib
from gemini_jax import help_page
from gemini_jax.checkpoint import checkpointer


def main(
  argv: Sequence[str],
  text: str | None,
  flags: Mapping[str, str | None],
  work: Callable[[], None],
) -> int:
  """Does the work, or says in one line what was wrong with the request.

  Args:
    argv: the program's name, then its arguments.
    text: the docstring of the command.
    flags: its flags with their defaults; None: it must be given.
    work: reads the flags and does what they ask for.

  Returns:
    The exit code: 0 done, 2 a mistake in what was asked for, 130 Ctrl-C.
  """
  code = help_page.exit_code(argv, text or '', flags)
  if code is not None:
    return code
  try:
    work()
  except (config_lib.ConfigError, checkpointer.MismatchError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  return 0
