"""Captions: text that tasks write, compared with the text of the records."""

import logging
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  caption_metrics,
  gallery,
  generation_options,
  task_results,
)
from gemini_jax.evaluate import texts as texts_lib
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
  """The tasks of data.tasks that write text alone."""
  return texts_lib.tasks(config) if config.data.tasks else []


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
    examples = [
      example
      for example in texts_lib.examples(
        run, split, task, run.config.evaluate.captions.num_examples
      )
      if example.num_tokens is not None
    ]
    if not examples:
      logging.info('%s: no record of %s can be read', task.name, split)
      continue
    texts = texts_lib.write(greedy, run, params, examples)
    metrics = caption_metrics.report(
      texts, [[example.reference] for example in examples]
    )
    results |= {
      task_results.metric_name(run.config, split, task, name): value
      for name, value in metrics.items()
    }
    kinds = [
      kind
      for kind in task.drop_kinds(run.config.data.drop_kinds).kinds('inputs')
      if kind in config_lib.MEDIA
    ]
    if processes.is_process_zero() and kinds:
      gallery.write(
        task_results.page_path(run.workdir, run.config, split, task, step),
        [
          example.asked.media[kinds[0]][0].content
          for example in examples[:_PAGE_SIZE]
        ],
        [
          f'{text}\n({example.reference})'
          for text, example in zip(
            texts[:_PAGE_SIZE], examples[:_PAGE_SIZE], strict=True
          )
        ],
        run.config.model.audio.sample_rate,
        keep=True,
      )
  return results
