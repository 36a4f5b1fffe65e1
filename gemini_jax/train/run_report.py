"""`report.md` of a run: what was trained, how it went and what it writes."""

import dataclasses
import json
import logging
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.evaluate import report_files
from gemini_jax.parallel import processes
from gemini_jax.train import compression_table, metrics_file
from gemini_jax.train import curves as curves_lib
from gemini_jax.train import progress as progress_lib

FILE, CURVES_FILE = 'report.md', 'report.png'
# Of a run whose pruning validation decides on.
GATE_FILE = 'gate.png'
_GATE_CURVES = (
  *('train/sparsity', 'train/accepted_sparsity', 'train/gate_alpha'),
  *('validation/loss', 'validation/accuracy', 'train/learning_rate'),
)
# Samples and pages of media that are shown.
_MAX_SAMPLES, _MAX_PAGES = 8, 12
# Rows of a table of classes.
_MAX_ROWS = 40


def write(run: run_lib.Run, step: int, ended: str = ''):
  """Writes report.md into the folder of a run, in place of an older one.

  Reads metrics.jsonl, samples/ and reports/. The curves are drawn at the last
  step, as report.png, where matplotlib is installed; before, they are lines of
  blocks. What validation decides on pruning is drawn each time, as gate.png. A
  report that cannot be written is a warning: the training goes on.

  Args:
    run: the run.
    step: updates made.
    ended: why the run has ended before its last step; '': it has not.
  """
  if not processes.is_process_zero():
    return
  try:
    lines = list(metrics_file.all_lines(run.workdir))
    curves = curves_lib.series(lines)
    is_last = bool(ended) or step >= run.config.train.num_steps
    png = curves_lib.picture(curves) if is_last else None
    if png is not None:
      host.replace_file(run.workdir / CURVES_FILE, png)
    if run.config.sparsity.method == 'gated':
      shown = {name: curves[name] for name in _GATE_CURVES if name in curves}
      history = curves_lib.picture(shown)
      if history is not None:
        host.replace_file(run.workdir / GATE_FILE, history)
    text = compose(
      run.workdir, run.config, step, lines, ended, has_picture=png is not None
    )
    host.replace_file(run.workdir / FILE, text.encode(errors='replace'))
  except (OSError, config_lib.ConfigError) as error:
    logging.warning('%s cannot be written: %s', run.workdir / FILE, error)


def compose(
  workdir: pathlib.Path,
  config: config_lib.Config,
  step: int,
  lines: Sequence[Mapping[str, Any]],
  ended: str = '',
  *,
  has_picture: bool = False,
) -> str:
  """The text of a report, in Markdown.

  Args:
    workdir: folder of the run.
    config: of the run.
    step: updates made.
    lines: of metrics.jsonl.
    ended: see `write`.
    has_picture: whether report.png is there.
  """
  total = config.train.num_steps
  sections = [
    f'# {workdir.resolve().name}',
    f'Step {step:,} of {total:,}, on {progress_lib.devices_line()}.',
    *([ended] if ended else []),
    '## Results',
    *_results(lines),
    *_held_out(workdir),
    *_compression(workdir),
    '## Curves',
    *([f'![curves]({CURVES_FILE})'] if has_picture else []),
    *_curves(curves_lib.series(lines)),
    *_gate(workdir),
    '## Samples',
    *_samples(workdir),
    '## Media',
    *_pages(workdir),
    '## Repeat',
    'From the folder where this run was started, into a new one:',
    _fenced(_command(workdir)),
    '## Config',
    'What differs from the defaults; all fields are in '
    f'[{config_lib.FILE}]({config_lib.FILE}).',
    _fenced('\n'.join(changes(config_lib.Config(), config)) or '(nothing)'),
  ]
  return '\n\n'.join(sections) + '\n'


def _results(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """A table of the newest value of each metric of a held-out split."""
  newest = {}
  for line in lines:
    for name, value in line.items():
      if not name.startswith('train/') and name != 'step':
        newest[name] = (value, line['step'])
  if not newest:
    yield 'Nothing was evaluated yet.'
    return
  yield table(
    ('metric', 'value', 'step'),
    [
      (name, _number(value), f'{step:,}')
      for name, (value, step) in newest.items()
    ],
  )


def _held_out(workdir: pathlib.Path) -> Iterator[str]:
  """What evaluators reported of the held-out splits, the newest of each."""
  for report in report_files.newest(workdir):
    of_task = f', {report.task}' if report.task else ''
    yield f'## {report.split.capitalize()}{of_task}: {report.kind}'
    path = f'{report_files.FOLDER}/{report.stem}.json'
    yield f'Of step {report.step:,}, all of it in [{path}]({path}).'
    yield from (f'{title}: `{note}`' for title, note in report.notes.items())
    if report.rows:
      yield from _rows(report)
    for title, name in report.pictures.items():
      yield f'![{title}]({report_files.FOLDER}/{name})'


def _rows(report: report_files.Report) -> Iterator[str]:
  """The table of a report; of many rows those of the lowest F1."""
  order = range(len(report.rows))
  if len(order) > _MAX_ROWS and 'f1' in report.columns:
    order = sorted(order, key=report.columns['f1'].__getitem__)[:_MAX_ROWS]
    yield f'The {_MAX_ROWS} of {len(report.rows):,} with the lowest F1:'
  yield table(
    ('', *report.columns),
    [
      (
        ' '.join(report.rows[i].split()),
        *(f'{column[i]:.4g}' for column in report.columns.values()),
      )
      for i in order
    ],
  )


def _gate(workdir: pathlib.Path) -> Iterator[str]:
  if (workdir / GATE_FILE).exists():
    yield '## Pruning decided by validation'
    yield f'![history of the pruning]({GATE_FILE})'


def _compression(workdir: pathlib.Path) -> Iterator[str]:
  """A table of the models that --mode=compress made of this one."""
  rows = compression_table.read(workdir)
  if not rows:
    return
  yield '## Compression'
  yield 'Each beside the dense model in the same run of --mode=compress.'
  yield table(*compression_table.table(rows))
  if (workdir / compression_table.PICTURE_FILE).exists():
    yield f'![compression]({compression_table.PICTURE_FILE})'


def _curves(curves: Mapping[str, curves_lib.Series]) -> Iterator[str]:
  if not curves:
    yield 'There is no metric of two steps yet.'
    return
  rows = []
  for names in curves_lib.panels(curves).values():
    for name in names:
      _, values = curves[name]
      numbers = values[0], values[-1], min(values), max(values)
      rows.append((name, *map(_number, numbers), curves_lib.sparkline(values)))
  yield table(('metric', 'first', 'last', 'least', 'largest', 'course'), rows)


def _samples(workdir: pathlib.Path) -> Iterator[str]:
  """The samples of the newest evaluation, such as samples/00000200.jsonl."""
  paths = sorted(
    path
    for path in (workdir / 'samples').glob('*.jsonl')
    if path.stem.isdecimal()
  )
  if not paths:
    yield 'No prompt was continued (`evaluate.samples`).'
    return
  path = f'samples/{paths[-1].name}'
  yield f'From [{path}]({path}):'
  text = paths[-1].read_text(errors='replace')
  for line in text.splitlines()[:_MAX_SAMPLES]:
    try:
      sample = json.loads(line)
    except ValueError:
      continue
    yield _fenced(f'{sample.get("prompt")}{sample.get("text")}')


def _pages(workdir: pathlib.Path) -> Iterator[str]:
  """Pages of media that evaluators wrote; those of generate are left out."""
  names = sorted(
    path.name
    for path in (workdir / 'samples').glob('*.png')
    if '-generate' not in path.name
  )
  if not names:
    yield 'No page of media was written.'
  for name in names[-_MAX_PAGES:]:
    yield f'[{name}](samples/{name})\n\n![{name}](samples/{name})'


def _command(workdir: pathlib.Path) -> str:
  """Shell commands that train the same run in a new folder."""
  new = workdir.with_name(f'{workdir.name}-again')
  config = shlex.quote(str(workdir / config_lib.FILE))
  folder = shlex.quote(str(new))
  return (
    f'mkdir {folder}\n'
    f'cp {config} {folder}\n'
    f'python -m gemini_jax.main --workdir={folder}'
  )


def changes(default: Any, config: Any, path: str = '') -> Iterator[str]:
  """`section.field = value` of each field that has another value."""
  for field in dataclasses.fields(config):
    name = f'{path}.{field.name}'.lstrip('.')
    value = getattr(config, field.name)
    default_value = getattr(default, field.name)
    if dataclasses.is_dataclass(value):
      yield from changes(default_value, value, name)
    elif value != default_value:
      yield f'{name} = {value!r}'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  lines = [header, ['---'] * len(header), *rows]
  # What Markdown would take for the end of a cell.
  cells = lambda line: [cell.replace('|', '\\|') for cell in line]
  return '\n'.join(f'| {" | ".join(cells(line))} |' for line in lines)


def _number(value: float | None) -> str:
  return 'not finite' if value is None else f'{value:.5g}'


def _fenced(text: str) -> str:
  """A block of code, whatever backticks the text has."""
  longest = max(map(len, re.findall('`+', text)), default=0)
  fence = '`' * max(3, longest + 1)
  return f'{fence}text\n{text}\n{fence}'
