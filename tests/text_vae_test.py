"""The text VAE from the command line: trained, measured, sampled, refused."""

import numpy as np
import pytest

import grammar
import tiny

SIZES = (
  'model.width=32',
  'model.num_layers=1',
  'model.latent.dim=4',
  'data.batch_size=8',
  'train.num_steps=6',
  'train.log_every=2',
  'evaluate.likelihood.importance_samples=3',
  'generate.max_tokens=5',
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The experiment's argument and the folder of a short run."""
  folder = tmp_path_factory.mktemp('vae')
  grammar.write(folder / 'texts.jsonl', 80)
  experiment = f'{tiny.ROOT}/experiments/text_vae.py'
  file = f'{experiment}:jsonl={folder}/texts.jsonl,latent=cyclical'
  options = (*SIZES, f'data.cache_dir={folder}/tokens')
  assert tiny.run(file, folder / 'run', *options) == 0
  return file, folder / 'run', options


def written(trained, *options):
  file, workdir, sizes = trained
  assert tiny.run(file, workdir, *sizes, *options, mode='generate') == 0
  return tiny.generated(workdir)


def test_a_run_tells_what_its_latent_does(trained):
  last = tiny.metrics(trained[1])[-1]
  for name in ('nll', 'kl', 'mi', 'active_units', 'loss'):
    assert np.isfinite(last[f'test/{name}'])
  train = [line for line in tiny.metrics(trained[1]) if 'train/kl' in line]
  assert [line['train/kl_weight'] for line in train] == pytest.approx(
    # Cycles of 1.5 steps; the weight is that of the step before.
    [1.0, 0.0, 2 / 3],
    abs=1e-5,
  )


def test_every_sample_has_the_z_it_was_written_from(trained):
  samples = written(trained, 'generate.source=prior', 'generate.count=3')
  assert len({tuple(sample['z']) for sample in samples}) == 3
  again = written(
    trained,
    f'generate.latent={tuple(samples[1]["z"])}',
    'generate.temperature=0.0',
  )
  assert again[0]['z'] == samples[1]['z']


@pytest.mark.parametrize(
  ('source', 'prompt', 'count'),
  [
    ('posterior', 'goni nidi', 2),
    ('interpolate', 'goni nidi || moda nifu', 4),
    ('analogy', 'goni || nidi || moda', 1),
  ],
)
def test_sources(trained, source, prompt, count):
  samples = written(
    trained,
    f'generate.source={source}',
    f'generate.prompt={prompt}',
    f'generate.count={count}',
  )
  assert len(samples) == count and all(len(s['z']) == 4 for s in samples)


REFUSED = [
  (('generate.source=posterior',), 'an empty text has no posterior'),
  (('generate.latent=(1.0,)',), 'must have model.latent.dim=4'),
  (('generate.source=interpolate',), "2 texts with '||' between them"),
]


@pytest.mark.parametrize(('options', 'message'), REFUSED, ids=str)
def test_what_cannot_be_written_is_told_in_a_line(
  trained, options, message, capfd
):
  file, workdir, sizes = trained
  assert tiny.run(file, workdir, *sizes, *options, mode='generate') == 2
  error = capfd.readouterr().err.strip().splitlines()[-1]
  assert error.startswith('error: ') and message in error


def test_another_argument_is_refused(tmp_path, capfd):
  file = f'{tiny.ROOT}/experiments/text_vae.py:latent=mean'
  assert tiny.run(file, tmp_path / 'run') == 2
  assert 'must be jsonl=FILE,latent=NAME' in capfd.readouterr().err
