"""Steered texts are judged by a classifier, and what cannot be is refused."""

import json
import shutil
import sys

import numpy as np
import pytest

import grammar
from gemini_jax import command
from gemini_jax.commands import comparison, steered, steered_options
from gemini_jax.evaluate import text_classifier
from gemini_jax.infer import generation
from gemini_jax.infer import samples as samples_lib
from gemini_jax.steer import controller as controller_lib


def flags(runs, out, *more):
  return [
    'steered',
    f'--workdirs={runs}/vae',
    f'--judge={runs}/judge',
    f'--out={out}',
    '--attribute=tone',
    '--values=positive,negative',
    '--methods=vector,best_of',
    '--count=20',
    '--num_labels=60',
    *more,
  ]


def of_tone(tone, count, seed):
  """Texts of the grammar; tone None: of both."""
  found = [
    record['text']
    for record in grammar.records(10 * count, seed)
    if tone in (None, record['label']['tone'])
  ]
  return found[:count]


def test_what_the_classifier_reads_is_told(runs, tmp_path, capsys, monkeypatch):
  """Of models that grant a wish by one method, and not by the other."""
  learned, controllers = [], []
  fit = controller_lib.fit

  def fit_once(config, *args):
    learned.append(config.generate.steer)
    return fit(config, *args)

  def write(config, model, params, tokenizer, prompts, controller=None):
    options = config.generate
    assert options.count == 20 and prompts == [''] and options.seed == 3
    assert options.source == 'prior' and options.temperature == 0.5
    tone = None
    if controller is not None:
      assert controller.options is options and controller.names == ('tone',)
      controllers.append((options.steer, options.steer_method))
      target = controller.target
      (attribute,), (index,) = target.attributes, target.target_index
      assert options.steer == f'tone={attribute.values[index]}'
      if options.steer_method == 'vector':
        tone = attribute.values[index]
    return [
      samples_lib.Sample('', text, (1, 2, 3), (-1.0,))
      for text in of_tone(tone, 20, seed=5)
    ]

  monkeypatch.setattr(controller_lib, 'fit', fit_once)
  monkeypatch.setattr(generation, 'generate', write)
  assert steered.main(flags(runs, tmp_path, '--seed=3')) == 0
  # Both methods read z: what is learned of it serves both.
  assert learned == ['tone=positive', 'tone=negative']
  assert len(controllers) == len(set(controllers)) == 4
  shown = capsys.readouterr().out
  assert 'held-out texts' in shown and 'attribute passes' in shown
  result = json.loads((tmp_path / 'steered.json').read_text())
  measured = result['classifier']
  assert measured['taught'] == 400 and measured['texts'] == 25
  assert measured['accuracy'] > 0.9
  (model,) = result['models']
  assert model['name'] == 'vae' and model['latent'] == 4
  plain = model['unsteered']
  assert abs(plain['shares']['positive'] - 0.3) < 0.25
  np.testing.assert_allclose(sum(plain['shares'].values()), 1)
  for row in model['steered']:
    value, method = row['value'], row['method']
    assert row['unsteered'] == plain['shares'][value]
    assert row['held_out'] == result['real']['shares'][value]
    if method == 'vector':
      assert row['share'] > 0.9
    else:
      assert row['share'] == row['unsteered']
    assert row['judge_perplexity'] > 1 and row['texts'] == 20
    # The texts are there, with what was read.
    file = tmp_path / f'texts/vae-{value}-{method}.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert np.mean([o['read'] == value for o in lines]) == row['share']
    variety = comparison.variety([line['text'] for line in lines])
    assert variety['self_bleu_4'] == row['self_bleu_4']
    forward = {'vector': 0, 'best_of': 8}[method]
    assert row['cost']['attribute_forward'] == forward
    assert row['cost']['decoder_forward'] == 3
  for mean in model['means']:
    rows = [r for r in model['steered'] if r['method'] == mean['method']]
    for name in ('share', 'unsteered', 'self_bleu_4'):
      np.testing.assert_allclose(mean[name], np.mean([r[name] for r in rows]))
    product = np.prod([row['judge_perplexity'] for row in rows])
    np.testing.assert_allclose(mean['judge_perplexity'], product**0.5)
  # Held-out texts of a value, all of them where there are less than 20.
  for row in result['real_of']:
    known = measured['values'][row['value']]
    assert row['texts'] == min(20, known['texts'])
    assert row['share'] == known['recall']


def test_models_with_and_without_a_latent_are_steered(runs, tmp_path):
  both = f'--workdirs={runs}/lm,{runs}/vae'
  more = ('--methods=fudge', '--values=positive', '--count=4')
  assert steered.main(flags(runs, tmp_path, both, *more)) == 0
  result = json.loads((tmp_path / 'steered.json').read_text())
  assert [model['name'] for model in result['models']] == ['lm', 'vae']
  for model in result['models']:
    (row,) = model['steered']
    assert row['method'] == 'fudge' and row['texts'] == 4
    assert row['cost']['attribute_forward'] > 100


def refused(capsys, argv):
  capsys.readouterr()
  assert steered.main(argv) == 2
  found = capsys.readouterr().err.splitlines()
  assert len(found) == 1, found
  return found[0].removeprefix('error: ')


@pytest.fixture
def nothing_long(monkeypatch):
  """Nothing is learned or written."""

  def never(*args, **kwargs):
    raise AssertionError('too late')

  for module, name in (
    (text_classifier, 'fit'),
    (controller_lib, 'fit'),
    (generation, 'generate'),
  ):
    monkeypatch.setattr(module, name, never)


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--attribute=mood', "vae: generate.steer='mood=positive': no text has a "),
    ('--attribute=', '--attribute= must be the name of one'),
    ('--values=positve', 'no text has tone=positve; did you mean positive'),
    ('--values=,', '--values=... is missing'),
    ('--methods=odd', "--methods=odd: 'odd' is not accepted; did you mean ode"),
    (
      '--workdirs={runs}/lm',
      "--methods=vector,best_of: lm: generate.steer_method='vector' needs a "
      'model with a latent',
    ),
    (
      '--count=26',
      '--count=26 must be at most 25, the labelled texts of data.',
    ),
    ('--num_labels=1', '--num_labels=1 must be an integer of at least 2'),
    ('--weight=-1', '--weight=-1 must be a number of at least 0'),
    ('--temperature=hot', '--temperature=hot must be a number of at least 0'),
    ('--judge={runs}/vae', '/vae must be a language model: model.latent.dim=0'),
    # It was trained on what the run was trained on.
    ('--judge={runs}/lm', 'of 0 texts of data.train of '),
    ('--out={runs}/lm.py', '/lm.py cannot be written: '),
  ],
)
def test_a_mistake_is_told_in_one_line(
  runs, tmp_path, capsys, nothing_long, flag, message
):
  argv = flags(runs, tmp_path, flag.format(runs=runs))
  assert message in refused(capsys, argv)


def relabelled(runs, folder, change):
  """A judge whose training texts have other labels."""
  shutil.copytree(runs / 'judge', folder / 'judge')
  known = (runs / 'others.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in known]
  for line in lines:
    change(line)
  path = folder / 'relabelled.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)))
  file = folder / 'judge/config.json'
  config = json.loads(file.read_text())
  config['data']['train'] = [f'jsonl:{path}']
  file.write_text(json.dumps(config))
  return f'--judge={folder}/judge'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda line: line.pop('label'), '/judge: data.train has no text with lab'),
    (
      lambda line: line['label'].pop('tone'),
      '--attribute=tone: no text of data.train of ',
    ),
    (
      lambda line: line['label'].update(tone='negative'),
      'none has tone=positive; did you mean negative?',
    ),
  ],
)
def test_a_judge_without_labels(
  runs, tmp_path, capsys, nothing_long, change, message
):
  judge = relabelled(runs, tmp_path, change)
  argv = flags(runs, tmp_path / 'out', judge)
  assert message in refused(capsys, argv)


def test_texts_that_a_run_knows_teach_no_classifier(runs, tmp_path, caplog):
  """Nor do held-out ones."""
  known = (runs / 'texts.jsonl').read_text().splitlines()
  judge = relabelled(runs, tmp_path, lambda line: None)
  with (tmp_path / 'relabelled.jsonl').open('a') as file:
    file.write('\n' + '\n'.join(known))
  argv = flags(runs, tmp_path, judge)
  options = steered_options.Options.from_flags(
    command.parse_flags(argv, steered_options.FLAGS)
  )
  opened = comparison.open_runs(options.workdirs)
  texts = [json.loads(line)['text'] for line in known]
  held_out = texts[7::8]
  taught, values = steered._training_texts(
    comparison.open_judge(options.judge), opened, held_out, options
  )
  # The validation texts are neither trained on nor tested on.
  others = (runs / 'others.jsonl').read_text().splitlines()
  wanted = {json.loads(line)['text'] for line in others}
  assert set(taught) == wanted | set(texts[3::8])
  assert len(values) == len(taught)
  assert '175 of 600 labelled texts' in caplog.text


def test_without_scikit_learn_the_remedy_is_told(
  runs, tmp_path, capsys, nothing_long, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  message = refused(capsys, flags(runs, tmp_path))
  assert message.endswith("pip install 'gemini_jax[judge]'")
