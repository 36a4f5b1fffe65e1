"""`--mode=compress`: a smaller model of a run, and what it costs and gives."""

import dataclasses
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.compress import layers, recovery, speed
from gemini_jax.config import compress as compress_config
from gemini_jax.evaluate import held_out
from gemini_jax.layers import matmul
from gemini_jax.models import build
from gemini_jax.parallel import compilation, sharding
from gemini_jax.train import compression_table, run_report
from gemini_jax.weights import compressed

# In the folder of the run, a workdir for each compressed model.
FOLDER = 'compressed'


def compress(config: config_lib.Config, workdir: str | os.PathLike):
  """Compresses the model of a run as `config.compress` says.

  Raises:
    ConfigError: there is no model, no data, or it cannot be compressed so.
  """
  path = pathlib.Path(workdir)
  check_request(config)
  before = config_lib.Compress()
  if (path / config_lib.FILE).exists():
    before = run_lib.saved_config(path).compress
  options = _options(config.compress, before, path)
  config = dataclasses.replace(config, compress=before)
  run = run_lib.open_run(config, path)
  compilation.enable_cache(config)
  with sharding.use(run.mesh):
    dense = run.restore_params(
      config.evaluate.checkpoint, 'evaluate.checkpoint'
    )
    plain = build.abstract_params(run.model, run.mesh)
    if config.tune.method != 'full' or before.is_stored:
      dense = dataclasses.replace(
        dense, params=compressed.to_plain(dense.params, plain)
      )
    compressed.targets(options, dense.params)
    begin = time.perf_counter()
    params = _made(run, options, dense.params)
    seconds = time.perf_counter() - begin
    target = path / FOLDER / name_of(options)
    _write(run, options, params, target)
    rows = _rows(run, options, dense.params, target, seconds)
  compression_table.add(path, rows)
  run_report.write(run, dense.step)
  print(json.dumps(rows[-1]))


def check_request(config: config_lib.Config):
  """Refuses what needs no model to be wrong.

  Raises:
    ConfigError: nothing is asked for, or there are no data for it.
  """
  options = config.compress
  config_lib.check(
    options.method != 'none',
    "compress.method='none' compresses nothing; choose round, gptq, magnitude, "
    'wanda or sparsegpt',
  )
  config_lib.check(
    bool(config.data.validation or config.data.test),
    'data.validation and data.test are both empty: the loss of what is '
    'compressed needs one of them',
  )
  reads = options.method in compress_config.CALIBRATED or options.recovery.steps
  config_lib.check(
    not reads or bool(config.data.train),
    f'compress.method={options.method!r} and recovery read data.train, which '
    'is empty: calibration has no batch',
  )
  config_lib.check(
    jax.process_count() == 1, '--mode=compress runs in one process'
  )


def _options(
  asked: config_lib.Compress, before: config_lib.Compress, path: pathlib.Path
) -> config_lib.Compress:
  """What is asked for, with what was pruned before.

  Raises:
    ConfigError: the model is quantised, or nothing would be done.
  """
  options = dataclasses.replace(asked, is_stored=True)
  config_lib.check(
    not before.is_stored or before.weights == 'float',
    f'--workdir={path} is quantised already ({before.weights}); compress the '
    'run that it was made of',
  )
  if before.is_stored and options.method not in compress_config.PRUNING:
    # Zeros stay.
    options = dataclasses.replace(
      options, alpha=before.alpha, n_m=before.n_m, block=before.block
    )
  elif options.method not in compress_config.PRUNING:
    config_lib.check(
      not options.share,
      f'compress.method={options.method!r} prunes nothing, and compress.alpha='
      f'{options.alpha:g}, compress.n_m={options.n_m!r} ask for it; use '
      'magnitude, wanda or sparsegpt, or leave them out',
    )
  config_lib.check(
    options.share > 0 or options.weights != 'float',
    'compress.alpha=0 prunes nothing and compress.weights=float rounds '
    'nothing; set one of them, or compress.n_m',
  )
  config_lib.check(
    not before.is_stored or options.share >= before.share,
    f'--workdir={path} has {before.share:g} of its weights pruned, more than '
    f'compress.alpha={options.share:g}',
  )
  return options


def name_of(options: config_lib.Compress) -> str:
  """Of a compressed model, and of its folder."""
  parts = [options.method]
  if options.n_m:
    parts.append(options.n_m.replace(':', 'of'))
  elif options.alpha:
    parts.append(f'{options.alpha:g}')
  if options.block:
    parts.append(f'blocks{options.block}')
  if options.weights != 'float':
    parts.append(options.weights)
  if options.int8_inputs:
    parts.append('inputs')
  if options.recovery.steps:
    parts.append(f'recovered{options.recovery.steps}')
  return '-'.join(parts)


def _made(run: run_lib.Run, options: config_lib.Compress, params: Any) -> Any:
  """The compressed parameters."""
  count = 0
  batches = iter(())
  reads = options.method in compress_config.CALIBRATED
  if reads or options.recovery.steps:
    loader = run.loader('train')
    count = -(-options.sequences // loader.batch_size) * reads
    batches = run_lib.device_batches(
      run, loader, (loader[index] for index in itertools.count())
    )
  made = layers.compress(
    options, run.model, params, list(itertools.islice(batches, count))
  )
  if options.recovery.steps:
    made = recovery.recover(options, run.model, made, params, batches)
  return made


def _write(
  run: run_lib.Run,
  options: config_lib.Compress,
  params: Any,
  target: pathlib.Path,
):
  """A workdir with the parameters as the checkpoint of step 0."""
  config = dataclasses.replace(
    run.config,
    compress=options,
    tune=config_lib.Tune(),
    train=dataclasses.replace(run.config.train, init_from=''),
  )
  draft = target.with_name(f'{target.name}.unfinished')
  try:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    run.tokenizer.save(draft / run_lib.TOKENIZER_FILE)
    checkpoints = run_lib.open_checkpoints(config, draft)
    manifest = {
      'imported': True,
      'data': {'fingerprint': {'tokenizer': run.tokenizer.fingerprint}},
    }
    checkpoints.save(
      0, {'params': compressed.stored(options, params)}, manifest
    )
    checkpoints.close()
    text = config_lib.to_json(config)
    host.replace_file(draft / run_lib.CONFIG_FILE, text.encode())
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
  except OSError as error:
    raise config_lib.ConfigError(
      f'{target} cannot be written: {error.strerror}'
    ) from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _rows(
  run: run_lib.Run,
  options: config_lib.Compress,
  dense: Any,
  target: pathlib.Path,
  seconds: float,
) -> list[dict[str, Any]]:
  """What the model was like, and what it is like as its folder opens."""
  config = dataclasses.replace(
    config_lib.read(target / run_lib.CONFIG_FILE), evaluate=run.config.evaluate
  )
  small = run_lib.open_run(config, target)
  params = small.restore_params().params
  loaders = held_out.loaders(run)
  speeds = speed.measure(run, {'dense': dense, 'small': params})
  names = {'dense': compression_table.DENSE, 'small': name_of(options)}
  rows = []
  for key, tree in {'dense': dense, 'small': params}.items():
    step = held_out.compile_step(run, tree, next(iter(loaders.values())))
    results = held_out.evaluate(run, tree, step, loaders)
    split = 'validation' if 'validation/loss' in results else 'test'
    row = {
      'name': names[key],
      'method': compression_table.DENSE,
      'alpha': 0.0,
      'bits': 8 * jnp.dtype(run.config.model.param_dtype).itemsize,
      'loss': results[f'{split}/loss'],
      'perplexity': math.exp(min(results[f'{split}/loss'], 700.0)),
      'split': split,
      'parameters': _num_parameters(tree),
      'bytes': _disk_bytes(run if key == 'dense' else small, tree),
      'memory_bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(tree)),
      **speeds[key],
      'decode_speedup': speeds[key]['decode_tokens_per_second']
      / speeds['dense']['decode_tokens_per_second'],
      'device': jax.devices()[0].device_kind,
    }
    if key == 'small':
      row |= {
        'method': options.method,
        'alpha': options.share,
        'n_m': options.n_m,
        'block': options.block,
        'weights': options.weights,
        'bits': compress_config.BITS.get(options.weights, row['bits']),
        'group': options.group,
        'recovery_steps': options.recovery.steps,
        'compression_seconds': seconds,
        'workdir': f'{FOLDER}/{target.name}',
      }
    rows.append(row)
    logging.info('%s: loss %.4f', row['name'], row['loss'])
  return rows


def _num_parameters(params: Any) -> int:
  """Numbers that are not zero."""
  count = jax.jit(lambda leaf: jnp.sum(matmul.to_array(leaf, jnp.float32) != 0))
  leaves = jax.tree.leaves(params, is_leaf=compressed.is_weight)
  return sum(int(count(leaf)) for leaf in leaves)


def _disk_bytes(run: run_lib.Run, params: Any) -> int:
  """Of the files of a checkpoint of the parameters alone.

  Those of a training hold more; their parameters would take as much as in
  memory.
  """
  step = run.checkpoints.steps()[-1]
  manifest = run.checkpoints.manifest(step)
  if all(name.startswith('params/') for name in manifest['arrays']):
    return sum(size for size, _ in manifest['files'].values())
  return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
