"""The tables of `commands/steered`: shares, diversity and cost."""

from collections.abc import Mapping
from typing import Any

from gemini_jax.commands import comparison

_MEASURED = {
  'texts': ('held-out texts', 'd'),
  'precision': ('precision', '.1%'),
  'recall': ('recall', '.1%'),
}
_SHARES = {
  'share': ('share', '.1%'),
  'unsteered': ('unsteered', '.1%'),
  'held_out': ('held out', '.1%'),
}
_COLUMNS = {
  'texts': ('texts', 'd'),
  'judge_perplexity': ('judge perplexity', '.1f'),
  'self_bleu_4': ('self-BLEU-4', '.3f'),
  'distinct_2': ('distinct-2', '.3f'),
  'duplicates': ('duplicates', '.1%'),
  'mean_length': ('words', '.1f'),
}
_COSTS = {'attribute': 'attribute passes', 'decoder': 'decoder passes'}


def table(result: Mapping[str, Any]) -> str:
  """What a person reads of `compare`'s result."""
  measured = result['classifier']
  lines = [['classifier', *(head for head, _ in _MEASURED.values())]]
  for value in result['values']:
    counts = measured['values'].get(value, {})
    lines.append([value, *comparison.cells(counts, _MEASURED)])
  accuracy = f'right: {measured["accuracy"]:.1%} of {measured["texts"]:,} texts'
  parts = [f'{comparison.align(lines)}\n{accuracy}']
  columns = _SHARES | _COLUMNS

  def line(first, method, row):
    costs = ['-'] * len(_COSTS)
    if 'cost' in row:
      costs = [
        f'{row["cost"][f"{kind}_forward"]:.0f} / '
        f'{row["cost"][f"{kind}_backward"]:.0f}'
        for kind in _COSTS
      ]
    return [first, method, *comparison.cells(row, columns), *costs]

  heads = [head for head, _ in columns.values()]
  for model in result['models']:
    lines = [[model['name'], 'method', *heads, *_COSTS.values()]]
    lines.append(line('any', 'unsteered', model['unsteered']))
    lines += [line(r['value'], r['method'], r) for r in model['steered']]
    lines += [line('mean', row['method'], row) for row in model['means']]
    parts.append(comparison.align(lines, left=2))
  lines = [['held-out texts', '', *heads, *_COSTS.values()]]
  lines.append(line('any', '', result['real']))
  lines += [line(row['value'], '', row) for row in result['real_of']]
  parts.append(comparison.align([row[: 2 + len(heads)] for row in lines], 2))
  return '\n\n'.join(parts)
