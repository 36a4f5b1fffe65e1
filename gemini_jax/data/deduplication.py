"""Drops repeated passages, so that no evaluated text was trained on.

Documentation repeats whole paragraphs, and lines within paragraphs. Paragraphs
are read in order, those of evaluation first, and one is dropped if it equals a
paragraph that was kept, or shares 50 consecutive characters with one. However
the rest is then split, no two parts share so long a run of characters.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator

from gemini_jax import config as config_lib
from gemini_jax.data import examples, readers, sources, unusable

# In characters, white space collapsed. Shorter runs are common phrases.
RUN = 50
# Characters after which the text of a record is cut, at a paragraph.
PASSAGE = 2000

_PARAGRAPH = re.compile(r'\n\s*?\n')


@dataclasses.dataclass
class Report:
  """Bytes (UTF-8) and paragraphs of one source before and after."""

  bytes_read: int = 0
  bytes_kept: int = 0
  paragraphs_read: int = 0
  paragraphs_kept: int = 0
  tally: unusable.Tally = dataclasses.field(default_factory=unusable.Tally)

  def describe(self) -> str:
    """One line for the log."""
    return (
      f'kept {self.paragraphs_kept:,} of {self.paragraphs_read:,} paragraphs, '
      f'{self.bytes_kept:,} of {self.bytes_read:,} bytes'
    )


def sources_without_repeats(
  config: config_lib.Data,
) -> dict[str, tuple[sources.Source, Report]]:
  """Every source of the config, as passages without repeats.

  Slices count passages of about 2,000 characters. All text is held in memory,
  plus about 50 bytes for each of its characters.

  Raises:
    ConfigError: a source cannot be read.
  """
  identity = fingerprint(config)
  seen: set = set()
  kept: dict[str, tuple[readers.Rows, Report]] = {}
  result = {}
  for spec in _specs(config):
    whole, selection = sources.split_spec(spec)
    if whole not in kept:
      report = Report()
      source = sources.records(whole, config)
      texts = examples.texts(source, config, report.tally)
      passages = list(_passages(texts, seen, report))
      rows = readers.Rows(
        [{config.text_field: passage} for passage in passages],
        identity,
        (config.text_field,),
      )
      kept[whole] = rows, report
    rows, report = kept[whole]
    name = sources.locate(spec, config)
    try:
      indices = sources.select(selection, len(rows.records))
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'{spec}: {error}') from error
    name = sources.locate(spec, config)
    result[spec] = sources.Source(name, rows, indices), report
  return result


def fingerprint(config: config_lib.Data) -> str:
  """Hex digest of all that the passages of every source depend on."""
  wholes = dict.fromkeys(sources.split_spec(spec)[0] for spec in _specs(config))
  identities = [
    sources.records(whole, config).rows.identity for whole in wholes
  ]
  parts = (RUN, PASSAGE, config.text_field, identities)
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def unique_paragraphs(
  text: str, seen: set, report: Report | None = None
) -> list[str]:
  """Paragraphs of `text` that repeat nothing in `seen`; adds them to `seen`."""
  report = report or Report()
  tail, kept = '', []
  for paragraph in _PARAGRAPH.split(text.strip('\n')):
    words = ' '.join(paragraph.split())
    if not words:
      continue
    size = len(paragraph.encode('utf-8'))
    report.paragraphs_read += 1
    report.bytes_read += size
    # A run may begin in the previous kept paragraph.
    line = tail + words
    runs = {hash(line[i : i + RUN]) for i in range(len(line) - RUN + 1)}
    runs.add(hash(words))
    if not seen.isdisjoint(runs):
      continue
    seen |= runs
    kept.append(paragraph)
    tail = f'{line} '[-RUN + 1 :]
    report.paragraphs_kept += 1
    report.bytes_kept += size
  return kept


def _passages(
  texts: Iterable[tuple[str, ...]], seen: set, report: Report
) -> Iterator[str]:
  for (text,) in texts:
    passage, length = [], 0
    for paragraph in unique_paragraphs(text, seen, report):
      passage.append(paragraph)
      length += len(paragraph)
      if length >= PASSAGE:
        yield '\n\n'.join(passage)
        passage, length = [], 0
    if passage:
      yield '\n\n'.join(passage)


def _specs(config: config_lib.Data) -> list[str]:
  """Evaluation first, so that repeats are dropped from training."""
  return [*config.test, *config.validation, *config.train]
