r"""Depth doubled in the middle of a run, beside the large model from the start.

  python tests/growth_study.py --out=runs/growth [--steps=250] [--seeds=2]

The quickstart's data and model. `start` trains all layers for --steps; the
others train half of the layers for half of their steps, then all; their steps
are as many as cost the same FLOPs. The table gives the validation loss before
and after the growth, the parameters being the same updates old, and at the end.
"""

import argparse
import dataclasses
import pathlib
import shutil

import numpy as np

from experiments import quickstart
from gemini_jax import config as config_lib
from gemini_jax.evaluate import held_out
from gemini_jax.models import build
from gemini_jax.parallel import sharding
from gemini_jax.train import flops, loop
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib

METHODS = {
  'start': {},
  'preserve': {'method': 'preserve'},
  'interleave': {'method': 'preserve', 'order': 'interleave'},
  'reset': {'method': 'preserve', 'moments': 'reset'},
  'copy': {'method': 'copy'},
}


def make_config(method: str, seed: int, num_steps: int) -> config_lib.Config:
  """The config of a run with as many FLOPs as the large model's steps."""
  values = quickstart.get_config()
  values.train.seed = seed
  values.train.num_steps = num_steps
  values.train.eval_every = values.train.save_every = 100_000
  values.train.keep_last = 10
  values.evaluate.evaluators = ()
  config = config_lib.from_config_dict(values)
  if method == 'start':
    return config
  sized = build.with_vocab(config, values.tokenizer.vocab_size)
  half = dataclasses.replace(
    sized,
    model=dataclasses.replace(
      sized.model, num_layers=config.model.num_layers // 2
    ),
  )
  large, small = flops.step_flops(sized), flops.step_flops(half)
  at_step = round(num_steps * large / (large + small))
  growth = config_lib.Growth(
    at_step=at_step, num_layers=half.model.num_layers, **METHODS[method]
  )
  train = dataclasses.replace(config.train, num_steps=2 * at_step)
  return dataclasses.replace(config, growth=growth, train=train)


def loss_at_growth(config: config_lib.Config, workdir, *, is_grown: bool):
  """Validation loss of the checkpoint at which the run grows."""
  copy = workdir.with_name(f'{workdir.name}.{is_grown}')
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(workdir, copy)
  for path in (copy / 'checkpoints').iterdir():
    if int(path.name) > config.growth.at_step:
      shutil.rmtree(path)
  session = session_lib.open_session(config, copy, is_grown=is_grown)
  run = session.run
  with sharding.use(run.mesh):
    restored = session.resume()
    assert restored is not None
    return loss_of(run, state_lib.evaluation_params(run.config, restored.state))


def loss_of(run, params) -> float:
  """Validation loss."""
  loaders = held_out.loaders(run)
  step = held_out.compile_step(run, params, loaders['validation'])
  return held_out.evaluate(run, params, step, loaders)['validation/loss']


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=250)
  parser.add_argument('--seeds', type=int, default=2)
  parser.add_argument('--methods', default=','.join(METHODS))
  flags = parser.parse_args()
  print('| method | steps | before | after | change % | end |')
  print('|---|---|---|---|---|---|')
  for method in flags.methods.split(','):
    rows = []
    for seed in range(flags.seeds):
      config = make_config(method, seed, flags.steps)
      workdir = flags.out / f'{method}-{seed}'
      loop.train(config, workdir)
      session = session_lib.open_session(config, workdir)
      with sharding.use(session.run.mesh):
        params = session.run.restore_params().params
        end = loss_of(session.run, params)
      around = [np.nan] * 2
      if method != 'start':
        around = [
          loss_at_growth(config, workdir, is_grown=is_grown)
          for is_grown in (False, True)
        ]
      rows.append((*around, end))
    before, after, end = np.mean(rows, axis=0)
    print(
      f'| {method} | {config.train.num_steps} | {before:.4f} | {after:.4f} | '
      f'{100 * (after / before - 1):+.3f} | {end:.4f} '
      f'({", ".join(f"{row[-1]:.4f}" for row in rows)}) |',
      flush=True,
    )


if __name__ == '__main__':
  main()
