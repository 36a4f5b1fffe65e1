"""What the commands that compare trained runs have in common."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader, splits
from gemini_jax.evaluate import likelihood, ngram
from gemini_jax.parallel import compilation, sharding
from gemini_jax.parallel import mesh as mesh_lib

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Flags:
  """The values of flags, as they were given.

  Attributes:
    values: by name.
  """

  values: Mapping[str, str]

  def all(
    self,
    name: str,
    kind: Callable[[str], T],
    accepted: str,
    accepts: Callable[[T], bool] = lambda value: True,
  ) -> tuple[T, ...]:
    """The values of a list with commas, each once.

    Raises:
      ConfigError: there is none, or one is not what is `accepted`.
    """
    return self._read(name, self._parts(name), kind, accepted, accepts)

  def one(
    self,
    name: str,
    kind: Callable[[str], T],
    accepted: str,
    accepts: Callable[[T], bool] = lambda value: True,
  ) -> T:
    """The value of a flag.

    Raises:
      ConfigError: it is not what is `accepted`.
    """
    return self._read(name, (self.values[name],), kind, accepted, accepts)[0]

  def parts(self, name: str) -> tuple[str, ...]:
    """The parts of a list with commas, each once.

    Raises:
      ConfigError: there is none.
    """
    parts = self._parts(name)
    config_lib.check(bool(parts), f'--{name}=... is missing')
    return parts

  def _parts(self, name: str) -> tuple[str, ...]:
    parts = dict.fromkeys(part.strip() for part in self.values[name].split(','))
    return tuple(part for part in parts if part)

  def choice(self, name: str, accepted: Collection[str]) -> tuple[str, ...]:
    """The parts of a list with commas, each one of `accepted`.

    Raises:
      ConfigError: one is not, with the nearest, or there is none.
    """
    parts = self.parts(name)
    for part in parts:
      config_lib.check(
        part in accepted,
        f'--{name}={self.values[name]}: {part!r} is not accepted'
        f'{config_lib.nearest(part, accepted)}',
      )
    return parts

  def _read(self, name, parts, kind, accepted, accepts) -> tuple[Any, ...]:
    try:
      values: tuple[Any, ...] = tuple(
        dict.fromkeys(kind(part) for part in parts)
      )
    except ValueError:
      values = ()
    config_lib.check(
      bool(values) and all(map(accepts, values)),
      f'--{name}={self.values[name]} must be {accepted}',
    )
    return values

  def checkpoint(self) -> str:
    """Which checkpoint is read."""
    accepts = lambda value: value in ('latest', 'best')
    return self.one('checkpoint', str, 'latest or best', accepts)

  def count(self) -> int:
    """How many texts are written."""
    accepts = lambda value: value >= 2
    return self.one('count', int, 'an integer of at least 2', accepts)

  def seed(self) -> int:
    """Of what is random."""
    return self.one('seed', int, 'an integer')

  def common(self) -> dict[str, Any]:
    """The fields of `Options`."""
    return {
      'workdirs': tuple(
        str(command.folder('workdirs', part)) for part in self.parts('workdirs')
      ),
      'judge': str(command.folder('judge', self.values['judge'])),
      'out': command.folder('out', self.values['out']),
      'count': self.count(),
      'checkpoint': self.checkpoint(),
      'seed': self.seed(),
    }


@dataclasses.dataclass(frozen=True)
class Options:
  """What all of the commands are asked for; see the head of each."""

  workdirs: tuple[str, ...]
  judge: str
  out: pathlib.Path
  count: int
  checkpoint: str
  seed: int


def start():
  """Sets up the process of a command, after its imports."""
  host.keep_freed_memory()
  host.start_output()


def is_temperature(value: float) -> bool:
  """Whether tokens can be drawn with it."""
  return 0 <= value < math.inf


def open_runs(workdirs: Sequence[str]) -> dict[str, run_lib.Run]:
  """Trained runs by the names of their folders, or by paths if two are equal.

  Raises:
    ConfigError: see `open_run`.
  """
  return {
    name: open_run(path)
    for name, path in zip(names(workdirs), workdirs, strict=True)
  }


def names(workdirs: Sequence[str]) -> list[str]:
  """Names of folders, or their paths where names are the same."""
  folders = [pathlib.Path(workdir).resolve().name for workdir in workdirs]
  return folders if len(set(folders)) == len(folders) else list(workdirs)


def open_run(workdir: str) -> run_lib.Run:
  """A trained decoder-only run, by the config that its folder holds.

  Raises:
    ConfigError: there is none.
  """
  path = pathlib.Path(workdir) / run_lib.CONFIG_FILE
  config_lib.check(
    os.path.exists(path), f'{workdir} holds no trained run: {path} is missing'
  )
  config = config_lib.read(path)
  config_lib.check(
    not config.model.cross and not config.data.inputs_field,
    f'{workdir} answers inputs; only a model that writes from nothing can be '
    "compared: model.architecture='decoder' and data.inputs_field=''",
  )
  try:
    mesh_lib.make_mesh(config.parallel)
  except config_lib.ConfigError:
    # It was trained on other devices than there are here.
    config = dataclasses.replace(config, parallel=config_lib.Parallel())
  run = run_lib.open_run(config, workdir)
  config_lib.check(
    bool(run.checkpoints.steps()),
    f'{workdir} holds no checkpoint; train it first',
  )
  compilation.enable_cache(run.config)
  return run


def open_judge(workdir: str) -> run_lib.Run:
  """A trained language model, which tells how likely texts are.

  Raises:
    ConfigError: there is none.
  """
  judge = open_run(workdir)
  config_lib.check(
    not judge.config.model.latent.dim
    and judge.config.data.objective == 'causal',
    f'--judge={workdir} must be a language model: model.latent.dim=0, '
    f"not {judge.config.model.latent.dim}, and data.objective='causal', not "
    f'{judge.config.data.objective!r}',
  )
  return judge


def judge_perplexities(
  judge: run_lib.Run, checkpoint: str, sets: Sequence[Sequence[str]]
) -> tuple[list[float], int]:
  """The judge's perplexity of each set of texts, and the step that it is of."""
  with sharding.use(judge.mesh):
    restored = judge.restore_params(checkpoint)
    params = restored.params
    perplexities = []
    for texts in sets:
      nats, tokens = likelihood.of_texts(
        judge.model, params, judge.tokenizer, texts
      )
      perplexities.append(math.exp(float(nats.sum()) / tokens.sum()))
  return perplexities, restored.step


def held_out_split(config: config_lib.Data) -> loader.Split:
  """The test split, or else the validation split."""
  return 'test' if config.test else 'validation'


def sampling(
  config: config_lib.Config,
  temperature: float,
  count: int,
  seed: int,
  **more: Any,
) -> config_lib.Config:
  """The config to write `count` texts from nothing, or from the prior.

  Args:
    config: of the run.
    temperature: of the tokens.
    count: of the texts.
    seed: of what is random.
    **more: further fields of its section `generate`.
  """
  options = config_lib.Generate(
    source='prior' if config.model.latent.dim else 'prompt',
    temperature=temperature,
    count=count,
    max_tokens=max(1, config.model.max_length - 1),
    seed=seed,
    **more,
  )
  return dataclasses.replace(config, generate=options)


def known(config: config_lib.Data, wanted: Collection[str]) -> set[str]:
  """Those of the texts, stripped, that are texts of the training data."""
  wanted = {text.strip() for text in wanted}
  texts = (text.strip() for text in splits.texts(config, 'train'))
  return {text for text in texts if text in wanted}


def variety(texts: Sequence[str]) -> dict[str, float]:
  """Numbers of a set of texts, which depend on how many they are.

  `mean_length` counts words; `duplicates` is the share of texts that repeat an
  earlier one, `empty` the share of texts without a word.
  """
  return {
    'texts': len(texts),
    'self_bleu_4': ngram.self_bleu(texts),
    'distinct_1': ngram.distinct(texts, 1),
    'distinct_2': ngram.distinct(texts, 2),
    'distinct_4': ngram.distinct(texts, 4),
    'mean_length': float(np.mean([len(ngram.words(text)) for text in texts])),
    'duplicates': 1 - len(set(texts)) / len(texts),
    'empty': float(np.mean([not ngram.words(text) for text in texts])),
  }


def write(folder: pathlib.Path, name: str, records: Sequence[Mapping]):
  """A JSON object a line into `folder`/texts.

  Raises:
    ConfigError: it cannot be written.
  """
  path = folder / 'texts' / f'{name.replace("/", "_")}.jsonl'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', encoding='utf-8') as file:
      for record in records:
        file.write(json.dumps(record, ensure_ascii=False) + '\n')
  except OSError as error:
    raise config_lib.ConfigError(
      f'--out={folder} cannot be written: {error.strerror}'
    ) from error


def cells(
  row: Mapping[str, Any], columns: Mapping[str, tuple[str, str]]
) -> list[str]:
  """What a row has of each column, by head and format; '-' where nothing."""
  return [
    '-' if row.get(key) is None else format(row[key], form)
    for key, (_, form) in columns.items()
  ]


def align(lines: Sequence[Sequence[str]], left: int = 1) -> str:
  """A table: the first `left` columns begin, the others end, in line."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if i < left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )
