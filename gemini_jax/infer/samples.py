"""Texts that a model wrote, and the files that they go to."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence

from gemini_jax import host
from gemini_jax.parallel import processes


@dataclasses.dataclass(frozen=True)
class Sample:
  """One text that a model wrote.

  Attributes:
    prompt: what it was given.
    text: what it wrote.
    tokens: generated ids, with eos if it came.
    logprobs: natural log-probability of each under the model itself, before
      temperature and filters.
    latent: the z that it was written from; () without one.
    steer: what it should be, as `generate.steer` says.
    adapter: the one of `generate.adapters` that wrote it; '': the run itself.
  """

  prompt: str
  text: str
  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  latent: tuple[float, ...] = ()
  steer: str = ''
  adapter: str = ''

  @property
  def logprob(self) -> float:
    """Log-probability of all its tokens."""
    return sum(self.logprobs)


def claim(path: pathlib.Path) -> pathlib.Path:
  """Makes an empty file where none was: name.png, or name-2.png and so on.

  Only the first process makes one; the others get `path`.
  """
  if not processes.is_process_zero():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  for number in itertools.count(1):
    free = path if number == 1 else path.with_stem(f'{path.stem}-{number}')
    try:
      free.open('x').close()
    except FileExistsError:
      continue
    return free
  raise AssertionError('some number is free')


def write_samples(path: pathlib.Path, samples: Sequence[Sample]):
  """Writes one JSON object a sample, replacing what was there.

  Every process has the samples; the first writes them.
  """
  if not processes.is_process_zero():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = []
  for sample in samples:
    line = {
      'prompt': sample.prompt,
      'text': sample.text,
      'logprob': sample.logprob,
      'tokens': list(sample.tokens),
    }
    if sample.steer:
      line['steer'] = sample.steer
    if sample.adapter:
      line['adapter'] = sample.adapter
    if sample.latent:
      line['z'] = list(sample.latent)
    lines.append(json.dumps(line, ensure_ascii=False) + '\n')
  host.replace_file(path, ''.join(lines).encode())
