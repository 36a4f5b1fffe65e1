"""Captions: text that tasks write, compared with the text of the records."""

import logging
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import fields, splits, unusable
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  caption_metrics,
  gallery,
  generation_options,
  task_results,
)
from gemini_jax.infer import generation, prompts, request
from gemini_jax.parallel import processes

# Examples on a page.
_PAGE_SIZE = 40


def check(config: config_lib.Config):
  """ConfigError unless a task writes text alone and sacrebleu is there."""
  config_lib.check(
    bool(_tasks(config)),
    'evaluate.evaluators: captions needs a task of data.tasks that writes text '
    'alone',
  )
  caption_metrics.check()


def _tasks(config: config_lib.Config) -> list[task_lib.Task]:
  """The tasks that write text alone."""
  if not config.data.tasks:
    return []
  return [
    task
    for task in task_lib.from_config(config.data)
    if not task.kinds('targets')
  ]


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`split/TASK_bleu` and `split/TASK_cider` of the last held-out split.

  Text is written greedily for `evaluate.captions.num_examples` records and
  compared with the one text that each record has. A page of the first medium
  that was read, of what was written and of the record's text goes to the
  samples.
  """
  split, results = list(loaders)[-1], {}
  greedy = generation_options.with_options(
    run.config, temperature=0.0, max_tokens=run.config.data.sequence_length
  )
  for task in _tasks(run.config):
    requests, references = _examples(run, split, task)
    if not requests:
      logging.info('%s: no record of %s can be read', task.name, split)
      continue
    samples = generation.generate(
      greedy, run.model, params, run.tokenizer, requests
    )
    texts = [sample.text for sample in samples]
    metrics = caption_metrics.report(texts, [[text] for text in references])
    results |= {
      task_results.metric_name(run.config, split, task, name): value
      for name, value in metrics.items()
    }
    kinds = task.drop_kinds(run.config.data.drop_kinds).kinds('inputs')
    if processes.is_process_zero() and kinds:
      gallery.write(
        task_results.page_path(run.workdir, run.config, split, task, step),
        [asked.media[kinds[0]][0].content for asked in requests[:_PAGE_SIZE]],
        [
          f'{text}\n({reference})'
          for text, reference in zip(
            texts[:_PAGE_SIZE], references[:_PAGE_SIZE], strict=True
          )
        ],
        run.config.model.audio.sample_rate,
        keep=True,
      )
  return results


def _examples(
  run: run_lib.Run, split: loader_lib.Split, task: task_lib.Task
) -> tuple[list[request.Request], list[str]]:
  """Requests of a task that fit the model, and the texts that answer them."""
  config, requests, references = run.config, [], []
  num_examples = config.evaluate.captions.num_examples
  for source, record in splits.spread_records(config.data, split, num_examples):
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
    if generation_options.fits(prompt, config):
      requests.append(asked)
      references.append(texts[-1])
  return requests, references
