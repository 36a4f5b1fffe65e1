"""Steering from the command line: what is written, told and refused."""

import json

import pytest

import grammar
import tiny

SIZES = (
  'model.width=32',
  'model.num_layers=1',
  'data.batch_size=8',
  'train.num_steps=2',
  'evaluate.evaluators=()',
  'generate.max_tokens=4',
  'generate.count=3',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Texts of the grammar; one attribute has the same value in all."""
  folder = tmp_path_factory.mktemp('steering')
  records = grammar.records(80)
  for record in records:
    record['label'] |= {'language': 'made up', 'length': len(record['text'])}
  lines = '\n'.join(map(json.dumps, records))
  (folder / 'texts.jsonl').write_text(lines)
  return folder


def trained(folder, latent, *options):
  experiment = f'{tiny.ROOT}/experiments/text_vae.py'
  file = f'{experiment}:jsonl={folder}/texts.jsonl,latent={latent}'
  options = (*SIZES, f'data.cache_dir={folder}/tokens', *options)
  assert tiny.run(file, folder / latent, *options) == 0
  return file, folder / latent, options


@pytest.fixture(scope='module')
def vae(folder):
  return trained(folder, 'cyclical', 'model.latent.dim=4')


@pytest.fixture(scope='module')
def language_model(folder):
  return trained(folder, 'none')


def generate(run, *options):
  file, workdir, sizes = run
  return tiny.run(file, workdir, *sizes, *options, mode='generate')


def written(run):
  return tiny.generated(run[1])


@pytest.mark.parametrize('method', ['ode', 'gradient', 'vector', 'best_of'])
def test_a_latent_is_steered(vae, method, capsys):
  """Weight 0 leaves what the prior drew, but for the steps that keep to it."""
  asked = f'generate.steer_method={method}'
  both = 'generate.steer=tone=positive,topic=t0'
  assert generate(vae, 'generate.steer=') == 0
  plain = [sample['z'] for sample in written(vae)]
  capsys.readouterr()
  assert generate(vae, asked, both) == 0
  samples = written(vae)
  assert all(s['steer'] == 'tone=positive,topic=t0' for s in samples)
  assert all(len(s['z']) == 4 for s in samples) and len(samples) == 3
  told = capsys.readouterr().out
  assert 'tone=positive: ' in told and 'topic=t0: ' in told
  forward = {'ode': 61, 'gradient': 5, 'vector': 0, 'best_of': 8}[method]
  assert f'forward and backward: {forward} and ' in told
  if method in ('gradient', 'vector'):
    none = 'generate.steer_weight=0.0'
    assert generate(vae, asked, both, none) == 0
    assert [sample['z'] for sample in written(vae)] == plain


@pytest.mark.parametrize(
  ('model', 'method'), [('vae', 'pplm'), ('language_model', 'fudge')]
)
def test_a_decoder_is_steered(model, method, request):
  run = request.getfixturevalue(model)
  options = (f'generate.steer_method={method}', 'generate.steer=tone=positive')
  assert generate(run, *options) == 0
  assert [sample['steer'] for sample in written(run)] == ['tone=positive'] * 3
  assert ('z' in written(run)[0]) == (model == 'vae')


def test_beams_are_steered(language_model):
  assert (
    generate(
      language_model,
      'generate.steer_method=fudge',
      'generate.steer=tone=positive',
      'generate.beam_size=3',
    )
    == 0
  )
  assert len(written(language_model)) == 3


REFUSED = {
  'tone': 'must be ATTRIBUTE=VALUE, several with commas',
  'mood=good': "generate.steer='mood=good': no text has a label 'mood'; "
  'accepted: language, length, tone, topic',
  'tone=positve': "generate.steer='tone=positve': no text has tone=positve; "
  'did you mean positive',
  'language=made up': "every text with a label 'language' has "
  'language=made up; a second value is needed',
}


@pytest.mark.parametrize('steer', REFUSED)
def test_a_wish_that_cannot_be_granted(steer, vae, capsys):
  capsys.readouterr()
  assert generate(vae, f'generate.steer={steer}') == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and REFUSED[steer] in lines[0]


def test_a_latent_method_without_a_latent(language_model, capsys):
  capsys.readouterr()
  assert generate(language_model, 'generate.steer=tone=positive') == 2
  assert capsys.readouterr().err.splitlines() == [
    "error: generate.steer_method='ode' needs a model with a latent; "
    'model.latent.dim is 0; use fudge or pplm'
  ]


def test_texts_without_labels(vae, folder, capsys):
  (folder / 'plain.jsonl').write_text('{"text": "goni nidi"}\n')
  capsys.readouterr()
  options = (
    f"data.train=('jsonl:{folder}/plain.jsonl',)",
    'generate.steer=tone=positive',
  )
  assert generate(vae, *options) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('error: data.train has no text with labels')


def test_an_empty_text_is_refused(vae, capsys):
  options = ('generate.source=posterior', 'generate.steer=tone=positive')
  capsys.readouterr()
  assert generate(vae, *options) == 2
  assert capsys.readouterr().err.splitlines() == [
    'error: an empty text has no posterior; give a text'
  ]


def test_a_text_is_steered(vae):
  options = (
    'generate.source=posterior',
    'generate.prompt=goni nidi',
    'generate.steer=tone=positive',
  )
  assert generate(vae, *options) == 0
  assert len(written(vae)) == 3
