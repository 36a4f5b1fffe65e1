"""Runs that were never trained, for the commands that compare runs."""

import json
import shutil

import pytest

import grammar
import tiny
from gemini_jax import command
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib


def lines(folder, *more):
  source = f'jsonl:{folder}/texts.jsonl'
  return (
    f"data.train = ('{source}#[!3::4]',)",
    f"data.validation = ('{source}#[3::8]',)",
    f"data.test = ('{source}#[7::8]',)",
    'data.pack = False',
    "tokenizer.kind = 'sentencepiece'",
    'tokenizer.vocab_size = 400',
    'model.num_layers = 1',
    'model.max_length = 40',
    'data.sequence_length = 40',
    *more,
  )


@pytest.fixture(scope='session')
def runs(tmp_path_factory):
  """A folder with a language model, one of z, and one to judge.

  They are not trained. The judge's training texts are other ones.
  """
  folder = tmp_path_factory.mktemp('runs')
  grammar.write(folder / 'texts.jsonl', 200)
  grammar.write(folder / 'others.jsonl', 400, seed=1)
  latent_dim = 'model.latent.dim = 4'
  for name, more in (
    ('lm', ()),
    ('vae', (latent_dim, 'model.num_encoder_layers = 1')),
  ):
    file = tiny.experiment(folder, *lines(folder, *more), name=f'{name}.py')
    config = command.parse(['', f'--config={file}'], {}).config
    session = session_lib.open_session(config, folder / name)
    run = session.run
    state = state_lib.init_state(
      run.config, run.model, session.optimizer, session.abstract
    )
    run.checkpoints.save(1, state, {})
    run.checkpoints.wait()
    session.write_config()
  shutil.copytree(folder / 'lm', folder / 'judge')
  file = folder / 'judge/config.json'
  config = json.loads(file.read_text())
  config['data']['train'] = [f'jsonl:{folder}/others.jsonl']
  file.write_text(json.dumps(config))
  (folder / 'vae/metrics.jsonl').write_text('{"step": 1, "test/kl": 2.5}\n')
  return folder
