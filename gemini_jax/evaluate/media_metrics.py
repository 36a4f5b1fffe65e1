"""What a run writes, judged: media by a stranger, captions by people's.

N examples, H x W pixels of C channels, F frames of M bands.
"""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import fields, loader, splits, unusable
from gemini_jax.data import task as task_lib
from gemini_jax.evaluate import (
  caption_metrics,
  evaluation,
  gallery,
  independent_classifier,
)
from gemini_jax.infer import generation, media_generation, prompts, request
from gemini_jax.parallel import processes, sharding

# Real examples that the judge learns from at most; classes it can tell apart;
# examples on a page.
_TAUGHT, _CLASSES, _SHOWN = 60_000, 100, 40


def check(config: config_lib.Config):
  """ConfigError where `eval.judged` or `eval.captions` cannot be done."""
  judged, captioned = config.eval.judged, config.eval.captions
  config_lib.check(
    not judged or bool(judged_tasks(config)),
    f'eval.judged={judged} needs a task of data.tasks that reads text and '
    'writes a picture or a sound',
  )
  config_lib.check(
    not captioned or bool(captioned_tasks(config)),
    f'eval.captions={captioned} needs a task of data.tasks that writes text '
    'alone',
  )
  if judged:
    independent_classifier.check()
  if captioned:
    caption_metrics.check()


def captioned_tasks(config: config_lib.Config) -> list[task_lib.Task]:
  """Those that write text alone."""
  if not config.data.tasks:
    return []
  return [
    task
    for task in task_lib.from_config(config.data)
    if not task.kinds('targets')
  ]


def captions(
  run: run_lib.Run, params: Any, split: loader.Split, step: int
) -> dict[str, float]:
  """`split/TASK_bleu` and `split/TASK_cider` of what is written greedily.

  Of `eval.captions` records at most, each beside the one text that it has. A
  page of what is read, what is written and that text goes to the samples.
  """
  config, results = run.config, {}
  greedy = dataclasses.replace(
    config,
    generate=generation.neutral(
      config.generate,
      count=1,
      beam_size=1,
      temperature=0.0,
      guidance=0.0,
      max_tokens=config.data.sequence_length,
    ),
  )
  for task in captioned_tasks(config):
    requests, references = [], []
    seen = task.drop_kinds(config.data.drop_kinds)
    for source, record in splits.spread_records(
      config.data, split, config.eval.captions
    ):
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
      if _fits(run, asked):
        requests.append(asked)
        references.append([texts[-1]])
    if not requests:
      logging.info('%s: no record of %s can be read', task.name, split)
      continue
    samples = generation.generate(
      greedy, run.model, params, run.tokenizer, requests
    )
    texts = [own.text for own in samples]
    values = caption_metrics.report(texts, references)
    results |= {
      _metric(config, split, task, name): value
      for name, value in values.items()
    }
    if processes.is_process_zero() and seen.kinds('inputs'):
      first = seen.kinds('inputs')[0]
      gallery.write(
        _page(run, split, task, step),
        [asked.media[first][0].content for asked in requests[:_SHOWN]],
        [
          f'{text}\n({own[0]})'
          for text, own in zip(texts[:_SHOWN], references, strict=False)
        ],
        config.model.audio.sample_rate,
        keep=True,
      )
  return results


def judged_tasks(config: config_lib.Config) -> list[task_lib.Task]:
  """Those that write one medium of text."""
  if not config.data.tasks:
    return []
  return [
    task
    for task in task_lib.from_config(config.data)
    if not task.kinds('inputs')
    and len(task.targets) == 1 == len(task.kinds('targets'))
  ]


def appraise(
  run: run_lib.Run, params: Any, split: loader.Split, step: int
) -> dict[str, float]:
  """`split/TASK_accuracy` and others of what is written for held-out texts.

  A classifier of the texts that real media of the training split have, to
  which a text is a class, judges as many as `eval.judged` says; see
  `judge.report`. A page of them, real ones beside them, goes to the samples;
  where there are more texts than it tells apart, nothing else.
  """
  config, results = run.config, {}
  for task in judged_tasks(config):
    begin = time.monotonic()
    texts, values = _real(run, 'train', task, _TAUGHT)
    classes = len(set(texts))
    wished, real = _real(run, split, task, config.eval.judged)
    room = config.model.soft_tokens(task.kinds('targets')[0])
    fitting = [_fits(run, _request(run, str(text)), room) for text in wished]
    wished, real = wished[fitting], real[fitting]
    if not len(wished):
      logging.info('%s: no record of %s can be written', task.name, split)
      continue
    found = media_generation.generate(
      dataclasses.replace(
        config,
        generate=generation.neutral(
          config.generate, count=1, output=task.kinds('targets')[0]
        ),
      ),
      run.model,
      params,
      run.tokenizer,
      task.kinds('targets')[0],
      [_request(run, str(text)) for text in wished],
      # Each by its own draws, or what is alike would be so by chance.
      range(len(wished)),
    )
    written = _same_size([own.values for own in found], real)
    if processes.is_process_zero():
      # Some of each class.
      pairs = _SHOWN // 2
      order = np.argsort(np.arange(len(wished)) % max(len(wished) // pairs, 1))
      chosen = sorted(order[:pairs], key=lambda i: wished[i])
      gallery.write(
        _page(run, split, task, step),
        [drawn(own[i]) for i in chosen for own in (written, real)],
        [f'{wished[i]}{end}' for i in chosen for end in ('', ' (real)')],
        keep=True,
      )
    logging.info(
      '%s: %d written in %.0f s',
      task.name,
      len(wished),
      time.monotonic() - begin,
    )
    if not 1 < classes <= _CLASSES:
      logging.info(
        '%s is not judged: its inputs are %d different texts, and a judge '
        'tells 2 to %d apart',
        task.name,
        classes,
        _CLASSES,
      )
      continue
    stranger = independent_classifier.fit(values, texts)
    report = independent_classifier.report(
      stranger, written, wished, real, wished
    )
    results |= {
      _metric(config, split, task, name, 'written'): value
      for name, value in report.items()
    }
  return results


def show_batch(run: run_lib.Run, batch: batch_lib.Batch):
  """A page of what some rows of a batch hold, as they are trained on."""
  items, captions = [], []
  for row in range(min(_SHOWN, len(batch.targets))):
    ids = batch.targets[row][batch.weights[row] > 0]
    ids = ids[ids < run.tokenizer.vocab_size]
    text = run.tokenizer.decode(ids[ids != run.tokenizer.eos_id].tolist())
    for sequence in filter(None, (batch.encoder, batch.decoder)):
      for own in sequence.media.values():
        for values, size in zip(own.values[row], own.sizes[row], strict=True):
          if size.all():
            items.append(_cut(values, size))
            captions.append(text)
  if items:
    gallery.write(
      run.workdir / 'samples' / '00000000-train.png',
      items[:_SHOWN],
      captions[:_SHOWN],
      run.config.model.audio.sample_rate,
    )


def _page(
  run: run_lib.Run, split: loader.Split, task: task_lib.Task, step: int
) -> pathlib.Path:
  """Where a page of a task goes."""
  parts = f'{step:08d}', split, _name(run.config, task)
  return run.workdir / 'samples' / f'{"-".join(filter(None, parts))}.png'


def _metric(
  config: config_lib.Config,
  split: str,
  task: task_lib.Task,
  name: str,
  plain: str = '',
) -> str:
  """A metric's name; `plain` stands for a task that needs none."""
  parts = _name(config, task) or plain, name
  return f'{split}/{"_".join(filter(None, parts))}'


def _name(config: config_lib.Config, task: task_lib.Task) -> str:
  """A task's own, or its number among several."""
  tasks = task_lib.from_config(config.data)
  return task.name or (str(tasks.index(task)) if len(tasks) > 1 else '')


def _fits(run: run_lib.Run, asked: request.Request, room: int = 1) -> bool:
  prompt = prompts.read_prompt(run.config, run.model, run.tokenizer, asked)
  return evaluation.fits(prompt, run.config, room)


def _cut(values: np.ndarray, size: np.ndarray) -> np.ndarray:
  """A medium without what lies beyond its extent."""
  return values[tuple(map(slice, size))]


def drawn(values: np.ndarray) -> np.ndarray:
  """A picture as it is, a log-mel spectrogram as one: low sounds below."""
  if values.dtype == np.uint8:
    return values
  shade = np.clip((values.T[::-1] + 2) / 4, 0, 1)
  return np.round(255 * shade).astype(np.uint8)[..., None]


def _request(run: run_lib.Run, text: str) -> request.Request:
  return request.Request(text, np.asarray(run.tokenizer.encode(text), np.int32))


def _real(
  run: run_lib.Run, split: loader.Split, task: task_lib.Task, most: int
) -> tuple[np.ndarray, np.ndarray]:
  """Inputs, and the pictures or log-mel spectrograms, of real examples."""
  texts, values, sizes = [], [], []
  for text, medium in splits.written_media(
    run.config.data, run.config.model, split, task, most
  ):
    texts.append(text)
    values.append(medium.values)
    sizes.append(medium.size)
  stacked = np.stack(values) if values else np.zeros(0)
  if values and task.kinds('targets')[0] == 'audio':
    spectra = jax.jit(lambda *own: run.model.apply({}, *own, method=_spectra))
    parts = [slice(i, i + 64) for i in range(0, len(stacked), 64)]
    size = np.stack(sizes)
    with sharding.on_one_device():
      stacked = np.concatenate(
        [np.asarray(spectra(stacked[part], size[part])) for part in parts]
      )
  return np.array(texts), stacked


def _spectra(model: Any, values_BN: Any, sizes_B1: Any) -> Any:
  return model.perception.spectra(values_BN, sizes_B1)


def _same_size(written: Sequence[np.ndarray], real: np.ndarray) -> np.ndarray:
  """Written ones on the canvas of the real ones; a sound ends in silence."""
  found = np.full((len(written), *real.shape[1:]), real.min(), real.dtype)
  for i, own in enumerate(written):
    found[(i, *map(slice, own.shape))] = own
  return found
