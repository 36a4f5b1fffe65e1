"""The tokenized sources of a split."""

import dataclasses
import functools
from collections.abc import Iterator

from gemini_jax import config as config_lib
from gemini_jax.data import (
  cache,
  deduplication,
  media_reader,
  sources,
  splits,
  unusable,
)
from gemini_jax.data import examples as examples_lib
from gemini_jax.data import task as task_lib
from gemini_jax.data import tokenizer as tokenizer_lib


def open_split(
  config: config_lib.Data,
  tokenizer: tokenizer_lib.Tokenizer,
  split: splits.Split,
  model: config_lib.Model,
) -> Iterator[tuple[str, cache.Corpus, media_reader.MediaReader | None]]:
  """The name, the tokens and the media reader of each source of a split.

  The name is that of messages; the media reader is None without media.
  """
  specs = getattr(config, split)
  config_lib.check(
    len(specs) > 0, f'data.{split}=() names no source; write KIND:WHERE#SLICE'
  )
  unique = functools.cache(
    lambda: deduplication.sources_without_repeats(config)
  )

  tasks = task_lib.from_config(config)
  fields = {field for task in tasks for field in task.fields}
  for field in config.shuffled_fields:
    config_lib.check(
      field in fields,
      f'data.shuffled_fields={config.shuffled_fields}: {field!r} is not a '
      f'field of data.tasks={config.tasks}',
    )
  placeholders, layout = media_reader.layout(tasks, config, model)

  def open_source(spec):
    shuffled_fields = config.shuffled_fields if split == 'train' else ()
    return dataclasses.replace(
      sources.records(spec, config), shuffled_fields=shuffled_fields
    )

  def plain(spec, tally):
    source = open_source(spec)
    return examples_lib.examples(source, config, model, tally, tokenizer), ''

  def deduplicated(spec, tally):
    source, report = unique()[spec]
    # The tally of the records, not of the passages made from them.
    tally.add(report.tally)
    examples = examples_lib.examples(
      source, config, model, unusable.Tally(), tokenizer
    )
    return examples, report.describe()

  for i, spec in enumerate(specs):
    source = open_source(spec)
    if config.deduplicate:
      read, identity = deduplicated, deduplication.fingerprint(config)
    else:
      read, identity = plain, source.fingerprint
    parts = [spec, identity, tokenizer.fingerprint, repr(tasks), repr(layout)]
    if task_lib.head(config) is not None:
      parts.append(repr(config.label_names))
    key = cache.key(*parts)
    corpus = cache.open_or_build(
      cache.folder(config) / key,
      functools.partial(read, spec),
      tokenizer,
      placeholders,
    )
    name = f'data.{split}[{i}]={spec}'
    corpus.tally.check(name, config.max_unusable)
    config_lib.check(
      len(corpus.firsts) > 0, f'{name}: nothing is left after data.deduplicate'
    )
    reader = None
    if placeholders:
      reader = media_reader.MediaReader(
        source, tasks, config, model, split == 'train'
      )
    yield name, corpus, reader
