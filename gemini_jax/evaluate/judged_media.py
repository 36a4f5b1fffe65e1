"""Judged media: pictures and sounds that tasks write for held-out texts.

N examples, H x W pixels of C channels, F frames of M bands.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import splits
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  gallery,
  generation_options,
  independent_classifier,
  task_results,
)
from gemini_jax.infer import media_generation, prompts, request
from gemini_jax.parallel import processes, sharding

# Real examples that the classifier is trained on at most, classes that it can
# tell apart, and examples on a page.
_MAX_TRAINING_EXAMPLES, _MAX_CLASSES, _PAGE_SIZE = 60_000, 100, 40


def check(config: config_lib.Config):
  """ConfigError unless a task writes a medium and scikit-learn is there."""
  config_lib.check(
    bool(_tasks(config)),
    'evaluate.evaluators: judged_media needs a task of data.tasks that reads '
    'text and writes a picture or a sound',
  )
  independent_classifier.check()


def _tasks(config: config_lib.Config) -> list[task_lib.Task]:
  """The tasks that read text and write one medium."""
  if not config.data.tasks:
    return []
  return [
    task
    for task in task_lib.from_config(config.data)
    if not task.kinds('inputs')
    and len(task.targets) == 1 == len(task.kinds('targets'))
  ]


def evaluate(
  run: run_lib.Run,
  params: Any,
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """`split/TASK_accuracy` and others of media for held-out texts.

  A classifier, to which each text is a class, is trained on real media of the
  training split and judges what the model writes for texts of the last
  held-out split; see `independent_classifier.report`. A page of written media
  beside real ones goes to the samples; where there are more texts than the
  classifier can tell apart, there is nothing but the page.
  """
  split, results = list(loaders)[-1], {}
  for task in _tasks(run.config):
    begin = time.monotonic()
    texts, real = _fitting_examples(run, split, task)
    if not len(texts):
      logging.info('%s: no record of %s can be written', task.name, split)
      continue
    written = _write(run, params, task, texts, real)
    if processes.is_process_zero():
      path = task_results.page_path(run.workdir, run.config, split, task, step)
      _write_page(path, texts, written, real)
    logging.info(
      '%s: %d written in %.0f s',
      task.name,
      len(texts),
      time.monotonic() - begin,
    )
    train_texts, train_media = _real_examples(
      run, 'train', task, _MAX_TRAINING_EXAMPLES
    )
    num_classes = len(set(train_texts))
    if not 1 < num_classes <= _MAX_CLASSES:
      logging.info(
        '%s is not judged: its inputs are %d different texts, and the '
        'classifier tells 2 to %d apart',
        task.name,
        num_classes,
        _MAX_CLASSES,
      )
      continue
    report = independent_classifier.report(
      independent_classifier.fit(train_media, train_texts),
      written,
      texts,
      real,
      texts,
    )
    results |= {
      task_results.metric_name(run.config, split, task, name, 'written'): value
      for name, value in report.items()
    }
  return results


def _fitting_examples(
  run: run_lib.Run, split: loader_lib.Split, task: task_lib.Task
) -> tuple[np.ndarray, np.ndarray]:
  """Held-out texts that the model has room for, and their real media."""
  config = run.config
  texts, real = _real_examples(
    run, split, task, config.evaluate.judged_media.num_examples
  )
  num_tokens = config.model.soft_tokens(task.kinds('targets')[0])
  fitting = []
  for text in texts:
    prompt = prompts.read_prompt(
      config, run.model, run.tokenizer, _request(run, str(text))
    )
    fitting.append(generation_options.fits(prompt, config, num_tokens))
  return texts[fitting], real[fitting]


def _write(
  run: run_lib.Run,
  params: Any,
  task: task_lib.Task,
  texts: np.ndarray,
  real: np.ndarray,
) -> np.ndarray:
  """What the model writes for each text, on the canvas of the real media."""
  options, kind = run.config.evaluate.judged_media, task.kinds('targets')[0]
  samples = media_generation.generate(
    generation_options.with_options(
      run.config,
      output=kind,
      temperature=options.temperature,
      guidance=options.guidance,
    ),
    run.model,
    params,
    run.tokenizer,
    kind,
    [_request(run, str(text)) for text in texts],
    # Equal texts get draws of their own, or all their media would be the same.
    range(len(texts)),
  )
  return _on_canvas([sample.values for sample in samples], real)


def _write_page(
  path: Any, texts: np.ndarray, written: np.ndarray, real: np.ndarray
):
  """A page of pairs, some of each class."""
  num_pairs = _PAGE_SIZE // 2
  order = np.argsort(np.arange(len(texts)) % max(len(texts) // num_pairs, 1))
  chosen = sorted(order[:num_pairs], key=lambda i: texts[i])
  gallery.write(
    path,
    [gallery.as_picture(each[i]) for i in chosen for each in (written, real)],
    [f'{texts[i]}{end}' for i in chosen for end in ('', ' (real)')],
    keep=True,
  )


def _request(run: run_lib.Run, text: str) -> request.Request:
  return request.Request(text, np.asarray(run.tokenizer.encode(text), np.int32))


def _real_examples(
  run: run_lib.Run,
  split: loader_lib.Split,
  task: task_lib.Task,
  num_examples: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Texts, and the pictures or log-mel spectrograms, of real examples."""
  texts, values, sizes = [], [], []
  for text, medium in splits.written_media(
    run.config.data, run.config.model, split, task, num_examples
  ):
    texts.append(text)
    values.append(medium.values)
    sizes.append(medium.size)
  stacked = np.stack(values) if values else np.zeros(0)
  if values and task.kinds('targets')[0] == 'audio':
    spectra = jax.jit(lambda *args: run.model.apply({}, *args, method=_spectra))
    parts = [slice(i, i + 64) for i in range(0, len(stacked), 64)]
    size = np.stack(sizes)
    with sharding.on_one_device():
      stacked = np.concatenate(
        [np.asarray(spectra(stacked[part], size[part])) for part in parts]
      )
  return np.array(texts), stacked


def _spectra(model: Any, values_BN: Any, sizes_B1: Any) -> Any:
  return model.perception.spectra(values_BN, sizes_B1)


def _on_canvas(written: Sequence[np.ndarray], real: np.ndarray) -> np.ndarray:
  """Media of one shape, that of the real ones; short sounds end in silence."""
  padded = np.full((len(written), *real.shape[1:]), real.min(), real.dtype)
  for i, values in enumerate(written):
    padded[(i, *map(slice, values.shape))] = values
  return padded
