"""Every experiment makes a model, an optimizer and a step that go together."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from experiments import fine_tune, text_vae, wordnet_vae
from gemini_jax import command, main
from gemini_jax import config as config_lib
from gemini_jax.data import sources
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.plan import abstract, plan
from gemini_jax.train import session as session_lib
from gemini_jax.train import step

FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'
FILES = sorted(
  path for path in FOLDER.glob('*.py') if path.stem not in ('__init__', 'base')
)
# What their names promise.
SIZES = {
  'gemini_100b': (100e9, 200e9),
  'gemini_moe_1t': (1e12, 2e12),
  'gpt2_124m': (120e6, 130e6),
}
# What some are told, beside nothing.
ARGUMENTS = {
  'adaptive_fashion': [
    '',
    'method=rigl,sparsity=0.98',
    'method=oneshot',
    'method=gated',
    'optimizer=momo_adam,learning_rate=0.1',
  ],
  # {base} becomes a folder with the config of a run.
  'fine_tune': [f'base={{base}},method={name}' for name in fine_tune.METHODS],
  # {base}/table.* has a record.
  'series': ['table={base}/table.jsonl,target=class:label'],
  'tables': ['table={base}/table.csv,target=number:label,fold=4'],
  'domain_transfer': [
    '',
    'domain=words,base={base}',
    'domain=handwriting,base={base},method=adapter',
  ],
  'dialogue': ['jsonl=absent,base={base}'],
  'summarisation': ['jsonl=absent', 'jsonl=absent,base={base}'],
  'digit_fusion': ['inputs=both,dropout=0.8'],
  'question_answering': ['jsonl=absent', 'jsonl=absent,blind'],
  'text_classification': ['', 'data=absent.csv', 'base={base}'],
  'text_vae': [f'jsonl=absent,latent={name}' for name in text_vae.LATENTS],
  'wordnet_vae': [
    '',
    *(f'latent={name},half=1' for name in text_vae.LATENTS),
    'latent=none,half=2',
  ],
}
CASES = [
  (path, argument)
  for path in FILES
  for argument in ARGUMENTS.get(path.stem, [''])
]


@pytest.fixture
def base(tmp_path):
  """A folder with the config of an imported model, a table and series."""
  folder = tmp_path / 'base'
  folder.mkdir()
  config = config_lib.Config(
    model=config_lib.Model(vocab_size=64, width=32),
    tokenizer=config_lib.Tokenizer(kind='huggingface'),
  )
  (folder / config_lib.FILE).write_text(config_lib.to_json(config))
  (folder / 'table.csv').write_text('a,b,label\n1,2,3\n')
  (folder / 'table.jsonl').write_text('{"series": [[1, 2]], "label": "a"}\n')
  return folder


@pytest.fixture(params=CASES, ids=lambda case: f'{case[0].stem}:{case[1]}')
def experiment(request, base, tmp_path):
  """The name of an experiment and its config, with a vocabulary."""
  path, argument = request.param
  argv = ['main', f'--config={path}:{argument.format(base=base)}']
  config = command.parse(argv, {}).config
  return path.stem, plan.with_vocab(config, tmp_path, [])


def test_an_experiment_builds(experiment):
  name, config = experiment
  one = mesh_lib.make_mesh(config_lib.Parallel(), jax.devices()[:1])
  model, optimizer, state = session_lib.abstract_parts(config, one)
  batch = abstract.batch(config, one)
  new, values = jax.eval_shape(
    functools.partial(
      step.train_step, config=config, model=model, optimizer=optimizer
    ),
    state,
    batch,
    jax.ShapeDtypeStruct((), 'int32'),
  )
  assert values['loss'].shape == ()
  shapes = lambda tree: jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), tree
  )
  assert shapes(new) == shapes(state)
  low, high = SIZES.get(name, (1e4, 1e14))
  assert low <= gemini.param_count(state.params) <= high


def test_halves_of_wordnet_share_nothing():
  """With what is evaluated, the halves are all records, each once."""
  select = lambda specs: np.concatenate(
    [sources.select(sources.split_spec(spec)[1], 1000) for spec in specs]
  )
  configs = [wordnet_vae.get_config(f'half={half}') for half in (1, 2)]
  even, odd = (select(config.data.train) for config in configs)
  held = [select((*c.data.validation, *c.data.test)) for c in configs]
  assert np.array_equal(*held)
  assert set(even % 2) == {0} and set(odd % 2) == {1}
  assert sorted([*even, *odd, *held[0]]) == list(range(1000))
  whole = select(wordnet_vae.get_config().data.train)
  assert sorted([*even, *odd]) == whole.tolist()


@pytest.mark.parametrize('argument', ['half=3', 'latent=other', 'halve=1'])
def test_wrong_arguments_name_what_is_accepted(argument):
  with pytest.raises(ValueError, match=r'half=1\|2 with NAME one of cyclical'):
    wordnet_vae.get_config(argument)


@pytest.mark.parametrize(
  ('name', 'argument', 'message'),
  [
    ('dialogue', '', 'must be jsonl=FILE,base=WORKDIR'),
    ('dialogue', 'jsonl=a', 'must be jsonl=FILE,base=WORKDIR'),
    ('dialogue', 'base={base}', 'must be jsonl=FILE,base=WORKDIR'),
    ('dialogue', 'jsonl=a,base={base},x=1', 'must be jsonl=FILE,base=WORKDIR'),
    ('dialogue', 'jsonl=a,base=absent', 'absent/config.json'),
    ('summarisation', '', 'must be jsonl=FILE[,base=WORKDIR]'),
    ('summarisation', 'base={base}', 'must be jsonl=FILE[,base=WORKDIR]'),
    ('summarisation', 'jsonl=a,based=b', 'must be jsonl=FILE[,base=WORKDIR]'),
    ('summarisation', 'jsonl=absent', 'no file matches'),
  ],
)
def test_a_wrong_argument_is_one_line(
  name, argument, message, base, capsys, tmp_path
):
  argument = argument.format(base=base)
  argv = [f'--config={FOLDER}/{name}.py:{argument}', f'--workdir={tmp_path}/a']
  assert main.main(['main', *argv]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and message in line
