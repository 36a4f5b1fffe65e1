r"""Descriptions of Debian's packages and their synopses, to be summarised.

  apt-get -o Acquire::Languages=en update
  python tests/summaries_study.py --out=runs/packages.jsonl \
      --descriptions=/var/lib/apt/lists/..._i18n_Translation-en.lz4
  python -m gemini_jax.main --workdir=runs/summaries \
      --config=experiments/summarisation.py:jsonl=runs/packages.jsonl

`--descriptions` is a file that apt has downloaded, plain or packed by xz (or
`lz4 -d` first). Packages of one source repeat each other: of those that begin
with the same paragraph one is kept. Prints ROUGE of the first sentences of the
records that `summarisation.py` tests with, a baseline that learns nothing.
"""

import argparse
import json
import lzma
import pathlib
import random
import re

from gemini_jax.evaluate import text_metrics

_RECORD = re.compile(r'^Description-en: (.*)\n((?: .*(?:\n|\Z))+)', re.M)
_MAX_WORDS = 150


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--descriptions', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  options = parser.parse_args()
  opened = lzma.open if options.descriptions.suffix == '.xz' else open
  with opened(options.descriptions, 'rt', encoding='utf-8') as file:
    records = pairs(file.read())
  random.Random(0).shuffle(records)
  with options.out.open('w', encoding='utf-8') as file:
    for record in records:
      print(json.dumps(record, ensure_ascii=False), file=file)
  tested = records[19::20]
  metrics = text_metrics.report(
    ('rouge1', 'rouge2', 'rougeL'),
    [re.split(r'(?<=[.!?]) ', record['text'])[0] for record in tested],
    [record['summary'] for record in tested],
  ).metrics
  print(f'{len(records):,} records; of {len(tested):,} the first sentence:')
  print('  '.join(f'{name} {value:.2f}' for name, value in metrics.items()))


def pairs(content: str) -> list[dict[str, str]]:
  """A record for each different first paragraph, of at most 150 words."""
  records = {}
  for synopsis, body in _RECORD.findall(content):
    paragraphs = [
      ' '.join(part.split()) for part in re.split(r'^ \.$', body, flags=re.M)
    ]
    words = ' '.join(paragraphs).split()
    if paragraphs[0] and len(words) <= _MAX_WORDS:
      records.setdefault(
        paragraphs[0], {'text': ' '.join(words), 'summary': synopsis.strip()}
      )
  return list(records.values())


if __name__ == '__main__':
  main()
