"""Definitions of WordNet, from its distributed database files.

Format: wndb(5WN); the names of the lexicographer files: lexnames(5WN).
"""

import functools
import os
import pathlib
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import readers

# Where Debian's package wordnet-base installs them.
FOLDER = '/usr/share/wordnet'
PARTS = ('noun', 'verb', 'adj', 'adv')
# Indexed by the number of the lexicographer file.
CLASSES = (
  *('adj.all', 'adj.pert', 'adv.all', 'noun.Tops', 'noun.act'),
  *('noun.animal', 'noun.artifact', 'noun.attribute', 'noun.body'),
  *('noun.cognition', 'noun.communication', 'noun.event', 'noun.feeling'),
  *('noun.food', 'noun.group', 'noun.location', 'noun.motive'),
  *('noun.object', 'noun.person', 'noun.phenomenon', 'noun.plant'),
  *('noun.possession', 'noun.process', 'noun.quantity', 'noun.relation'),
  *('noun.shape', 'noun.state', 'noun.substance', 'noun.time'),
  *('verb.body', 'verb.change', 'verb.cognition', 'verb.communication'),
  *('verb.competition', 'verb.consumption', 'verb.contact', 'verb.creation'),
  *('verb.emotion', 'verb.motion', 'verb.perception', 'verb.possession'),
  *('verb.social', 'verb.stative', 'verb.weather', 'adj.ppl'),
)


def read(where: str) -> readers.Rows:
  """One record a definition, `{'text': ..., 'label': {'class': ...}}`.

  The class is also a field of its own, for tasks. The text is the gloss up to
  its first semicolon, after which come examples and further definitions. Of
  equal texts the first is kept. Nouns come first, then verbs, adjectives and
  adverbs, each in the order of its file.

  Args:
    where: the folder; '' or '-': FOLDER.

  Raises:
    ConfigError: the files are missing or have another format.
  """
  folder = FOLDER if where in ('', '-') else str(host.expand_path(where))
  paths = [os.path.join(folder, f'data.{part}') for part in PARTS]
  for path in paths:
    config_lib.check(
      os.path.isfile(path),
      f'{path} is missing; install WordNet (apt install wordnet-base) or '
      'write wordnet:FOLDER',
    )
  stats = [(os.path.abspath(path), os.stat(path)) for path in paths]
  identity = repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats])
  records = _read(tuple(paths), identity)
  config_lib.check(len(records) > 0, f'{folder} holds no definition')
  return readers.Rows(records, identity, ('text', 'label', 'class'))


@functools.lru_cache(maxsize=1)
def _read(paths: tuple[str, ...], identity: str) -> list[dict[str, Any]]:
  """All records, cached since every slice of a source reads them."""
  del identity  # A key of the cache: a changed file is read again.
  class_of: dict[str, str] = {}
  for path in paths:
    try:
      content = pathlib.Path(path).read_bytes().decode('utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise config_lib.ConfigError(f'{path} cannot be read: {error}') from error
    for number, line in enumerate(content.split('\n'), 1):
      # The licence comes first, in lines that begin with two spaces.
      if not line or line.startswith('  '):
        continue
      fields, bar, gloss = line.partition(' | ')
      # synset_offset lex_filenum ss_type ...
      name = fields.split(' ', 2)[1:2]
      known = bar and name and name[0].isdecimal()
      if not known or int(name[0]) >= len(CLASSES):
        raise config_lib.ConfigError(
          f'{path}, line {number}, is not a line of WordNet: {line[:60]!r}'
        )
      text = gloss.partition(';')[0].strip()
      if text:
        class_of.setdefault(text, CLASSES[int(name[0])])
  return [
    {'text': text, 'label': {'class': name}, 'class': name}
    for text, name in class_of.items()
  ]
