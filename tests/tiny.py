"""Tiny runs of the whole command line, shared by tests."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from gemini_jax import command, main
from gemini_jax import config as config_lib
from gemini_jax.checkpoint import checkpointer

# Of a process with one device; see conftest.
ENVIRONMENT = {
  'XLA_FLAGS': ' '.join(
    flag
    for flag in os.environ['XLA_FLAGS'].split()
    if 'device_count' not in flag
  ),
}
ROOT = pathlib.Path(__file__).parents[1]

EXPERIMENT = """
from experiments import base


def get_config(arg=''):
  config = base.get_config()
  config.data.train = ('text:{folder}/*.txt#[!3::4]',)
  config.data.validation = ('text:{folder}/*.txt#[3::4]',)
  config.data.cache_dir = '{folder}/tokens'
  config.data.batch_size = 8
  config.data.sequence_length = 16
  config.data.prefetch = 1
  config.model.max_length = 24
  config.model.width = 32
  config.model.mlp_dim = 48
  config.model.num_layers = 2
  config.model.num_heads = 2
  config.optimizer.learning_rate = 3e-3
  config.train.num_steps = 20
  config.train.log_every = 4
  config.train.eval_every = 10
  config.train.save_every = 10
  config.generate.max_tokens = 6
  config.generate.prefill_chunk = 8
"""

SEQ2SEQ = (
  "data.train = ('reverse:60#[:40]',)",
  "data.validation = ('reverse:60#[40:]',)",
  "data.inputs_field = 'inputs'",
  "data.targets_field = 'targets'",
  "data.objective = 'seq2seq'",
  'data.sequence_length = 32',
  'data.inputs_length = 31',
  'model.max_length = 32',
  "model.architecture = 'encoder_decoder'",
)


def write_texts(folder, num_files=8, num_lines=10, seed=0):
  """Files of lines that a model can learn: counting in words."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  words = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven']
  for i in range(num_files):
    starts = rng.integers(0, 8, num_lines)
    lines = [
      ' '.join(words[(start + k) % 8] for k in range(8)) for start in starts
    ]
    (folder / f'{i}.txt').write_text('\n'.join(lines) + '\n')


def experiment(folder, *lines, name='experiment.py'):
  """An experiment's file on texts of its own; `lines` edit its config."""
  if not (folder / '0.txt').exists():
    write_texts(folder)
  body = textwrap.indent('\n'.join(f'config.{line}' for line in lines), '  ')
  path = folder / name
  path.write_text(
    f'{EXPERIMENT.format(folder=folder)}{body}\n  return config\n'
  )
  return path


def arguments(file, workdir, *overrides, mode='train'):
  """The command line; `overrides` are `section.field=value`."""
  return [
    f'--config={file}',
    f'--workdir={workdir}',
    f'--mode={mode}',
    *(f'--config.{override}' for override in overrides),
  ]


def run(file, workdir, *overrides, mode='train'):
  """`main` in this process; returns its exit code."""
  return main.main(['main', *arguments(file, workdir, *overrides, mode=mode)])


def free_port():
  """A port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def start(file, workdir, *overrides):
  """`main` in a process of its own, on one device; stderr joins stdout."""
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'gemini_jax.main',
      *arguments(file, workdir, *overrides),
    ],
    cwd=ROOT,
    env=os.environ | ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def metrics(workdir, *without):
  """The lines of metrics.jsonl as dicts, some fields left out."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {
      name: value
      for name, value in json.loads(line).items()
      if name not in without
    }
    for line in lines
  ]


def generated(workdir):
  """The newest samples of `--mode=generate`, as dicts."""
  paths = (workdir / 'samples').glob('*-generate*.jsonl')
  newest = max(paths, key=lambda path: (len(path.name), path.name))
  return [json.loads(line) for line in newest.read_text().splitlines()]


def config(**sections):
  """A Config for toy.batch: `sections` hold fields by section."""
  small = {
    'model': {
      'vocab_size': 23,
      'max_length': 12,
      'width': 16,
      'mlp_dim': 24,
      'num_layers': 2,
      'num_heads': 4,
      'num_kv_heads': 2,
    },
    'data': {'sequence_length': 12, 'batch_size': 2},
  }
  return config_lib.from_config_dict(
    {
      name: small.get(name, {}) | sections.get(name, {})
      for name in (*small, *sections)
    }
  )


def replace(values, path, value):
  """A frozen config with `section.field` replaced."""
  section, name = path.split('.')
  inner = dataclasses.replace(getattr(values, section), **{name: value})
  return dataclasses.replace(values, **{section: inner})


def arrays(workdir, step=None):
  """The arrays of a checkpoint by path, as they lie on the disk."""
  checkpoints = checkpointer.Checkpointer(workdir / 'checkpoints')
  step = checkpoints.steps()[-1] if step is None else step
  path = checkpoints.path(step) / 'state'
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
    ocp.metadata(path).metadata,
  )
  return {
    jax.tree_util.keystr(name, simple=True, separator='/'): np.asarray(leaf)
    for name, leaf in jax.tree_util.tree_flatten_with_path(
      ocp.load(path, abstract)
    )[0]
  }


def save_zeros(session, step, manifest=None, metric=1.0):
  """A checkpoint of zeros, of a session that is open for training."""
  state = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
    session.abstract,
  )
  data = {'fingerprint': {'tokenizer': session.run.tokenizer.fingerprint}}
  checkpoints = session.run.checkpoints
  checkpoints.save(step, state, manifest or {'data': data}, metric)
  checkpoints.wait()
  session.write_config()


def parse(folder):
  """The config of an experiment that is written into a folder."""
  argv = ['main', *arguments(experiment(folder), folder / 'run')]
  return command.parse(argv, {'workdir': None, 'mode': None}).config
