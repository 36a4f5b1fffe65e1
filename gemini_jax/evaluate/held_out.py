"""The loss and other sums of the held-out splits, and of each task in them."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax

from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import evaluation
from gemini_jax.parallel import compilation


def loaders(run: run_lib.Run) -> dict[loader_lib.Split, loader_lib.Loader]:
  """The batches of the held-out splits that the run's data have."""
  splits: tuple[loader_lib.Split, ...] = ('validation', 'test')
  return {
    split: run.loader(split)
    for split in splits
    if getattr(run.config.data, split)
  }


def compile_step(
  run: run_lib.Run,
  params: Any,
  loader: loader_lib.Loader,
  reference: Any = None,
) -> Any:
  """`evaluation.eval_step`, compiled once for the batches of all splits.

  Args:
    run: the run.
    params: to evaluate, or their shapes and shardings.
    loader: of any held-out split.
    reference: parameters that preferences are relative to.
  """
  batch = next(run_lib.device_batches(run, loader, [loader[0]]))
  step = jax.jit(
    functools.partial(
      evaluation.eval_step,
      model=run.model,
      whole=bool(run.config.data.tasks) and not run.config.data.pack,
      dpo=run.config.train.dpo,
    )
  )
  return compilation.timed('eval_step', step, params, batch, reference)


def evaluate(
  run: run_lib.Run,
  params: Any,
  step: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  reference: Any = None,
) -> dict[str, float]:
  """`split/name` metrics of each split and `split/TASK_name` of each task.

  Args:
    run: the run.
    params: to evaluate.
    step: of `compile_step`.
    loaders: of the splits.
    reference: parameters that preferences are relative to.
  """
  results = {}
  for split, loader in loaders.items():
    metrics = _evaluate(
      run, params, step, loader, loader.bytes_per_target, reference
    )
    results |= {f'{split}/{name}': value for name, value in metrics.items()}
    for name, number in loader.task_names.items():
      of_task = loader.of_task(number)
      metrics = _evaluate(run, params, step, of_task, None)
      if of_task.writes_media:
        # Of placeholders, which say nothing of the media; see judged_media.
        metrics.pop('accuracy', None)
        metrics.pop('token_accuracy', None)
      results |= {f'{split}/{name}_{key}': metrics[key] for key in metrics}
  return results


def _evaluate(
  run: run_lib.Run,
  params: Any,
  step: Any,
  loader: loader_lib.Loader,
  bytes_per_target: float | None,
  reference: Any = None,
) -> dict[str, float]:
  limit = run.config.evaluate.max_batches
  batches = itertools.islice(loader_lib.iterate(loader), limit)
  metrics = evaluation.evaluate(
    step,
    params,
    run_lib.device_batches(run, loader, batches),
    bytes_per_target,
    reference,
  )
  if run.config.model.output == 'numbers':
    # The loss is no likelihood, and no number is right.
    for name in ('perplexity', 'token_accuracy', 'accuracy'):
      metrics.pop(name, None)
  return metrics
