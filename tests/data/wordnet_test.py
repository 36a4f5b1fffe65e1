"""WordNet's files give definitions with their classes."""

import pathlib

import pytest

from gemini_jax import config
from gemini_jax.data import sources, wordnet

# As the files begin: numbered lines behind two spaces, of any content.
LICENCE = '  1 This software | is provided "AS IS";\n  2 \n'
LINES = {
  'noun': [
    '00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 '
    '~ 04424418 n 0000 | that which exists | or may (living or not)  ',
    '00015388 05 n 02 animal 0 beast 0 000 | a living organism; "it moved"  ',
    '00015400 18 n 01 person 0 000 | a human being; somebody; "a | b"  ',
  ],
  'verb': [
    '00001740 29 v 01 breathe 0 000 02 + 02 00 + 08 00 | draw air in; "Breathe"'
  ],
  'adj': [
    '00001740 00 a 01 able 0 000 | ; "an example alone"  ',
    '00002098 00 s 01 unable 0 000 | a human being; of another class  ',
    '00002312 44 a 01 gone 0 000 | no longer there  ',
  ],
  'adv': ['00001740 02 r 01 nearly 0 000 | slightly short of  '],
}
EXPECTED = [
  ('that which exists | or may (living or not)', 'noun.Tops'),
  ('a living organism', 'noun.animal'),
  ('a human being', 'noun.person'),
  ('draw air in', 'verb.body'),
  ('no longer there', 'adj.ppl'),
  ('slightly short of', 'adv.all'),
]


@pytest.fixture
def folder(tmp_path):
  for part, lines in LINES.items():
    content = LICENCE + '\n'.join(lines) + '\n'
    (tmp_path / f'data.{part}').write_text(content)
  return tmp_path


def open_source(spec):
  return sources.records(spec, config.Data(train=(spec,)))


def found(source):
  return [
    (record['text'], record['label']['class'])
    for record in (source[i] for i in range(len(source)))
  ]


def test_definitions_with_classes_in_the_order_of_the_files(folder):
  assert found(open_source(f'wordnet:{folder}')) == EXPECTED
  assert found(open_source(f'wordnet:{folder}#[1::2]')) == EXPECTED[1::2]


@pytest.mark.parametrize('where', ['', '-'])
def test_it_knows_where_it_is_installed(folder, where, monkeypatch):
  monkeypatch.setattr(wordnet, 'FOLDER', str(folder))
  assert found(open_source(f'wordnet:{where}#[:2]')) == EXPECTED[:2]


def test_what_is_missing_is_named_with_the_remedy(folder):
  (folder / 'data.adj').unlink()
  with pytest.raises(config.ConfigError) as error:
    open_source(f'wordnet:{folder}')
  message = str(error.value)
  assert message.startswith(f'data.train[0]=wordnet:{folder}: ')
  assert f'{folder}/data.adj is missing' in message
  assert 'apt install wordnet-base' in message


@pytest.mark.parametrize(
  'line',
  [
    'no such line',
    '00001740 45 n 01 entity 0 000 | of a class that there is not',
    '00001740 xx n 01 entity 0 000 | of no class',
    '00001740 03 n 01 entity 0 000 no gloss',
  ],
)
def test_another_format_is_refused_with_its_line(folder, line):
  (folder / 'data.verb').write_text(LICENCE + line + '\n')
  with pytest.raises(config.ConfigError, match=r'data\.verb, line 3, is not'):
    open_source(f'wordnet:{folder}')


def test_a_changed_file_is_read_again(folder):
  before = open_source(f'wordnet:{folder}')
  with (folder / 'data.adv').open('a') as file:
    file.write('00001837 02 r 01 barely 0 000 | only just  \n')
  after = open_source(f'wordnet:{folder}')
  assert found(after) == [*found(before), ('only just', 'adv.all')]
  assert after.fingerprint != before.fingerprint


@pytest.mark.skipif(
  not pathlib.Path(wordnet.FOLDER).is_dir(), reason='no WordNet here'
)
def test_the_real_files():
  records = wordnet.read('').records
  assert len(records) > 100_000
  assert len({record['text'] for record in records}) == len(records)
  assert {record['label']['class'] for record in records} == set(
    wordnet.CLASSES
  )
