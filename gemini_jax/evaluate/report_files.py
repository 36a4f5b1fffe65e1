"""What evaluators report of a held-out split: JSON and pictures in reports/.

`report.md` shows the newest of each.
"""

import dataclasses
import itertools
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.parallel import processes

FOLDER = 'reports'


@dataclasses.dataclass(frozen=True)
class Report:
  """One report.

  Attributes:
    step: that the parameters are of.
    split: that it is about.
    task: its name; '' for the only one.
    kind: of what is reported, such as 'classes'; a word, part of the names of
      files.
    metrics: by name, without that of the split.
    rows: names of the rows of the table, such as classes.
    columns: of the table, a number for each row.
    notes: lines by their title, such as the signature of a metric.
    pictures: titles and names of files in the folder of the report.
    details: anything else, for programs.
  """

  step: int
  split: str
  task: str
  kind: str
  metrics: Mapping[str, float | None]
  rows: Sequence[str] = ()
  columns: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )
  notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)
  details: Any = None

  @property
  def stem(self) -> str:
    """The name of its files, without what comes after the last part."""
    parts = f'{self.step:08d}', self.split, self.task, self.kind
    return '-'.join(filter(None, parts))

  @property
  def subject(self) -> tuple[str, str, str]:
    """What a newer report takes the place of."""
    return self.split, self.task, self.kind

  def __post_init__(self):
    # A file may hold anything.
    texts = (
      *(*self.subject, *self.rows),
      *itertools.chain(*self.notes.items(), *self.pictures.items()),
    )
    numbers = self.step, *itertools.chain(*self.columns.values())
    if not (
      type(self.step) is int
      and all(isinstance(text, str) for text in texts)
      and all(isinstance(number, int | float) for number in numbers)
      and all(len(c) == len(self.rows) for c in self.columns.values())
    ):
      raise ValueError('no report')


def write(
  workdir: pathlib.Path,
  report: Report,
  pictures: Mapping[str, bytes | None],
):
  """Writes reports/STEP-SPLIT-TASK-KIND.json and its pictures, as PNG.

  A file that cannot be written is a warning: an evaluation goes on. Of several
  processes, the first writes.

  Args:
    workdir: of the run.
    report: what is written; its pictures are those given.
    pictures: PNGs by title; None: not drawn.
  """
  if not processes.is_process_zero():
    return
  folder = workdir / FOLDER
  names = {}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for title, png in pictures.items():
      if png is not None:
        names[title] = f'{report.stem}-{title}.png'
        host.replace_file(folder / names[title], png)
    report = dataclasses.replace(
      report, metrics=_finite(report.metrics), pictures=names
    )
    text = json.dumps(
      dataclasses.asdict(report), ensure_ascii=False, allow_nan=False
    )
    path = folder / f'{report.stem}.json'
    host.replace_file(path, f'{text}\n'.encode(errors='replace'))
  except OSError as error:
    logging.warning('%s cannot be written: %s', folder, error)


def newest(workdir: pathlib.Path) -> list[Report]:
  """The newest report of each split, task and kind, in the order of names.

  Files that hold no report are left out, with a warning.
  """
  found = {}
  for path in sorted((workdir / FOLDER).glob('*.json')):
    try:
      with config_lib.reading(path):
        report = Report(**json.loads(host.read_file(path)))
    except (OSError, config_lib.ConfigError) as error:
      logging.warning('a report is left out: %s', error)
      continue
    found[report.subject] = report
  return [found[subject] for subject in sorted(found)]


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
  """Without NaN and infinities, which JSON has no numbers for."""
  return {
    name: value if value is not None and math.isfinite(value) else None
    for name, value in values.items()
  }
