"""The training loop, read from top to bottom."""

import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.adapt import enabled
from gemini_jax.config import legacy
from gemini_jax.data import loader as loader_lib
from gemini_jax.data import splits as splits_lib
from gemini_jax.evaluate import evaluation, likelihood, media_metrics, retrieval
from gemini_jax.infer import generation
from gemini_jax.infer import prompts as prompts_lib
from gemini_jax.infer import samples as samples_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import placement, processes, sharding
from gemini_jax.train import diagnosis, metrics, preemption
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import schedule as schedule_lib
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib


def train(config: config_lib.Config, workdir: str | os.PathLike):
  """Trains to `train.num_steps`, from the newest checkpoint if there is one.

  Raises:
    ConfigError: the config, the data or the folder cannot be used.
    FloatingPointError: a loss, gradient or update was not finite.
    LostError: the folder was removed meanwhile.
  """
  with lock_lib.Lock() as lock:
    session = session_lib.open_session(config, workdir, lock)
    with sharding.use(session.run.mesh):
      try:
        _train(session)
      except Exception:
        # In a folder that was removed many things fail: say the reason.
        lock.check()
        raise


def evaluate(config: config_lib.Config, workdir: str | os.PathLike):
  """Evaluates a checkpoint on the held-out splits, and prints it.

  Raises:
    ConfigError: there is no checkpoint or no held-out split, or what `eval`
      asks for cannot be done.
  """
  media_metrics.check(config)
  run = run_lib.open_run(config, workdir)
  run_lib.enable_compilation_cache(config)
  held_out = _held_out(run)
  config_lib.check(
    bool(held_out), 'data.validation and data.test are both empty'
  )
  _check_generation(run, held_out)
  with sharding.use(run.mesh):
    restored = run.restore_params(config.generate.checkpoint)
    params = restored.params
    eval_step = compile_eval(run, params, next(iter(held_out.values())))
    results = evaluate_splits(run, params, eval_step, held_out)
    results |= exact_matches(run, params, held_out)
    results |= appraisals(run, params, held_out, restored.step)
  print(json.dumps({'step': restored.step} | results))


def _held_out(run: run_lib.Run) -> dict[loader_lib.Split, loader_lib.Loader]:
  splits: tuple[loader_lib.Split, ...] = ('validation', 'test')
  return {
    split: run.loader(split)
    for split in splits
    if getattr(run.config.data, split)
  }


def _check_generation(
  run: run_lib.Run, held_out: Mapping[loader_lib.Split, loader_lib.Loader]
):
  """ConfigError where what `eval` asks for at the end cannot be done."""
  config = run.config
  for name in ('exact_match', 'judged', 'captions', 'retrieval'):
    value = getattr(config.eval, name)
    config_lib.check(
      not value or bool(held_out),
      f'eval.{name}={value} needs data.validation or data.test',
    )
  decoder = generation.build_decoder(config, run.model, run.tokenizer, 1)
  for i, text in enumerate(config.eval.samples):
    try:
      prompt = prompts_lib.read_prompt(config, run.model, run.tokenizer, text)
      inputs = () if prompt.inputs is None else (prompt.inputs,)
      decoder.check_lengths([prompt.tokens], inputs)
    except UnicodeError as error:
      raise config_lib.ConfigError(
        f'eval.samples[{i}]={text!r} is not valid text: {error}'
      ) from error
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(
        str(error).replace('generate.prompt', f'eval.samples[{i}]')
      ) from error


def _train(session: session_lib.Session):
  run = session.run
  config = run.config
  num_steps = config.train.num_steps
  run_lib.enable_compilation_cache(config)
  media_metrics.check(config)
  data = run.loader('train')
  held_out = _held_out(run)
  _check_generation(run, held_out)
  metrics.check(config)

  # Where the run stands: the newest whole checkpoint, or a fresh state.
  restored = session.resume()
  manifest = restored.manifest if restored else {}
  if restored is None:
    state = session.init_state()
    step, size = 0, 0
  else:
    state, step = restored.state, restored.step
    size = manifest['metrics_bytes']
    data.check(manifest['data'], config.train.accept_changes)
    # The checkpoint was written before the step was evaluated.
    state = observe(config, state, manifest.get('observed'))
  results = legacy.metrics(manifest.get('results', {}))

  def evaluates(done: int) -> bool:
    every = config.train.eval_every
    return bool(held_out) and (done % every == 0 or done == num_steps)

  def is_due(done: int) -> bool:
    """Whether something is to be done once this step is saved."""
    shows = done == num_steps and bool(config.eval.samples)
    return evaluates(done) or shows

  due = manifest.get('due', False) and is_due(step)
  if step >= num_steps and not due:
    print(
      f'{run.workdir} is done: step {step:,} of {num_steps:,}'
      f'{metrics.spell_results(results)}'
    )
    return
  print(
    f'{gemini.param_count(state.params):,} parameters on '
    f'{metrics.devices_line()}; {placement.describe(state)}'
  )
  print(f'{"resuming" if step else "starting"} at step {step:,}', flush=True)
  if 'config' in manifest and step < num_steps:
    print(
      schedule_lib.course_change(
        config, legacy.upgrade(manifest['config']), step
      ),
      end='',
      flush=True,
    )
  if config.model.kinds and not step and processes.is_process_zero():
    media_metrics.show_batch(run, data[0])

  # One compilation each, before the first batch.
  train_step: Any = None
  eval_step: Any = None
  if step < num_steps:
    first = next(
      run_lib.device_batches(run, data, loader_lib.iterate(data, step, 0))
    )
    train_step = compile_step(
      config, run.model, session.optimizer, session.abstract, first
    )
  if held_out:
    eval_step = compile_eval(
      run,
      state_lib.evaluation_params(config, state),
      next(iter(held_out.values())),
    )

  if held_out and config.train.keep_best:
    apart = math.lcm(config.train.eval_every, config.train.save_every)
    if apart not in (config.train.eval_every, config.train.save_every):
      logging.warning(
        'train.keep_best: only the checkpoints of every %d steps, and the '
        'last, are validated and can be the best; let train.save_every=%d be '
        'a multiple of train.eval_every=%d, or the reverse',
        apart,
        config.train.save_every,
        config.train.eval_every,
      )
  writer = _open_writer(run, step, size)
  # Not before the lines of what was cut off are gone; see session.py.
  session.clean()
  # The others write none.
  if not processes.all_processes(
    not processes.is_process_zero() or writer.size() >= size
  ):
    # The user has put an empty file in its place.
    processes.on_process_zero(
      lambda: run.checkpoints.attach(
        step, {'metrics_bytes': writer.size()}, manifest.get('metric')
      )
    )
  # Nothing is refused from here on.
  session.write_config()
  progress = metrics.Progress(step, num_steps)
  guard = preemption.PreemptionGuard(run.mesh)
  stopwatch = metrics.Stopwatch()
  # The last step of the line before, and the tokens since.
  logged, tokens = step, 0.0
  pending: tuple[int, dict[str, jax.Array]] | None = None
  stops = False

  def settle(pending):
    """Looks at a finished step's numbers; writes a line if one is due."""
    nonlocal logged, tokens, stops
    done, device_values = pending
    values = {k: float(v) for k, v in jax.device_get(device_values).items()}
    stops = bool(values.pop('stops')) or stops
    if not values.pop('finite'):
      diagnosis.raise_not_finite(session, state, data, done, values)
    tokens += values['tokens']
    if done % config.train.log_every and done != num_steps:
      return
    processes.on_process_zero(session.lock.check)
    seconds = stopwatch.lap()
    line: dict[str, float | None] = {
      f'train/{name}': value for name, value in values.items()
    }
    line['train/step_seconds'] = seconds / (done - logged)
    line['train/tokens_per_second'] = tokens / seconds
    line['train/mfu'] = metrics.mfu(config, seconds / (done - logged))
    logged, tokens = done, 0.0
    writer.write(done, line)
    progress.update(done, line)

  def save(state, done):
    processes.on_process_zero(session.lock.check)
    run.checkpoints.save(
      done,
      state,
      {
        'config': dataclasses.asdict(config),
        'data': data.state(done),
        'metrics_bytes': writer.size(),
        'results': dict(results),
        'due': is_due(done),
      },
    )

  def examine(state, done, saved):
    """Does what is due at a step; returns the state that a plateau changes.

    The checkpoint of the step learns the outcome. Without it, the next start
    does all of this again, and drops the lines that were written here.
    """
    new: dict[str, float] = {}
    last = done == num_steps
    params = state_lib.evaluation_params(config, state)
    if evaluates(done):
      splits: list[loader_lib.Split] = [
        s for s in held_out if last or s == 'validation'
      ]
      new = evaluate_splits(
        run, params, eval_step, {s: held_out[s] for s in splits}
      )
      if last:
        new |= exact_matches(run, params, held_out)
        new |= appraisals(run, params, held_out, done)
      results.update(new)
      writer.write(done, new)
      progress.note(f'step {done:,}{metrics.spell_results(new)}')
    if last:
      write_samples(run, params, done)
    value = evaluation.objective(new, config.loss_weights)
    if saved:
      known = {
        'metrics_bytes': writer.size(),
        'results': results,
        'due': False,
        'observed': value,
      }
      run.checkpoints.wait()
      processes.on_process_zero(session.lock.check)
      processes.on_process_zero(
        lambda: run.checkpoints.attach(done, known, value)
      )
    return observe(config, state, value)

  batches = run_lib.device_batches(run, data, loader_lib.iterate(data, step))
  norm = jax.jit(optax.tree.norm)
  try:
    if due:
      stopwatch.pause()
      state = examine(state, step, saved=True)
      stopwatch.resume()
    for done in range(step + 1, num_steps + 1):
      index = np.int32(done - 1)
      state, values = train_step(state, next(batches), index)
      # The host reads a step's numbers while the next one runs.
      if pending is not None:
        settle(pending)
      pending = (done, values | {'stops': guard.anywhere()})
      due = is_due(done)
      saves = done % config.train.save_every == 0 or done == num_steps
      if not (due or saves or stops):
        continue
      settle(pending)
      pending = None
      stopwatch.pause()
      saves = saves or stops
      # An update can overflow where the loss before it was finite.
      if saves and not np.isfinite(norm(state.params)):
        diagnosis.raise_not_finite(session, state, data, done, values)
      # Saved first: what is due may fail, and can be done at the next start.
      if saves:
        save(state, done)
      if stops and (due or done < num_steps):
        run.checkpoints.close()
        print(f'stopped by a signal; step {done:,} is saved', flush=True)
        return
      if due:
        state = examine(state, done, saves)
      stopwatch.resume()
    run.checkpoints.close()
    processes.on_process_zero(session.lock.check)
  finally:
    try:
      # Also after an error: the last save is on its way to the disk.
      run.checkpoints.close()
    finally:
      progress.close()
      writer.close()
      guard.close()
  numbers = metrics.spell_results(results)
  print(f'{run.workdir} is done: {num_steps:,} steps{numbers}')


def _open_writer(run: run_lib.Run, step: int, size: int) -> metrics.Writer:
  """Where numbers go; the first process alone can be refused something."""
  writers = []
  open_one = lambda: writers.append(
    metrics.Writer(run.workdir, run.config, step, size)
  )
  processes.on_process_zero(open_one)
  if not writers:
    open_one()
  return writers[0]


def observe(
  config: config_lib.Config, state: state_lib.TrainState, value: float | None
) -> state_lib.TrainState:
  """The state after a validation, by whose loss extensions may change it."""
  if value is None:
    return state
  extensions = enabled.extensions(config)
  return extensions.after_validation(state, np.float32(value))


def evaluate_splits(
  run: run_lib.Run,
  params: Any,
  eval_step: Any,
  loaders: dict[loader_lib.Split, loader_lib.Loader],
) -> dict[str, float]:
  """`split/name` numbers of each split."""
  results = {}
  # Each row is a sequence of text there.
  measures = run.config.eval.latent_examples
  if run.config.data.pack or run.config.data.tasks:
    measures = 0
  for split, loader in loaders.items():
    limit = run.config.eval.max_batches
    batches = loader_lib.iterate(loader)
    values = evaluation.evaluate(
      eval_step,
      params,
      run_lib.device_batches(run, loader, itertools.islice(batches, limit)),
      loader.bytes_per_target,
    )
    results |= {f'{split}/{name}': value for name, value in values.items()}
    for name, number in loader.task_names.items():
      own = loader.of_task(number)
      batches = itertools.islice(loader_lib.iterate(own), limit)
      values = evaluation.evaluate(
        eval_step, params, run_lib.device_batches(run, own, batches), None
      )
      if own.writes_media:
        # What was written is judged as a whole; see appraisals.
        values.pop('accuracy', None)
        values.pop('token_accuracy', None)
      results |= {f'{split}/{name}_{key}': values[key] for key in values}
    if split == 'test' and measures:
      values = likelihood.measure(
        run.model,
        params,
        run_lib.device_batches(run, loader, loader_lib.iterate(loader)),
        num_samples=run.config.eval.importance_samples,
        num_sequences=measures,
      )
      results |= {f'{split}/{name}': value for name, value in values.items()}
  return results


def exact_matches(
  run: run_lib.Run,
  params: Any,
  splits: Iterable[loader_lib.Split],
) -> dict[str, float]:
  """`split/exact_match` of the first `eval.exact_match` pairs of each."""
  most = run.config.eval.exact_match
  if not most:
    return {}
  return {
    f'{split}/exact_match': evaluation.exact_match(
      run.config,
      run.model,
      params,
      run.tokenizer,
      splits_lib.pairs(run.config.data, split, most),
    )
    for split in splits
  }


def appraisals(
  run: run_lib.Run,
  params: Any,
  loaders: dict[loader_lib.Split, loader_lib.Loader],
  step: int,
) -> dict[str, float]:
  """How good what is written or found is, of the last held-out split."""
  split, results = list(loaders)[-1], {}
  if run.config.eval.retrieval:
    results |= retrievals(run, params, split, loaders[split])
  if run.config.eval.captions:
    results |= media_metrics.captions(run, params, split, step)
  if run.config.eval.judged:
    results |= media_metrics.appraise(run, params, split, step)
  return results


def retrievals(
  run: run_lib.Run,
  params: Any,
  split: loader_lib.Split,
  loader: loader_lib.Loader,
) -> dict[str, float]:
  """`split/TASK_read_to_written_recall_at_1` and so on; see retrieval.py."""
  model = run.config.model
  vectors = functools.partial(run.model.apply, method='pair_vectors')
  step = jax.jit(lambda params, batch: vectors({'params': params}, batch))
  results = {}
  tasks = loader.task_names or {'': None}
  for name, number in tasks.items():
    own = loader if number is None else loader.of_task(number)
    values = retrieval.measure(
      step,
      params,
      run_lib.device_batches(run, own, loader_lib.iterate(own)),
      tuple(model.placeholder(kind) for kind in model.kinds),
      run.config.eval.retrieval,
    )
    prefix = f'{split}/{name}_' if name else f'{split}/'
    results |= {prefix + key: value for key, value in values.items()}
  return results


def compile_step(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: state_lib.TrainState,
  batch: batch_lib.Batch,
) -> Any:
  """`train_step`, compiled once for these shapes and shardings."""
  step = step_lib.jitted(config, model, optimizer, abstract)
  return timed_compile('train_step', step, abstract, batch, np.int32(0))


def compile_eval(
  run: run_lib.Run, params: Any, loader: loader_lib.Loader
) -> Any:
  """`eval_step`, compiled once for all splits."""
  batch = next(run_lib.device_batches(run, loader, [loader[0]]))
  step = jax.jit(
    functools.partial(
      evaluation.eval_step,
      model=run.model,
      whole=bool(run.config.data.tasks) and not run.config.data.pack,
    )
  )
  return timed_compile('eval_step', step, params, batch)


def timed_compile(name: str, function: Any, *args: Any) -> Any:
  """Ahead-of-time compilation; another shape is then an error, not a wait."""
  begin = time.monotonic()
  compiled = function.lower(*args).compile()
  logging.info('compiled %s in %.1f s', name, time.monotonic() - begin)
  return compiled


def write_samples(run: run_lib.Run, params: Any, step: int):
  """Continues the prompts of `eval.samples` and shows them."""
  prompts = run.config.eval.samples
  if not prompts:
    return
  # A controller is trained by --mode=generate alone.
  options = dataclasses.replace(run.config.generate, steer='')
  samples = generation.generate(
    dataclasses.replace(run.config, generate=options),
    run.model,
    params,
    run.tokenizer,
    prompts,
  )
  samples_lib.write_samples(
    run.workdir / 'samples' / f'{step:08d}.jsonl', samples
  )
  for sample in samples:
    print(f'\n--- {sample.prompt!r} ---\n{sample.prompt}{sample.text}')
  print(flush=True)
