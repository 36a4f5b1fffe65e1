"""The comparison of runs tells what they write, and refuses what it cannot."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import grammar
from gemini_jax import config as config_lib
from gemini_jax.commands import comparison, diversity, tradeoff
from gemini_jax.infer import latents as latents_lib
from gemini_jax.infer import samples as samples_lib
from gemini_jax.models import latent


def flags(runs, *more):
  return [
    'diversity',
    f'--workdirs={runs}/lm,{runs}/vae',
    f'--judge={runs}/judge',
    f'--out={runs}/out',
    '--count=12',
    '--temperatures=1,0.5',
    *more,
  ]


def test_runs_are_compared(runs, capsys):
  assert diversity.main(flags(runs)) == 0
  shown = capsys.readouterr().out
  result = json.loads((runs / 'out/diversity.json').read_text())
  assert [model['name'] for model in result['models']] == ['lm', 'vae']
  for model in result['models']:
    assert [row['temperature'] for row in model['curve']] == [0.5, 1]
    for row in model['curve']:
      assert row['texts'] == 12
      assert 0 <= row['self_bleu_4'] <= 1 < row['judge_perplexity']
      file = f'{model["name"]}-{row["temperature"]:g}.jsonl'
      written = (runs / 'out/texts' / file).read_text().splitlines()
      texts = [json.loads(line)['text'] for line in written]
      assert comparison.variety(texts)['self_bleu_4'] == row['self_bleu_4']
  lm, vae = result['models']
  assert lm['swap'] is None and vae['swap']['pairs'] == 6
  assert lm['test'] == {} and vae['test'] == {'kl': 2.5}
  # Held-out texts of the grammar are all alike to a judge that knows nothing,
  # and are in no training set.
  assert result['real']['texts'] == 12 and result['real']['duplicates'] == 0
  assert result['real']['judge_copies'] == result['real']['copies'] == 0
  assert result['real']['mean_length'] > 5
  assert 'held-out texts' in shown and 'judge perplexity' in shown
  picture = (runs / 'out/diversity.png').read_bytes()
  assert picture.startswith(b'\x89PNG') and len(picture) > 5000


def refused(capsys, *argv):
  capsys.readouterr()
  assert diversity.main([str(arg) for arg in argv]) == 2
  found = capsys.readouterr().err.splitlines()
  assert len(found) == 1, found
  return found[0].removeprefix('error: ')


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--temperatures=1,hot', '--temperatures=1,hot must be numbers of at'),
    ('--temperatures=-1', '--temperatures=-1 must be numbers of at least 0'),
    ('--temperatures=', '--temperatures= must be numbers of at least 0'),
    ('--count=1', '--count=1 must be an integer of at least 2'),
    ('--count=26', '--count=26 must be at most 25, the texts of data.test of '),
    ('--seed=x', '--seed=x must be an integer'),
    ('--checkpoint=new', '--checkpoint=new must be latest or best'),
    ('--workdirs=absent', 'absent holds no trained run: absent/config.json'),
    ('--workdir=a', '--workdir is not a flag; did you mean workdirs?'),
    ('--judge={runs}/vae', '/vae must be a language model: model.latent.dim=0'),
    ('--out={runs}/lm.py', '/lm.py cannot be written: '),
  ],
)
def test_a_mistake_is_told_in_one_line(runs, capsys, flag, message):
  assert message in refused(capsys, *flags(runs, flag.format(runs=runs)))


def test_what_is_missing_is_named(capsys):
  assert (
    refused(capsys, 'diversity', '--workdirs=a') == '--judge=... is missing'
  )


def test_without_matplotlib_the_remedy_is_told(runs, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  message = refused(capsys, *flags(runs))
  assert message.endswith("pip install 'gemini_jax[plot]'")


def test_a_config_that_cannot_be_read_is_named(runs, tmp_path, capsys):
  shutil.copytree(runs / 'lm', tmp_path / 'lm')
  (tmp_path / 'lm/config.json').write_text('{"modle": {}}')
  message = refused(capsys, *flags(runs, f'--judge={tmp_path}/lm'))
  assert message.startswith(f'{tmp_path}/lm/config.json: modle is not a field')


def test_a_copy_of_the_training_texts_is_one(runs):
  config = config_lib.from_json((runs / 'lm/config.json').read_text()).data
  texts = [record['text'] for record in grammar.records(200)]
  # Of four records the last is held out.
  rows = [{'written': [texts[0], f' {texts[1]}', 'new', texts[3]]}]
  diversity._mark_copies(config, rows, 'copies')
  assert rows[0]['copies'] == 0.5


class Words:
  """A token for each word."""

  def encode(self, text):
    return np.arange(len(text.split()))


def follow(monkeypatch, write):
  """`swap` of texts whose z is their number, when `write` writes from it."""
  texts = ['red fox runs', 'blue bird flies', 'red dog sleeps', 'old cat eats']
  zeros = np.zeros((4, 1), np.float32)
  z = np.arange(4, dtype=np.float32)[:, None]
  monkeypatch.setattr(
    latents_lib, 'encode', lambda *args: latent.Normal(z, zeros)
  )
  config = config_lib.Config()
  model = dataclasses.replace(
    config.model, latent=config_lib.Latent(dim=1), vocab_size=9
  )
  config = dataclasses.replace(
    config, model=model, data=dataclasses.replace(config.data, pack=False)
  )

  def samples(config, model, params, tokenizer, prompts, latents):
    assert config.generate.temperature == 0 and prompts == ['']
    assert config.generate.count == len(latents) == 4
    return [
      samples_lib.Sample('', write(texts, int(own[0])), (), ())
      for own in latents
    ]

  run = SimpleNamespace(config=config, model=None, tokenizer=Words())
  # The fifth has no partner, the sixth no word.
  return diversity.swap(run, None, [*texts, 'alone', ''], samples)


def test_swapped_z_are_followed(monkeypatch):
  found = follow(monkeypatch, lambda texts, i: texts[i])
  assert found == {'pairs': 2, 'share': 1.0, 'own': 1.0, 'other': 0.0}


def test_a_z_without_a_say_follows_half(monkeypatch):
  found = follow(monkeypatch, lambda texts, i: 'red old bird')
  assert found['share'] == 0.5
  np.testing.assert_allclose(found['own'], found['other'])


def test_z_of_the_other_text_is_told_apart(monkeypatch):
  found = follow(monkeypatch, lambda texts, i: texts[i ^ 1])
  assert found['share'] == 0 and found['other'] == 1


def test_curves_are_compared_where_the_judge_finds_them_equal():
  curve = lambda *points: [
    {'judge_perplexity': x, 'self_bleu_4': y} for x, y in points
  ]
  found = tradeoff.at_equal_perplexity(
    curve((1, 0.9), (10, 0.7), (200, 0.3)), curve((100, 0.2), (1, 0.6))
  )
  assert [row['judge_perplexity'] for row in found] == [1, 10]
  np.testing.assert_allclose([row['own'] for row in found], [0.6, 0.4])
  assert [row['first'] for row in found] == [0.9, 0.7]


def test_the_last_numbers_of_the_test_split(tmp_path):
  assert diversity._last_test(tmp_path) == {}
  (tmp_path / 'metrics.jsonl').write_text(
    '{"step": 1, "test/nll": 3}\n{"step": 2, "test/nll": 2, "train/loss": 1}\n'
    '{"step": 3, "train/loss": 1}\n'
  )
  assert diversity._last_test(tmp_path) == {'nll': 2}
