r"""How varied and how likely texts are that trained runs write.

  python -m gemini_jax.commands.diversity --workdirs=runs/lm,runs/vae \
      --judge=runs/judge --out=runs/diversity [--count=1000] \
      [--temperatures=0.3,0.5,0.7,1.0] [--checkpoint=latest|best] [--seed=0]

Every run writes `count` texts at each temperature of its tokens, from z of the
prior where it has a latent. The judge, a language model that was trained apart
from them, tells how likely they are; held-out texts of the first run
are measured as well. For a latent also: whether texts follow the z that they
are decoded from (`swap`). Prints a table; `out` gets diversity.json,
diversity.png and the texts.
"""

import dataclasses
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import command
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import comparison, program, tradeoff
from gemini_jax.data import splits
from gemini_jax.evaluate import ngram
from gemini_jax.infer import generation, latents
from gemini_jax.infer import samples as samples_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import sharding
from gemini_jax.train import metrics_file

FLAGS: dict[str, str | None] = {
  'workdirs': None,
  'judge': None,
  'out': None,
  'count': '1000',
  'temperatures': '0.3,0.5,0.7,1.0',
  'checkpoint': 'latest',
  'seed': '0',
}
# Held-out texts whose z are swapped at most.
_SWAPPED = 500


@dataclasses.dataclass(frozen=True)
class Options(comparison.Options):
  """What the command line asks for; see the head of this file."""

  temperatures: tuple[float, ...]

  @classmethod
  def from_flags(cls, values: Mapping[str, str]) -> 'Options':
    """From FLAGS as they were given.

    Raises:
      ConfigError: a value is not of its kind.
    """
    flags = comparison.Flags(values)
    temperatures = flags.all(
      'temperatures',
      float,
      'numbers of at least 0 with commas between them',
      comparison.is_temperature,
    )
    return cls(**flags.common(), temperatures=tuple(sorted(temperatures)))


def compare(options: Options) -> dict[str, Any]:
  """Writes, judges and measures; everything that diversity.json holds.

  Raises:
    ConfigError: a folder holds no run that can do its part, there are too few
      held-out texts, or matplotlib is missing.
  """
  tradeoff.check()
  runs = comparison.open_runs(options.workdirs)
  judge = comparison.open_judge(options.judge)
  real = held_out(next(iter(runs.values())).config.data, options)
  comparison.write(options.out, 'held_out', [{'text': text} for text in real])
  models = [_generate(name, run, real, options) for name, run in runs.items()]
  rows = [row for model in models for row in model['curve']]
  real_row: dict[str, Any] = {'written': real}
  for i, (model, run) in enumerate(zip(models, runs.values(), strict=True)):
    # The held-out texts are those of the first run.
    held_out_rows = [] if i else [real_row]
    _mark_copies(run.config.data, [*model['curve'], *held_out_rows], 'copies')
  _mark_copies(judge.config.data, [real_row, *rows], 'judge_copies')
  perplexities, step = comparison.judge_perplexities(
    judge, options.checkpoint, [row['written'] for row in (real_row, *rows)]
  )
  for row, perplexity in zip((real_row, *rows), perplexities, strict=True):
    row['judge_perplexity'] = perplexity
  for row in (real_row, *rows):
    row |= comparison.variety(row.pop('written'))
  if real_row['judge_copies']:
    logging.warning(
      'the judge was trained on %.1f %% of the held-out texts',
      100 * real_row['judge_copies'],
    )
  first = models[0]['curve']
  for model in models[1:]:
    model['at_equal_perplexity'] = tradeoff.at_equal_perplexity(
      first, model['curve']
    )
  return {
    'count': options.count,
    'seed': options.seed,
    'judge': {'workdir': options.judge, 'step': step},
    'real': real_row,
    'models': models,
  }


def held_out(config: config_lib.Data, options: Options) -> list[str]:
  """`count` texts of the test split, or else of the validation split.

  Raises:
    ConfigError: there are fewer.
  """
  split = comparison.held_out_split(config)
  texts = list(splits.texts(config, split))
  config_lib.check(
    len(texts) >= options.count,
    f'--count={options.count} must be at most {len(texts)}, the texts of '
    f'data.{split} of {options.workdirs[0]}',
  )
  order = np.random.default_rng(options.seed % 2**32).permutation(len(texts))
  return [texts[i] for i in order[: options.count]]


def swap(
  run: run_lib.Run,
  params: Any,
  texts: Sequence[str],
  write: Callable[..., list[samples_lib.Sample]] = generation.generate,
) -> dict[str, Any]:
  """Whether texts depend on the z that they are decoded from.

  Pairs of texts exchange their z, means of the posterior, from which texts are
  decoded greedily. `share`: of decoded texts that have more words in common
  with the text whose z it was than with the other one of the pair, where a tie
  counts half; 0.5 if z has no effect. `own`, `other`: F1 of words with each.

  Args:
    run: of a model with a latent.
    params: of it.
    texts: to encode, taken two by two; too long ones are left out.
    write: as `generation.generate`.
  """
  limit = latents.max_encoder_tokens(run.config)
  fitting = [
    text
    for text in texts
    if ngram.words(text) and len(run.tokenizer.encode(text)) < limit
  ]
  fitting = fitting[: min(_SWAPPED, len(fitting) // 2 * 2)]
  if not fitting:
    return {'pairs': 0, 'share': None, 'own': None, 'other': None}
  posterior = latents.encode(
    run.config, run.model, params, run.tokenizer, fitting
  )
  config = comparison.sampling(run.config, 0.0, len(fitting), 0)
  samples = write(
    config, run.model, params, run.tokenizer, [''], latents=posterior.mean
  )
  own, other = (
    np.array(
      [
        ngram.overlap(sample.text, fitting[i ^ partner])
        for i, sample in enumerate(samples)
      ]
    )
    for partner in (0, 1)
  )
  return {
    'pairs': len(fitting) // 2,
    'share': float(np.mean((np.sign(own - other) + 1) / 2)),
    'own': float(own.mean()),
    'other': float(other.mean()),
  }


def _generate(
  name: str, run: run_lib.Run, real: Sequence[str], options: Options
) -> dict[str, Any]:
  """The results of a run: a point of its curve for each temperature, `swap`."""
  with sharding.use(run.mesh):
    restored = run.restore_params(options.checkpoint)
    params = restored.params
    curve = []
    for temperature in options.temperatures:
      begin = time.perf_counter()
      samples = generation.generate(
        comparison.sampling(
          run.config, temperature, options.count, options.seed
        ),
        run.model,
        params,
        run.tokenizer,
        [''],
      )
      logging.info(
        '%s at temperature %g: %s texts in %.0f s',
        name,
        temperature,
        f'{len(samples):,}',
        time.perf_counter() - begin,
      )
      file = f'{name}-{temperature:g}'
      comparison.write(
        options.out,
        file,
        [{'text': s.text, 'logprob': s.logprob} for s in samples],
      )
      curve.append(
        {'temperature': temperature, 'written': [s.text for s in samples]}
      )
    followed = None
    if run.config.model.latent.dim:
      followed = swap(run, params, real)
      logging.info('%s: z swapped in %d pairs', name, followed['pairs'])
  return {
    'name': name,
    'workdir': str(run.workdir),
    'step': restored.step,
    'parameters': gemini.param_count(params),
    'latent': run.config.model.latent.dim,
    'test': _last_test(run.workdir),
    'swap': followed,
    'curve': curve,
  }


def _mark_copies(
  config: config_lib.Data, rows: Sequence[dict[str, Any]], name: str
):
  """Sets the share of texts that are texts of the training data."""
  wanted = [text for row in rows for text in row['written']]
  known = comparison.known(config, wanted)
  for row in rows:
    row[name] = float(np.mean([t.strip() in known for t in row['written']]))


def _last_test(workdir: pathlib.Path) -> dict[str, float]:
  """The last numbers of the test split that the run has logged."""
  for line in metrics_file.newest_lines(workdir):
    values = {
      name.removeprefix('test/'): value
      for name, value in line.items()
      if name.startswith('test/')
    }
    if values:
      return values
  return {}


def main(argv: Sequence[str]) -> int:
  """Compares the runs; returns the exit code."""

  def work():
    options = Options.from_flags(command.parse_flags(argv, FLAGS))
    result = compare(options)
    file = options.out / 'diversity.json'
    file.write_text(json.dumps(result, indent=2) + '\n')
    tradeoff.plot(result, file.with_suffix('.png'))
    print(tradeoff.table(result))
    print(f'\nwritten to {file} and {file.with_suffix(".png").name}')

  return program.main(argv, __doc__, FLAGS, work)


if __name__ == '__main__':
  comparison.start()
  sys.exit(main(sys.argv))
