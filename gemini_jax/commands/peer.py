"""Other programs that a benchmark times in turn with ours, as processes."""

import dataclasses
import json
import subprocess
import sys

from gemini_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Paths:
  """What peers run on; '': that peer is left out.

  Attributes:
    nanogpt: a checkout of nanoGPT.
    gguf: a file for llama.cpp.
    huggingface: a folder for transformers.
  """

  nanogpt: str = ''
  gguf: str = ''
  huggingface: str = ''


class Peer:
  """A worker module of this package in a process of its own.

  It reads a number from each line of its input, runs so often, and answers with
  a line of the seconds: `TIMES [...]`.
  """

  def __init__(self, module: str, arguments: list[str], failure: str):
    """Starts the worker.

    Args:
      module: of `gemini_jax.commands`.
      arguments: of its command line.
      failure: what to tell the user if it ends.
    """
    self._failure = failure
    self._process = subprocess.Popen(
      [sys.executable, '-m', f'gemini_jax.commands.{module}', *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def times(self, count: int) -> list[float]:
    """Seconds of each of `count` runs.

    Raises:
      ConfigError: the worker ended.
    """
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write(f'{count}\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass
    for line in self._process.stdout:
      if line.startswith('TIMES '):
        return json.loads(line.removeprefix('TIMES '))
    raise config_lib.ConfigError(self._failure)

  def close(self):
    """Ends the process."""
    self._process.kill()
    self._process.wait()
