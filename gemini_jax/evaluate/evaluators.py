"""The evaluators by name. A new one is a file here and a line below.

An evaluator is a function of a run, parameters, the loaders of the held-out
splits and the step that the parameters are of; it returns metrics by names such
as `test/bleu`. It never sees a training state. Every process calls it alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import (
  captions,
  classification,
  exact_match,
  judged_media,
  prompt_samples,
  regression,
  retrieval,
  sequence_likelihood,
  texts,
)

Loaders = Mapping[loader_lib.Split, loader_lib.Loader]


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """What a name in `evaluate.evaluators` stands for.

  Attributes:
    evaluate: of (run, params, loaders, step): metrics.
    check: refuses a config that the evaluator cannot serve; called before any
      work.
    check_run: refuses what only an opened run can tell, such as a prompt with
      too many tokens; called before the first step.
    needs_held_out: whether there must be a held-out split.
  """

  evaluate: Callable[[run_lib.Run, Any, Loaders, int], dict[str, float]]
  check: Callable[[config_lib.Config], None] = lambda config: None
  check_run: Callable[[run_lib.Run], None] = lambda run: None
  needs_held_out: bool = True


EVALUATORS = {
  'captions': Evaluator(captions.evaluate, captions.check),
  'classification': Evaluator(
    classification.evaluate, classification.check, classification.check_run
  ),
  'exact_match': Evaluator(exact_match.evaluate, exact_match.check),
  'judged_media': Evaluator(judged_media.evaluate, judged_media.check),
  'likelihood': Evaluator(
    sequence_likelihood.evaluate, sequence_likelihood.check
  ),
  'regression': Evaluator(regression.evaluate, regression.check),
  'retrieval': Evaluator(retrieval.evaluate, retrieval.check),
  'samples': Evaluator(
    prompt_samples.evaluate,
    prompt_samples.check,
    prompt_samples.check_run,
    needs_held_out=False,
  ),
  'texts': Evaluator(texts.evaluate, texts.check),
}


def check(config: config_lib.Config):
  """Refuses evaluators that the config cannot serve, before any work.

  Raises:
    ConfigError: a name is unknown or given twice, or the data or the model of
      the run are not what an evaluator needs.
  """
  names = config.evaluate.evaluators
  for name in names:
    config_lib.check(
      name in EVALUATORS,
      f'evaluate.evaluators: {name!r} is not an evaluator'
      f'{config_lib.nearest(name, EVALUATORS)}',
    )
    config_lib.check(
      names.count(name) == 1, f'evaluate.evaluators: {name!r} is there twice'
    )
    config_lib.check(
      not EVALUATORS[name].needs_held_out
      or bool(config.data.validation or config.data.test),
      f'evaluate.evaluators: {name} needs data.validation or data.test',
    )
    EVALUATORS[name].check(config)


def check_run(run: run_lib.Run):
  """Refuses what only an opened run can tell.

  Raises:
    ConfigError: such as for a prompt that the model cannot read.
  """
  for name in run.config.evaluate.evaluators:
    EVALUATORS[name].check_run(run)


def evaluate(
  run: run_lib.Run, params: Any, loaders: Loaders, step: int
) -> dict[str, float]:
  """The metrics of all evaluators that `evaluate.evaluators` names."""
  results = {}
  for name in run.config.evaluate.evaluators:
    results |= EVALUATORS[name].evaluate(run, params, loaders, step)
  return results
