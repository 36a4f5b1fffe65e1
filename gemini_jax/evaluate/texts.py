"""Texts: what tasks write of held-out records, scored as translations are."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import fields, splits, unusable
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  generation_options,
  report_files,
  task_results,
  text_metrics,
)
from gemini_jax.infer import generation, prompts, request


class Example(NamedTuple):
  """A held-out record of a task that writes text.

  Attributes:
    asked: its inputs.
    reference: the text that answers them.
    num_tokens: of the inputs; None: more than the model can read.
  """

  asked: request.Request
  reference: str
  num_tokens: int | None


def check(config: config_lib.Config):
  """ConfigError unless there is text to write, and what scores it."""
  config_lib.check(
    bool(tasks(config)),
    'evaluate.evaluators: texts needs inputs and a text that answers them; set '
    'data.inputs_field and data.targets_field, or a task of data.tasks that '
    'writes text alone',
  )
  names = config.evaluate.texts.metrics
  config_lib.check(
    len(set(names)) == len(names) > 0,
    f'evaluate.texts.metrics={names!r} must be different metrics, one at least',
  )
  config_lib.check(
    'bleu' not in names or 'captions' not in config.evaluate.evaluators,
    'evaluate.evaluators: captions and texts both give a bleu; take one of '
    'them out, or bleu out of evaluate.texts.metrics',
  )
  text_metrics.check(names)


def tasks(config: config_lib.Config) -> list[task_lib.Task]:
  """The tasks that read inputs and write text alone."""
  return [
    task
    for task in task_lib.from_config(config.data)
    if task.inputs is not None
    and {piece.kind for piece in task.targets}
    <= {task_lib.TEXT, task_lib.LITERAL}
  ]


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """The metrics of `evaluate.texts` of the last held-out split.

  Such as `test/TASK_bleu`, with `_low` and `_high`. Inputs that the model
  cannot read count as answered by nothing. All texts go into reports/, with the
  signatures of the metrics.
  """
  split, results = list(loaders)[-1], {}
  options = run.config.evaluate.texts
  config = generation_options.with_options(
    run.config,
    temperature=0.0,
    max_tokens=run.config.data.sequence_length,
    beam_size=options.beam_size,
    length_penalty=options.length_penalty,
  )
  for task in tasks(run.config):
    of_task = examples(run, split, task, options.num_examples)
    if not of_task:
      logging.info('%s: no record of %s can be read', task.name, split)
      continue
    texts = write(config, run, params, of_task)
    metrics, signatures = text_metrics.report(
      options.metrics, texts, [example.reference for example in of_task]
    )
    report = report_files.Report(
      step,
      split,
      task_results.name(run.config, task),
      'texts',
      metrics,
      notes=signatures,
      details=[
        {
          'inputs': example.asked.text,
          'text': text,
          'reference': example.reference,
        }
        for text, example in zip(texts, of_task, strict=True)
      ],
    )
    report_files.write(run.workdir, report, {})
    results |= {
      task_results.metric_name(run.config, split, task, name): value
      for name, value in metrics.items()
    }
  return results


def examples(
  run: run_lib.Run,
  split: loader_lib.Split,
  task: task_lib.Task,
  limit: int | None,
) -> list[Example]:
  """Records of a split at even distances, as inputs of a task and a text.

  Those that cannot be read are left out.

  Args:
    run: the run.
    split: held out.
    task: that writes text alone.
    limit: how many at most; None: all.
  """
  config, found = run.config, []
  for source, record in splits.spread_records(config.data, split, limit):
    try:
      asked = request.from_record(
        config,
        run.tokenizer,
        task,
        record,
        names=source.names,
        folder=source.rows.folder,
      )
      texts = fields.texts_of(source, record, task)
    except unusable.UnusableError:
      continue
    prompt = prompts.read_prompt(config, run.model, run.tokenizer, asked)
    num_tokens = None
    if generation_options.fits(prompt, config):
      inputs = () if prompt.inputs is None else prompt.inputs
      num_tokens = len(prompt.tokens) + len(inputs)
    found.append(Example(asked, texts[-1], num_tokens))
  return found


def write(
  config: config_lib.Config,
  run: run_lib.Run,
  params: Any,
  of_task: Sequence[Example],
) -> list[str]:
  """What the model writes for each example; '' where it cannot read the inputs.

  Args:
    config: of the run, with the section `generate` to use.
    run: the run.
    params: of the model.
    of_task: examples of a task.
  """
  # Together with those of about the same length, since a batch goes on until
  # all of its texts have ended.
  order = sorted(
    (example.num_tokens, i)
    for i, example in enumerate(of_task)
    if example.num_tokens is not None
  )
  if len(order) < len(of_task):
    logging.warning(
      '%d of %d inputs are longer than the model can read',
      len(of_task) - len(order),
      len(of_task),
    )
  samples = generation.generate(
    config,
    run.model,
    params,
    run.tokenizer,
    [of_task[i].asked for _, i in order],
  )
  texts = [''] * len(of_task)
  for (_, i), sample in zip(order, samples, strict=True):
    texts[i] = sample.text
  return texts
