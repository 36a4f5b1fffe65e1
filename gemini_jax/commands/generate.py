"""Texts, pictures and sounds from a trained run."""

import dataclasses
import json
import logging
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import draft_model, open_adapters
from gemini_jax.evaluate import gallery
from gemini_jax.infer import (
  generation,
  media_generation,
  prompt_file,
  prompts,
  request,
  waveform,
)
from gemini_jax.infer import samples as samples_lib
from gemini_jax.parallel import compilation, processes, sharding
from gemini_jax.steer import controller as controller_lib


def generate(config: config_lib.Config, workdir: str | os.PathLike):
  """Continues `generate.prompt` (or reads it, with an encoder) and shows it.

  A run of tasks is asked for one of them, with the media that it reads; what
  is written may be a medium.

  Raises:
    ConfigError: there is no checkpoint, the prompt does not fit, or what is
      asked for is none of the run's tasks.
  """
  # In a scan the weights of one layer at a time are converted, not of all.
  model = dataclasses.replace(config.model, scan_layers=True)
  run = run_lib.open_run(dataclasses.replace(config, model=model), workdir)
  _check_media(run.config)
  if config.generate.output != 'text':
    _check_writable(run.workdir / 'samples')
  asked = _asked(run)
  # What the output continues is shown before it.
  continued = set()
  if config.generate.output == 'text':
    parts = run.config, run.model, run.tokenizer
    read = [prompts.read_prompt(*parts, line.prompt) for line in asked]
    continued = {prompt.text for prompt in read if prompt.prefix}
  # Errors in `generate.steer` come before anything is computed.
  examples = (
    controller_lib.choose_examples(config) if config.generate.steer else None
  )
  compilation.enable_cache(run.config)
  with sharding.use(run.mesh):
    restored = run.restore_params(config.generate.checkpoint)
    logging.info('generating with step %d', restored.step)
    params = restored.params
    parts = run.config, run.model, params, run.tokenizer
    if config.generate.output != 'text':
      _write_media(run, restored.step, params)
      return
    controller = controller_lib.fit(*parts, examples) if examples else None
    draft = draft_model.open_draft(run)
    adapters = open_adapters.open_adapters(
      run, restored, [line.adapter for line in asked]
    )
    # Several samples grow side by side; only one can be shown as it grows.
    alone = len(asked) == config.generate.count == 1
    begun = False

    def show(index: int, text: str):
      nonlocal begun
      del index
      lead = read[0].text if continued and not begun else ''
      begun = True
      sys.stdout.write(lead + text)
      sys.stdout.flush()

    samples = generation.generate(
      *parts,
      [line.prompt for line in asked],
      on_text=show if alone else None,
      controller=controller,
      draft=draft,
      adapters=adapters,
    )
    if not alone:
      blocks = [
        f'--- {number} of {len(samples)}'
        f'{sample.adapter and f", {sample.adapter}"} ---\n'
        f'{sample.prompt if sample.prompt in continued else ""}{sample.text}'
        for number, sample in enumerate(samples, 1)
      ]
      sys.stdout.write('\n'.join(blocks))
    report = ''
    if controller is not None:
      report = _report(controller, parts, samples)
  try:
    path = _claim(run, restored.step)
    samples_lib.write_samples(path, samples)
    where = f'written to {path}'
  except OSError as error:
    # On a disk that can only be read the text is worth as much.
    where = f'not written to {run.workdir / "samples"}: {error.strerror}'
  print(f'\n\n{report}{where}')


def _asked(run: run_lib.Run) -> list[prompt_file.Line]:
  """The prompts, and the adapter that answers each."""
  options = run.config.generate
  if options.prompts:
    return prompt_file.read(options.prompts, options.adapters)
  asked: prompts.Asked = options.prompt
  if run.config.data.tasks:
    asked = request.from_options(run.config, run.tokenizer)
  return [prompt_file.Line(asked, name) for name in options.adapters or ('',)]


def _claim(run: run_lib.Run, step: int) -> pathlib.Path:
  """A new file for samples; those of an earlier call stay."""
  folder = run.workdir / 'samples'
  return samples_lib.claim(folder / f'{step:08d}-generate.jsonl')


def _check_media(config: config_lib.Config):
  """ConfigError for media that are asked for where there are no tasks."""
  options = config.generate
  if config.data.tasks:
    return
  for name in (*config_lib.MEDIA, 'task'):
    value = getattr(options, name)
    config_lib.check(
      not value, f'generate.{name}={value!r} needs a model of data.tasks'
    )
  config_lib.check(
    options.output == 'text',
    f'generate.output={options.output!r} needs a model of data.tasks that '
    'writes it',
  )


def _check_writable(folder: pathlib.Path):
  """ConfigError unless media can be written, before any work on them."""
  try:
    folder.mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise config_lib.ConfigError(
      f'{folder} cannot be written: {error.strerror}'
    ) from error


def _write_media(run: run_lib.Run, step: int, params: Any):
  """Writes media to files, with a line for each."""
  asked = request.from_options(run.config, run.tokenizer)
  options = run.config.generate
  begin = time.monotonic()
  samples = media_generation.generate(
    run.config, run.model, params, run.tokenizer, options.output, [asked]
  )
  path = _claim(run, step)
  lines, audio = [], run.config.model.audio
  for i, sample in enumerate(samples):
    medium = path.with_name(f'{path.stem}-{i + 1:03d}')
    if options.output == 'image':
      medium = medium.with_suffix('.png')
      if processes.is_process_zero():
        gallery.write_picture(medium, sample.values)
    elif processes.is_process_zero():
      scale: dict[str, Any] = {
        'sample_rate': audio.sample_rate,
        'hop_samples': audio.hop_samples,
      }
      scale |= {'f_min': audio.f_min, 'f_max': audio.top}
      waveform.write_spectrogram(
        medium.with_suffix('.png'), sample.values, **scale, title=sample.prompt
      )
      sound = waveform.from_log_mel(
        sample.values,
        **scale,
        window_samples=audio.window_samples,
        num_mels=audio.num_mels,
      )
      medium = medium.with_suffix('.wav')
      waveform.write_wav(medium, sound, audio.sample_rate)
    lines.append(
      {'prompt': sample.prompt, 'file': medium.name, 'z': sample.z.tolist()}
    )
  page = path.with_suffix('.png')
  if processes.is_process_zero():
    path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    gallery.write(
      page,
      [gallery.as_picture(sample.values) for sample in samples],
      [asked.text] * len(samples),
    )
  print(
    f'{asked.text}: {len(samples)} written to {path} in '
    f'{time.monotonic() - begin:.0f} s; {page.name} shows all'
  )


def _report(
  controller: controller_lib.AttributeController,
  parts: Any,
  samples: list[samples_lib.Sample],
) -> str:
  """Share of samples with each target value, and the cost of one sample."""
  texts = [sample.text for sample in samples]
  lines = [
    f'{target.strip()}: {100 * share:.1f} % of {len(texts)}, by the model that '
    'steered'
    for target, share in zip(
      controller.options.steer.split(','),
      controller_lib.target_shares(controller, *parts, texts=texts).values(),
      strict=True,
    )
  ]
  num_tokens = sum(len(sample.tokens) for sample in samples) / len(samples)
  cost = controller.cost(parts[1], num_tokens)
  lines.append(
    'passes for a sample, forward and backward: '
    f'{cost.attribute_forward:.0f} and {cost.attribute_backward:.0f} of the '
    f'attributes, {cost.decoder_forward:.0f} and {cost.decoder_backward:.0f} '
    'of the decoder'
  )
  return '\n'.join(lines) + '\n\n'
