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

import dataclasses
import json
import logging
import math
import sys
import time
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.commands import comparison, steered_table
from gemini_jax.data import loader, splits
from gemini_jax.evaluate import text_classifier
from gemini_jax.infer import generation
from gemini_jax.parallel import sharding
from gemini_jax.steer import controller as controller_lib
from gemini_jax.steer import guided_decoding, labelled_examples

FLAGS: dict[str, str | None] = {
  'workdirs': None,
  'judge': None,
  'out': None,
  'attribute': None,
  'values': None,
  'methods': 'ode,vector,best_of,gradient',
  'count': '200',
  'temperature': '0.5',
  'num_labels': str(config_lib.Generate.num_labels),
  'weight': str(config_lib.Generate.steer_weight),
  'checkpoint': 'latest',
  'seed': '0',
}
METHODS = typing.get_args(
  typing.get_type_hints(config_lib.Generate)['steer_method']
)
# Limit of labelled texts that the classifier is trained on.
_MAX_TRAINING_TEXTS = 100_000
# What is averaged over values.
_AVERAGED = (
  *('share', 'unsteered', 'held_out', 'self_bleu_4', 'distinct_2'),
  *('duplicates', 'mean_length'),
)


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
  """What the command line asks for; see the head of this file."""

  attribute: str
  values: tuple[str, ...]
  methods: tuple[str, ...]
  temperature: float
  num_labels: int
  weight: float

  @classmethod
  def from_flags(cls, values: Mapping[str, str]) -> 'Options':
    """From FLAGS as they were given.

    Raises:
      ConfigError: a value is not of its kind.
    """
    flags = comparison.Flags(values)
    number = 'a number of at least 0'
    labels = 'an integer of at least 2'
    return cls(
      **flags.common(),
      attribute=flags.one('attribute', str, 'the name of one', bool),
      values=flags.parts('values'),
      methods=flags.choice('methods', METHODS),
      temperature=flags.one(
        'temperature', float, number, comparison.is_temperature
      ),
      num_labels=flags.one('num_labels', int, labels, lambda n: n > 1),
      weight=flags.one('weight', float, number, comparison.is_temperature),
    )

  def sampling(
    self, run: run_lib.Run, value: str, method: str
  ) -> config_lib.Config:
    """The config to write with, towards a value."""
    return comparison.sampling(
      run.config,
      self.temperature,
      self.count,
      self.seed,
      steer=f'{self.attribute}={value}',
      steer_method=method,
      steer_weight=self.weight,
      num_labels=self.num_labels,
    )


# Texts and their values.
Known = tuple[tuple[str, ...], tuple[str, ...]]


def compare(options: Options) -> dict[str, Any]:
  """Writes, judges and measures; everything that steered.json holds.

  Raises:
    ConfigError: a folder holds no run that can do its part, labels lack the
      attribute or a value, or scikit-learn is not there.
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
  real['shares'] = _shares(classifier, held_out[0], options)
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
    _write(name, run, examples[name], classifier, real['shares'], options)
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
  name: str, run: run_lib.Run, options: Options
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
  workdir: Any, config: config_lib.Data, split: loader.Split, options: Options
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


def _held_out(run: run_lib.Run, options: Options) -> Known:
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
  options: Options,
) -> Known:
  """Training texts of the classifier: none that a run was trained on."""
  texts, values = _labelled(options.judge, judge.config.data, 'train', options)
  left_out = {text.strip() for text in held_out}
  for data in {run.config.data: None for run in runs.values()}:
    left_out |= comparison.known(data, texts)
  taught = [
    (text, value)
    for text, value in zip(texts, values, strict=True)
    if text.strip() not in left_out
  ]
  if len(taught) < len(texts):
    logging.warning(
      'classifier: %s of %s labelled texts of %s left out, which are held out '
      'or a run was trained on',
      f'{len(texts) - len(taught):,}',
      f'{len(texts):,}',
      options.judge,
    )
  values_left = {value for _, value in taught}
  for value in options.values:
    config_lib.check(
      value in values_left,
      f'--values={",".join(options.values)}: of {len(taught):,} texts of '
      f'data.train of {options.judge} that no run was trained on, none has '
      f'{options.attribute}={value}'
      f'{config_lib.nearest(value, values_left) if values_left else ""}',
    )
  texts, values = zip(*taught, strict=True)
  return texts, values


def _shares(
  classifier: text_classifier.Classifier, texts: Sequence[str], options: Options
) -> dict[str, float]:
  """Share of the texts that the classifier reads as each value."""
  values = classifier.read(texts)
  return {value: float(np.mean(values == value)) for value in options.values}


@dataclasses.dataclass(frozen=True)
class _Writer:
  """Writes the texts of one run, and reads their values.

  Attributes:
    name: of the run.
    run: a trained run.
    params: of its model.
    classifier: tells the values of texts.
    options: of the command.
  """

  name: str
  run: run_lib.Run
  params: Any
  classifier: text_classifier.Classifier
  options: Options

  def write(
    self,
    config: config_lib.Config,
    file: str,
    controller: controller_lib.AttributeController | None = None,
  ) -> tuple[dict[str, Any], float]:
    """A row with the texts that a config gives, and the tokens of each."""
    begin = time.perf_counter()
    samples = generation.generate(
      config,
      self.run.model,
      self.params,
      self.run.tokenizer,
      [''],
      controller=controller,
    )
    seconds = time.perf_counter() - begin
    texts = [sample.text for sample in samples]
    values = self.classifier.read(texts)
    comparison.write(
      self.options.out,
      f'{self.name}-{file}',
      [
        {'text': sample.text, 'logprob': sample.logprob, 'read': str(value)}
        for sample, value in zip(samples, values, strict=True)
      ],
    )
    num_tokens = float(np.mean([len(sample.tokens) for sample in samples]))
    row = {
      'written': texts,
      'seconds': seconds,
      'shares': _shares(self.classifier, texts, self.options),
    }
    return row, num_tokens

  def steer(
    self,
    value: str,
    examples: labelled_examples.Examples,
    unsteered: float,
    held_out: float,
  ) -> list[dict[str, Any]]:
    """A row for each method of texts that should have a value.

    Args:
      value: of the attribute.
      examples: labelled texts to learn it from.
      unsteered: share of texts with this value when nothing steers.
      held_out: share of held-out texts with it.
    """
    rows = []
    # One controller serves all methods that steer z, another those that steer
    # the decoder.
    controllers: dict[bool, controller_lib.AttributeController] = {}
    for method in self.options.methods:
      config = self.options.sampling(self.run, value, method)
      guided = method in guided_decoding.METHODS
      if guided not in controllers:
        controllers[guided] = controller_lib.fit(
          config, self.run.model, self.params, self.run.tokenizer, examples
        )
      controller = dataclasses.replace(
        controllers[guided], options=config.generate
      )
      row, num_tokens = self.write(config, f'{value}-{method}', controller)
      share = row.pop('shares')[value]
      cost = controller.cost(self.run.model, num_tokens)
      rows.append(
        {
          'value': value,
          'method': method,
          'share': share,
          'unsteered': unsteered,
          'held_out': held_out,
          'cost': dataclasses.asdict(cost),
          **row,
        }
      )
      logging.info(
        '%s towards %s=%s by %s: %.1f %% of %d texts, %.1f %% without '
        'steering, in %.0f s',
        self.name,
        self.options.attribute,
        value,
        method,
        100 * share,
        self.options.count,
        100 * unsteered,
        row['seconds'],
      )
    return rows


def _write(
  name: str,
  run: run_lib.Run,
  examples: Mapping[str, labelled_examples.Examples],
  classifier: text_classifier.Classifier,
  held_out: Mapping[str, float],
  options: Options,
) -> dict[str, Any]:
  """What a run writes without steering, and towards each value."""
  with sharding.use(run.mesh):
    restored = run.restore_params(options.checkpoint)
    writer = _Writer(name, run, restored.params, classifier, options)
    unsteered, _ = writer.write(
      comparison.sampling(
        run.config, options.temperature, options.count, options.seed
      ),
      'unsteered',
    )
    steered = []
    for value in options.values:
      steered += writer.steer(
        value, examples[value], unsteered['shares'][value], held_out[value]
      )
  return {
    'name': name,
    'workdir': str(run.workdir),
    'step': restored.step,
    'latent': run.config.model.latent.dim,
    'unsteered': unsteered,
    'steered': steered,
  }


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
  if (code := command.usage(argv, __doc__ or '', FLAGS)) is not None:
    return code
  try:
    options = Options.from_flags(command.parse_flags(argv, FLAGS))
    result = compare(options)
    file = options.out / 'steered.json'
    file.write_text(json.dumps(result, indent=2) + '\n')
  except (config_lib.ConfigError, checkpointer.MismatchError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(steered_table.table(result))
  print(f'\nwritten to {file}')
  return 0


if __name__ == '__main__':
  comparison.start()
  sys.exit(main(sys.argv))
