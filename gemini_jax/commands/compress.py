"""`--mode=compress`: a smaller model of a run, and what it costs and gives."""

import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.compress import layers, recovery, speed
from gemini_jax.config import compress as compress_config
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import held_out
from gemini_jax.layers import matmul
from gemini_jax.models import build, parameter_groups
from gemini_jax.parallel import compilation, sharding
from gemini_jax.train import compression_table, early_stopping, run_report
from gemini_jax.weights import block_ell, compressed

# In the folder of the run, a workdir for each compressed model.
FOLDER = 'compressed'
# What is compressed by what is known of the weights alone.
UNCALIBRATED = f'{parameter_groups.LAYER_MATRICES}|@expert$'


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
    options = _with_zeros(options, dense.params)
    # What may fail does so before the work.
    compression_table.read(path)
    loaders = held_out.loaders(run)
    begin = time.perf_counter()
    params = _made(run, options, dense.params)
    seconds = time.perf_counter() - begin
    target = path / FOLDER / name_of(options)
    options = dataclasses.replace(
      options, num_kept=compressed.num_kept(options, params)
    )
    _write(run, options, params, target)
    rows = _rows(run, options, dense.params, target, loaders, seconds)
  compression_table.add(path, rows)
  stopping = early_stopping.EarlyStopping(
    config.train.early_stopping, dense.manifest
  )
  run_report.write(run, dense.step, stopping.reason)
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
  config_lib.check(
    not config.data.rejected_field,
    f'data.rejected_field={config.data.rejected_field!r}: --mode=compress has '
    "no loss of pairs of answers; set it to '', and data to texts",
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
  options = dataclasses.replace(asked, is_stored=True, num_kept=())
  if before.is_stored and asked.recovery == before.recovery:
    # That was asked for then.
    options = dataclasses.replace(options, recovery=compress_config.Recovery())
  config_lib.check(
    not before.is_stored or before.weights == 'float',
    f'--workdir={path} is quantised already ({before.weights}); compress the '
    'run that it was made of',
  )
  if options.method not in compress_config.PRUNING:
    inherits = before.is_stored and options.share == before.share
    config_lib.check(
      inherits or not options.share,
      f'compress.method={options.method!r} prunes nothing, and compress.alpha='
      f'{options.alpha:g}, compress.n_m={options.n_m!r} ask for it; use '
      'magnitude, wanda or sparsegpt, or leave them out',
    )
    return dataclasses.replace(options, alpha=0.0, n_m='', block=0)
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


def _with_zeros(
  options: config_lib.Compress, params: Any
) -> config_lib.Compress:
  """With the share of zeros that are there, where none are added.

  Raises:
    ConfigError: see `compressed.targets`; or no block of a matrix is pruned.
  """
  if not options.pattern and options.method not in compress_config.CALIBRATED:
    # These have no inputs that a calibration sees.
    options = dataclasses.replace(options, pattern=UNCALIBRATED)
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  leaves = {compressed.name_of(path): leaf for path, leaf in flat}
  num_zeros = size = 0
  for name, target in compressed.targets(options, params).items():
    if target.is_table:
      continue
    size += leaves[name].size
    num_zeros += int(jnp.sum(leaves[name] == 0))
    if target.block:
      (inputs, _) = target.sizes(leaves[name].shape)
      num_blocks = math.prod(inputs) // target.block
      config_lib.check(
        block_ell.num_kept(options.alpha, num_blocks) < num_blocks,
        f'compress.alpha={options.alpha:g} prunes none of the {num_blocks} '
        f'blocks of inputs of {name}; choose more, or a smaller compress.block',
      )
  if options.method in compress_config.PRUNING:
    return options
  share = round(num_zeros / size, 4)
  return dataclasses.replace(options, alpha=share if share >= 0.01 else 0.0)


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
  usual = config_lib.Compress()
  if options.weights == 'int4' and options.group != usual.group:
    parts.append(f'group{options.group}')
  if options.int8_inputs:
    parts.append('inputs')
  if options.recovery.steps:
    parts.append(f'recovered{options.recovery.steps}')
  if rest := _other_choices(options):
    # What a name should not spell out still tells models apart.
    parts.append(hashlib.sha256(repr(rest).encode()).hexdigest()[:6])
  return '-'.join(parts)


def _other_choices(options: config_lib.Compress) -> list[tuple[str, Any]]:
  """Fields that count and are not as usual, but for those of `name_of`."""
  is_calibrated = options.method in compress_config.CALIBRATED
  counts = {
    'pattern': options.pattern != UNCALIBRATED,
    'tables': options.weights != 'float',
    'sequences': is_calibrated,
    'damping': is_calibrated,
  }
  choices = [
    (name, getattr(options, name), getattr(config_lib.Compress(), name))
    for name, does_count in counts.items()
    if does_count
  ]
  if options.recovery.steps:
    usual = dataclasses.asdict(compress_config.Recovery())
    choices += [
      (name, value, usual[name])
      for name, value in dataclasses.asdict(options.recovery).items()
      if name != 'steps'
    ]
  return [(name, value) for name, value, usual in choices if value != usual]


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
    run.config.of_finished(),
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
  loaders: Mapping[loader_lib.Split, loader_lib.Loader],
  seconds: float,
) -> list[dict[str, Any]]:
  """What the model was like, and what it is like as its folder opens."""
  config = dataclasses.replace(
    config_lib.read(target / run_lib.CONFIG_FILE), evaluate=run.config.evaluate
  )
  small = run_lib.open_run(config, target)
  params = small.restore_params().params
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
      'bytes': _disk_bytes(
        run if key == 'dense' else small, tree, target.parent
      ),
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


def _disk_bytes(run: run_lib.Run, params: Any, where: pathlib.Path) -> int:
  """Of the files of a checkpoint of the parameters alone.

  Those of a training hold more, so one of the parameters is written for a
  moment, in a folder `where` there is room for a compressed one too.
  """
  size = lambda manifest: sum(size for size, _ in manifest['files'].values())
  manifest = run.checkpoints.manifest(run.checkpoints.steps()[-1])
  if all(name.startswith('params/') for name in manifest['arrays']):
    return size(manifest)
  with tempfile.TemporaryDirectory(dir=where) as folder:
    checkpoints = run_lib.open_checkpoints(run.config, pathlib.Path(folder))
    checkpoints.save(0, {'params': params}, {'imported': True})
    checkpoints.close()
    return size(checkpoints.manifest(0))
