"""`--mode=predict`: predictions for the records of a file.

Records are read, and predictions written, a batch at a time. A run that was
ended goes on with what it wrote.
"""

import collections
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.commands import prediction_file
from gemini_jax.data import (
  class_targets,
  fields,
  media_reader,
  numbers,
  packing,
  record_files,
  transforms,
  unusable,
)
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  class_predictions,
  classification_metrics,
  generation_options,
  tags,
)
from gemini_jax.infer import generation, prompts, request
from gemini_jax.parallel import compilation, sharding

_SECONDS_BETWEEN_LINES = 10


class _Example(NamedTuple):
  """What the model is to read of a record.

  Attributes:
    asked: the inputs of the task.
    words: those that get a tag each.
    tokens: of a task with an output of its own, as of
      `class_targets.classified`.
    classes: likewise, each of them class 0.
  """

  asked: request.Request
  words: tuple[str, ...] = ()
  tokens: np.ndarray = np.zeros(0, np.int32)
  classes: np.ndarray = np.zeros(0, np.uint16)


# Of each record of a batch its example, or why there is none.
_Chunk = list[tuple[str, _Example | unusable.UnusableError]]


def predict(config: config_lib.Config, workdir: str | os.PathLike):
  """Writes a prediction for each record of `predict.source`.

  A record that cannot be used gets an error in its line.

  Raises:
    ConfigError: there is no checkpoint, or the source or the output cannot be
      used.
  """
  config_lib.check(
    jax.process_count() == 1, '--mode=predict runs in one process'
  )
  task = _task(config)
  output = _output(config)
  source = host.expand_path(config.predict.source)
  config_lib.check(bool(config.predict.source), "predict.source='' is no file")
  try:
    identity = record_files.check(source, task)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'predict.source: {error}') from error
  run = run_lib.open_run(config, workdir)
  compilation.enable_cache(config)
  size = config.evaluate.batch_size or config.data.batch_size
  predicted = _texts if task.head is None else _outputs
  with sharding.use(run.mesh):
    restored = run.restore_params(
      config.evaluate.checkpoint, 'evaluate.checkpoint'
    )
    how = config.evaluate.test_time_views if task.head else _text(run)
    of_model = str(run.workdir.absolute()), restored.step, config.predict, how
    key = hashlib.sha256(repr((identity, *of_model)).encode()).hexdigest()
    file = prediction_file.PredictionFile(output, key, size)
    num, num_errors = file.num_lines, file.num_errors
    last = time.monotonic()
    if num:
      logging.info('going on after %s records', f'{num:,}')
    records = itertools.islice(record_files.records(source, task), num, None)
    chunks = _chunks(run, task, records, size)
    for lines in predicted(run, restored.params, chunks, size):
      file.write(lines)
      num += len(lines)
      num_errors += sum('error' in line for line in lines)
      if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
        last = time.monotonic()
        logging.info('%s records', f'{num:,}')
    config_lib.check(num > 0, f'predict.source: {source} holds no record')
    file.finish()
  print(f'{num:,} records in {output}; {num_errors:,} of them with an error')


def _task(config: config_lib.Config) -> task_lib.Task:
  """The task that is asked for.

  Raises:
    ConfigError: there is none, or several, or it writes media.
  """
  name = config.predict.task
  tasks = [
    task
    for task in task_lib.from_config(config.data)
    if task.inputs is not None and name in ('', task.name)
  ]
  names = ', '.join(t.name for t in task_lib.from_config(config.data))
  config_lib.check(
    len(tasks) == 1,
    f'predict.task={name!r} names {len(tasks) or "none"} of the tasks of this '
    f'run ({names or "without names"}), where one is needed; plain text is '
    'continued by --mode=generate',
  )
  (task,) = tasks
  config_lib.check(
    not task.kinds('targets'),
    f'predict.task={name!r} writes {"".join(task.kinds("targets"))}: use '
    '--mode=generate',
  )
  return task


def _output(config: config_lib.Config) -> pathlib.Path:
  """The file to write.

  Raises:
    ConfigError: it is there, or has another ending, or no folder.
  """
  path = host.expand_path(config.predict.output)
  field = f'predict.output={config.predict.output!r}'
  config_lib.check(
    path.suffix == '.jsonl', f'{field} must be a file that ends in .jsonl'
  )
  config_lib.check(
    path.parent.is_dir(), f'{field}: {path.parent} is not a folder'
  )
  config_lib.check(not path.exists(), f'{field} is there; move it away')
  return path


def _chunks(
  run: run_lib.Run,
  task: task_lib.Task,
  records: Iterable[record_files.Record],
  size: int,
) -> Iterator[_Chunk]:
  """Examples of `size` records at a time."""
  records = iter(records)
  while some := list(itertools.islice(records, size)):
    chunk: _Chunk = []
    for record in some:
      try:
        example = _example(run, task, record)
      except unusable.UnusableError as error:
        example = error
      chunk.append((record.name, example))
    yield chunk


def _example(
  run: run_lib.Run, task: task_lib.Task, record: record_files.Record
) -> _Example:
  """What the model reads of a record.

  Raises:
    UnusableError: it cannot be used, or is too long.
  """
  if isinstance(record.values, unusable.UnusableError):
    raise record.values
  config, piece = run.config, task.head
  asked = request.from_record(
    config, run.tokenizer, task, record.values, folder=record.folder
  )
  if piece is None:
    prompt = prompts.read_prompt(config, run.model, run.tokenizer, asked)
    if not generation_options.fits(prompt, config):
      raise unusable.UnusableError('too long')
    return _Example(asked)
  words = ()
  if piece.kind == task_lib.TAGS:
    assert task.inputs is not None
    words = fields.words_of(record.values, task.inputs[0])
    tokens, classes = class_targets.classified(
      (asked.text,),
      transforms.Classes((0,) * len(words), are_of_words=True),
      run.tokenizer,
    )
  else:
    tokens, classes = class_targets.with_classes(
      asked.tokens, [len(asked.tokens) + 1], [0], run.tokenizer
    )
  first = np.array([len(tokens) - 1])
  if not transforms.fits(first, first, config.data).all():
    raise unusable.UnusableError(f'too long: {len(tokens) - 1} tokens')
  return _Example(asked, words, tokens, classes)


def _texts(
  run: run_lib.Run, params: Any, chunks: Iterable[_Chunk], size: int
) -> Iterator[list[dict[str, Any]]]:
  """Lines of each chunk: texts that the model writes, and their probability."""
  del size
  config = dataclasses.replace(run.config, generate=_text(run))
  for chunk in chunks:
    asked = [e.asked for _, e in chunk if isinstance(e, _Example)]
    samples = []
    if asked:
      samples = generation.generate(
        config, run.model, params, run.tokenizer, asked
      )
    yield _lines(
      chunk,
      (
        {
          'prediction': sample.text,
          'probability': float(np.exp(sum(sample.logprobs))),
        }
        for sample in samples
      ),
    )


def _lines(
  chunk: _Chunk, predictions: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
  """A line for each record: the prediction of its example, or its error."""
  rest = iter(predictions)
  return [
    {'record': name}
    | (next(rest) if isinstance(example, _Example) else {'error': str(example)})
    for name, example in chunk
  ]


def _text(run: run_lib.Run) -> config_lib.Generate:
  """How texts are written: the likeliest tokens or beams, to their end."""
  return dataclasses.replace(
    run.config.generate,
    temperature=0.0,
    count=1,
    max_tokens=run.config.data.sequence_length,
    prompt='',
    prompts='',
  )


def _outputs(
  run: run_lib.Run, params: Any, chunks: Iterable[_Chunk], size: int
) -> Iterator[list[dict[str, Any]]]:
  """Lines of each chunk: classes, labels or numbers."""
  waiting: collections.deque[_Chunk] = collections.deque()

  def batches():
    for chunk in chunks:
      waiting.append(chunk)
      examples = [e for _, e in chunk if isinstance(e, _Example)]
      batch = _batch(run, examples, size)
      yield sharding.put_batch(run.mesh, batch, np.arange(size), size)

  for part in class_predictions.of_batches(run, params, batches()):
    chunk = waiting.popleft()
    examples = [e for _, e in chunk if isinstance(e, _Example)]
    yield _lines(
      chunk,
      (
        _named(run.config, example, part.outputs_NC[part.examples_N == number])
        for number, example in enumerate(examples)
      ),
    )


def _named(
  config: config_lib.Config, example: _Example, probabilities_WC: np.ndarray
) -> dict[str, Any]:
  """The class of an example with probabilities, or those of its words.

  Or its labels, or its number, in the units of the data.
  """
  names = config.data.label_names
  piece = task_lib.head(config.data)
  assert piece is not None
  if piece.kind == task_lib.NUMBER:
    (number,) = numbers.restored(probabilities_WC[0], piece, config.data)
    return {'prediction': float(number)}
  if example.words:
    tags_W = tags.likeliest(names, probabilities_WC)
    return {
      'words': example.words,
      'prediction': [names[i] for i in tags_W],
      'probability': [
        float(of_tags_C[i])
        for of_tags_C, i in zip(probabilities_WC, tags_W, strict=True)
      ],
    }
  order = np.argsort(-probabilities_WC[0], kind='stable')
  of_names = lambda indices: {
    names[i]: float(probabilities_WC[0, i]) for i in indices
  }
  top = of_names(order[: config.predict.top])
  if piece.kind == task_lib.LABELS:
    is_label_C = probabilities_WC[0] >= classification_metrics.THRESHOLD
    labels = of_names(i for i in order if is_label_C[i])
    return {
      'prediction': [*labels],
      'probability': [*labels.values()],
      'probabilities': top,
    }
  return {
    'prediction': names[order[0]],
    'probability': float(probabilities_WC[0, order[0]]),
    'probabilities': top,
  }


def _batch(
  run: run_lib.Run, examples: Sequence[_Example], size: int
) -> batch_lib.Batch:
  """A batch of `size` rows laid out as in training, one example a row."""
  config = run.config
  nothing = np.zeros(0, np.int32)
  tokens = np.concatenate([nothing, *(e.tokens for e in examples)])
  classes = np.concatenate(
    [nothing.astype(np.uint16), *(e.classes for e in examples)]
  )
  lengths = np.array([len(e.tokens) for e in examples], np.int64)
  pieces = packing.Pieces(
    np.arange(len(examples)),
    np.cumsum(lengths) - lengths,
    lengths - 1,
    lengths - 1,
  )
  batch = transforms.assemble(
    *(tokens, pieces, size, config.data, run.tokenizer), classes=classes
  )
  asked = [example.asked for example in examples]
  # Of the shapes of training, whatever the examples are.
  blank = media_reader.blank(config.data, config.model, size)
  name = 'encoder' if config.data.objective == 'seq2seq' else 'decoder'
  for kind, media in request.stack_media(config.model, asked, size).items():
    filled, count = blank[name][kind], media.sizes.shape[1]
    filled.values[:, :count], filled.sizes[:, :count] = (
      media.values,
      media.sizes,
    )
  sequences = {
    part: dataclasses.replace(getattr(batch, part), media=by_kind)
    for part, by_kind in blank.items()
  }
  return dataclasses.replace(batch, **sequences)
