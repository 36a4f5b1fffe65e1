r"""How many steered texts have the target value, by another classifier.

  python -m gemini_jax.commands.steered --workdirs=runs/vae,runs/lm \
      --judge=runs/judge --out=runs/steered --attribute=tone \
      --values=positive,negative [--methods=ode,vector,best_of,gradient] \
      [--count=200] [--temperature=0.5] [--num_labels=400] [--weight=1] \
      [--checkpoint=latest|best] [--seed=0]

Every run writes `count` texts without steering, and `count` for each value of
the attribute and each method, learned from `num_labels` labelled texts of its
own training data. A classifier of words and pairs of words (needs
scikit-learn: pip install 'gemini_jax[judge]') says which value a text has. It
is trained on the labelled texts of the judge's training data, without those
that a run was trained on, and tested on the held-out texts of the first run.
The judge, a language model, gives the perplexity of the texts. Prints tables;
`out` gets steered.json and the texts.
"""

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import (
  comparison,
  program,
  steered_options,
  steered_table,
  steered_writer,
)
from gemini_jax.data import loader, splits
from gemini_jax.evaluate import text_classifier
from gemini_jax.steer import controller as controller_lib
from gemini_jax.steer import labelled_examples

# Limit of labelled texts that the classifier is trained on.
_MAX_TRAINING_TEXTS = 100_000
# What is averaged over values.
_AVERAGED = (
  *('share', 'unsteered', 'held_out', 'self_bleu_4', 'distinct_2'),
  *('duplicates', 'mean_length'),
)


# Texts and their values.
Known = tuple[tuple[str, ...], tuple[str, ...]]


def compare(options: steered_options.Options) -> dict[str, Any]:
  """Writes, judges and measures; everything that steered.json holds.

  Raises:
    ConfigError: a folder holds no run that can do its part, labels lack the
      attribute or a value, or scikit-learn is missing.
  """
  text_classifier.check()
  runs = comparison.open_runs(options.workdirs)
  judge = comparison.open_judge(options.judge)
  examples = {name: _examples(name, run, options) for name, run in runs.items()}
  held_out = _held_out(next(iter(runs.values())), options)
  training = _training_texts(judge, runs, held_out[0], options)
  # They are in a random order.
  real: dict[str, Any] = {'written': held_out[0][: options.count]}
  comparison.write(
    options.out, 'held_out', [{'text': text} for text in real['written']]
  )
  classifier = text_classifier.fit(*training)
  measured = classifier.measure(*held_out)
  measured['taught'] = len(training[0])
  logging.info(
    'classifier: %.1f %% of %s held-out texts right',
    100 * measured['accuracy'],
    f'{measured["texts"]:,}',
  )
  real['shares'] = steered_writer.value_shares(classifier, held_out[0], options)
  real_by_value = [
    {
      'value': value,
      'written': [t for t, v in zip(*held_out, strict=True) if v == value][
        : options.count
      ],
      'share': measured['values'][value]['recall'],
    }
    for value in options.values
    if value in measured['values']
  ]
  models = [
    steered_writer.write(
      name, run, examples[name], classifier, real['shares'], options
    )
    for name, run in runs.items()
  ]
  rows: list[dict[str, Any]] = [real, *real_by_value]
  for model in models:
    rows += [model['unsteered'], *model['steered']]
  perplexities, step = comparison.judge_perplexities(
    judge, options.checkpoint, [row['written'] for row in rows]
  )
  for row, perplexity in zip(rows, perplexities, strict=True):
    row['judge_perplexity'] = perplexity
    row |= comparison.variety(row.pop('written'))
  for model in models:
    model['means'] = [
      _mean([row for row in model['steered'] if row['method'] == method])
      for method in options.methods
    ]
  return {
    **{
      name: getattr(options, name)
      for name in ('attribute', 'values', 'methods', 'count', 'temperature')
    },
    'num_labels': options.num_labels,
    'weight': options.weight,
    'seed': options.seed,
    'judge': {'workdir': options.judge, 'step': step},
    'classifier': measured,
    'real': real,
    'real_of': real_by_value,
    'models': models,
  }


def _examples(
  name: str, run: run_lib.Run, options: steered_options.Options
) -> dict[str, labelled_examples.Examples]:
  """The labelled texts that a run learns each value from."""
  for method in options.methods:
    try:
      config = options.sampling(run, options.values[0], method)
      controller_lib.check(config.generate, run.config.model)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(
        f'--methods={",".join(options.methods)}: {name}: {error}'
      ) from error
  try:
    return {
      value: controller_lib.choose_examples(
        options.sampling(run, value, options.methods[0])
      )
      for value in options.values
    }
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{name}: {error}') from error


def _labelled(
  workdir: Any,
  config: config_lib.Data,
  split: loader.Split,
  options: steered_options.Options,
) -> Known:
  """Texts of a split with a value of the attribute."""
  try:
    found = splits.labelled(config, split, _MAX_TRAINING_TEXTS, options.seed)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{workdir}: {error}') from error
  known = [
    (text, labels[options.attribute])
    for text, labels in found
    if options.attribute in labels
  ]
  names = {name for _, labels in found for name in labels}
  config_lib.check(
    bool(known),
    f'--attribute={options.attribute}: no text of data.{split} of {workdir} '
    f'has a label of it{config_lib.nearest(options.attribute, names)}',
  )
  texts, values = zip(*known, strict=True)
  return texts, values


def _held_out(run: run_lib.Run, options: steered_options.Options) -> Known:
  """The held-out texts of a run and their values."""
  split = comparison.held_out_split(run.config.data)
  found = _labelled(run.workdir, run.config.data, split, options)
  config_lib.check(
    len(found[0]) >= options.count,
    f'--count={options.count} must be at most {len(found[0])}, the labelled '
    f'texts of data.{split} of {run.workdir}',
  )
  return found


def _training_texts(
  judge: run_lib.Run,
  runs: Mapping[str, run_lib.Run],
  held_out: Sequence[str],
  options: steered_options.Options,
) -> Known:
  """Training texts of the classifier: none that a run was trained on."""
  texts, values = _labelled(options.judge, judge.config.data, 'train', options)
  left_out = {text.strip() for text in held_out}
  for data in {run.config.data: None for run in runs.values()}:
    left_out |= comparison.known(data, texts)
  kept = [
    (text, value)
    for text, value in zip(texts, values, strict=True)
    if text.strip() not in left_out
  ]
  if len(kept) < len(texts):
    logging.warning(
      'classifier: %s of %s labelled texts of %s left out, which are held out '
      'or a run was trained on',
      f'{len(texts) - len(kept):,}',
      f'{len(texts):,}',
      options.judge,
    )
  values_left = {value for _, value in kept}
  for value in options.values:
    config_lib.check(
      value in values_left,
      f'--values={",".join(options.values)}: of {len(kept):,} texts of '
      f'data.train of {options.judge} that no run was trained on, none has '
      f'{options.attribute}={value}'
      f'{config_lib.nearest(value, values_left) if values_left else ""}',
    )
  texts, values = zip(*kept, strict=True)
  return texts, values


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Means over values; of perplexities the geometric one."""
  logs = [math.log(row['judge_perplexity']) for row in rows]
  return {
    'method': rows[0]['method'],
    **{name: float(np.mean([r[name] for r in rows])) for name in _AVERAGED},
    'judge_perplexity': math.exp(float(np.mean(logs))),
    'cost': {
      name: float(np.mean([row['cost'][name] for row in rows]))
      for name in rows[0]['cost']
    },
  }


def main(argv: Sequence[str]) -> int:
  """Steers the runs; returns the exit code."""
  flags = steered_options.FLAGS

  def work():
    options = steered_options.Options.from_flags(
      command.parse_flags(argv, flags)
    )
    result = compare(options)
    file = options.out / 'steered.json'
    file.write_text(json.dumps(result, indent=2) + '\n')
    print(steered_table.table(result))
    print(f'\nwritten to {file}')

  return program.main(argv, __doc__, flags, work)


if __name__ == '__main__':
  comparison.start()
  sys.exit(main(sys.argv))
