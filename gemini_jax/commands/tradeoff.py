"""Diversity against likelihood: a table and curves of `diversity.compare`."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.commands import comparison

_COLUMNS = {
  'self_bleu_4': ('self-BLEU-4', '.3f'),
  'distinct_1': ('distinct-1', '.3f'),
  'distinct_2': ('-2', '.3f'),
  'distinct_4': ('-4', '.3f'),
  'mean_length': ('words', '.1f'),
  'duplicates': ('duplicates', '.1%'),
  'copies': ('copies', '.1%'),
  'judge_perplexity': ('judge perplexity', '.1f'),
}
_TEST = {
  'nll': ('NLL, nats a text', '.2f'),
  'kl': ('KL, nats', '.2f'),
  'mi': ('MI, nats', '.2f'),
  'active_units': ('active units', '.0f'),
}


def at_equal_perplexity(
  first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[dict[str, float]]:
  """Self-BLEU-4 of two curves where the judge finds them equally likely.

  At each judge perplexity of the first curve within the other's, between
  whose points a straight line over the log-perplexity is drawn.
  """
  points = sorted(
    (math.log(row['judge_perplexity']), row['self_bleu_4']) for row in other
  )
  x, y = map(np.array, zip(*points, strict=True))
  return [
    {
      'judge_perplexity': row['judge_perplexity'],
      'first': row['self_bleu_4'],
      'own': float(np.interp(math.log(row['judge_perplexity']), x, y)),
    }
    for row in first
    if x[0] <= math.log(row['judge_perplexity']) <= x[-1]
  ]


def table(result: Mapping[str, Any]) -> str:
  """What a person reads of `compare`'s result."""
  lines = [['', 'temperature', *(head for head, _ in _COLUMNS.values())]]

  def add(name, temperature, row):
    lines.append([name, temperature, *comparison.cells(row, _COLUMNS)])

  for model in result['models']:
    for row in model['curve']:
      add(model['name'], f'{row["temperature"]:g}', row)
  add('held-out texts', '-', result['real'])
  more = [['', *(head for head, _ in _TEST.values()), 'swap', 'F1 own/other']]
  for model in result['models']:
    test, swapped = model['test'], model['swap']
    cells = comparison.cells(test, _TEST)
    cells += ['-', '-']
    if swapped and swapped['pairs']:
      cells[-2:] = [
        f'{swapped["share"]:.3f}',
        f'{swapped["own"]:.3f}/{swapped["other"]:.3f}',
      ]
    more.append([model['name'], *cells])
  parts = [comparison.align(lines), comparison.align(more)]
  for model in result['models'][1:]:
    equal = [['at a judge perplexity of', 'self-BLEU-4', model['name']]]
    equal[0][1] += f' of {result["models"][0]["name"]}'
    equal += [
      [
        f'{row["judge_perplexity"]:.1f}',
        f'{row["first"]:.3f}',
        f'{row["own"]:.3f}',
      ]
      for row in model['at_equal_perplexity']
    ]
    if len(equal) > 1:
      parts.append(comparison.align(equal))
  return '\n\n'.join(parts)


def check():
  """ConfigError, with the remedy, unless curves can be drawn."""
  config_lib.optional('matplotlib', 'the curves need matplotlib', 'plot')


def plot(result: Mapping[str, Any], path: pathlib.Path):
  """Judge perplexity against self-BLEU-4: a curve for each model."""
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(7, 5), layout='constrained')
  axes = figure.subplots()
  for model, marker in zip(
    result['models'], itertools.cycle('osD^v'), strict=False
  ):
    points = [
      (row['self_bleu_4'], row['judge_perplexity']) for row in model['curve']
    ]
    axes.plot(
      *zip(*points, strict=True), marker=marker, label=model['name'], alpha=0.85
    )
    for point, row in zip(points, model['curve'], strict=True):
      axes.annotate(
        f'{row["temperature"]:g}',
        point,
        xytext=(5, 5),
        textcoords='offset points',
        fontsize=8,
      )
  real = result['real']
  axes.plot(
    real['self_bleu_4'],
    real['judge_perplexity'],
    'k*',
    markersize=12,
    label='held-out texts',
  )
  axes.set_yscale('log')
  axes.set_xlabel(
    f'self-BLEU-4 of {result["count"]:,} texts (less: more varied)'
  )
  axes.set_ylabel('judge perplexity (less: likelier)')
  axes.grid(alpha=0.3, which='both')
  axes.legend(title='numbers: temperature')
  figure.savefig(path, dpi=150)
