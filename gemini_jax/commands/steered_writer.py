"""What runs write for `commands/steered`, with and without steering."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import comparison, steered_options
from gemini_jax.evaluate import text_classifier
from gemini_jax.infer import generation
from gemini_jax.parallel import sharding
from gemini_jax.steer import controller as controller_lib
from gemini_jax.steer import guided_decoding, labelled_examples


def value_shares(
  classifier: text_classifier.Classifier,
  texts: Sequence[str],
  options: steered_options.Options,
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
  options: steered_options.Options

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
      'shares': value_shares(self.classifier, texts, self.options),
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


def write(
  name: str,
  run: run_lib.Run,
  examples: Mapping[str, labelled_examples.Examples],
  classifier: text_classifier.Classifier,
  held_out: Mapping[str, float],
  options: steered_options.Options,
) -> dict[str, Any]:
  """What a run writes without steering, and towards each value."""
  with sharding.use(run.mesh):
    restored = run.restore_params(options.checkpoint)
    params = restored.params
    writer = _Writer(name, run, params, classifier, options)
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
