"""The training loop, read from top to bottom."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax import run as run_lib
from gemini_jax.adapt import enabled
from gemini_jax.config import legacy
from gemini_jax.data import loader as loader_lib
from gemini_jax.evaluate import evaluation, evaluators, held_out
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.parallel import compilation, placement, processes, sharding
from gemini_jax.train import (
  batch_page,
  diagnosis,
  early_stopping,
  growing,
  metric_writer,
  preemption,
  run_report,
  step_log,
  wandb_writer,
)
from gemini_jax.train import lock as lock_lib
from gemini_jax.train import milestones as milestones_lib
from gemini_jax.train import progress as progress_lib
from gemini_jax.train import schedule as schedule_lib
from gemini_jax.train import session as session_lib
from gemini_jax.train import state as state_lib
from gemini_jax.train import step as step_lib
from gemini_jax.weights import base as base_lib


def train(config: config_lib.Config, workdir: str | os.PathLike):
  """Trains to `train.num_steps`, from the newest checkpoint if there is one.

  Raises:
    ConfigError: the config, the data or the folder cannot be used.
    FloatingPointError: a loss, gradient or update was not finite.
    LostError: the folder was removed meanwhile.
  """
  evaluators.check(config)
  wandb_writer.check(config)
  for is_grown in growing.parts(config, workdir):
    with lock_lib.Lock() as lock:
      session = session_lib.open_session(
        config, workdir, lock, is_grown=is_grown
      )
      with sharding.use(session.run.mesh):
        try:
          is_done = _train(session)
        except Exception:
          # In a folder that was removed many things fail: say the reason.
          lock.check()
          raise
    if not is_done:
      return


@dataclasses.dataclass(frozen=True)
class _Training:
  """What all steps of a training share.

  Attributes:
    session: the run that is trained.
    data: the training batches.
    loaders: the held-out splits.
    milestones: what is done after which step.
    train_step: compiled; None where no step is left.
    eval_step: compiled; None without a held-out split.
    writer: of metrics.
    progress: what a person sees.
    guard: tells of signals to stop.
    stopping: whether validation ends the run.
    results: the newest metrics of evaluations; updated in place.
  """

  session: session_lib.Session
  data: loader_lib.Loader
  loaders: Mapping[loader_lib.Split, loader_lib.Loader]
  milestones: milestones_lib.Milestones
  train_step: Any
  eval_step: Any
  writer: metric_writer.Writer
  progress: progress_lib.Progress
  guard: preemption.PreemptionGuard
  stopping: early_stopping.EarlyStopping
  results: dict[str, float]


def _train(session: session_lib.Session) -> bool:
  """Makes the updates of a session; False where a signal ended them."""
  run, config = session.run, session.run.config
  num_steps = growing.last_step(config, session.is_grown)
  compilation.enable_cache(config)
  data = run.loader('train')
  loaders = held_out.loaders(run)
  milestones = milestones_lib.Milestones(config.train, bool(loaders))
  evaluators.check_run(run)

  # Where the run stands: the newest whole checkpoint, or a fresh state.
  state, step, manifest = _restore(session, data)
  results = legacy.metrics(manifest.get('results', {}))
  stopping = early_stopping.EarlyStopping(config.train.early_stopping, manifest)
  # What was saved and not evaluated before the run was ended.
  due = manifest.get('due', False) and milestones.evaluates(step)
  due |= stopping.is_over and not stopping.has_ended
  if (step >= num_steps or stopping.is_over) and not due:
    print(
      f'{run.workdir} is done: step {step:,} of {num_steps:,}'
      f'{progress_lib.spell_results(results)}  {stopping.reason}'.rstrip()
    )
    return True
  _announce(run, state, step, manifest)
  milestones.warn()

  # One compilation each, before the first batch.
  train_step: Any = None
  eval_step: Any = None
  if step < num_steps:
    batch = next(
      run_lib.device_batches(run, data, loader_lib.iterate(data, step, 0))
    )
    train_step = compile_step(
      config, run.model, session.optimizer, session.abstract, batch
    )
  if loaders:
    eval_step = held_out.compile_step(
      run,
      state_lib.evaluation_params(config, state),
      next(iter(loaders.values())),
      enabled.extensions(config).reference_params(state),
    )
  if config.model.kinds and not step and processes.is_process_zero():
    batch_page.write(run, data[0])

  writer = _open_writer(session, step, manifest)
  # Nothing is refused from here on.
  session.write_config()
  training = _Training(
    session,
    data,
    loaders,
    milestones,
    train_step,
    eval_step,
    writer,
    progress_lib.Progress(step, config.train.num_steps),
    preemption.PreemptionGuard(run.mesh),
    stopping,
    results,
  )
  try:
    is_done = _run_steps(training, state, step, due)
    run.checkpoints.close()
    processes.on_process_zero(session.lock.check)
  finally:
    try:
      # Also after an error: the last save is on its way to the disk.
      run.checkpoints.close()
    finally:
      training.progress.close()
      writer.close()
      training.guard.close()
  if is_done:
    numbers = progress_lib.spell_results(results)
    end = 'is done' if session.is_grown else 'grows now'
    text = f'{run.checkpoints.steps()[-1]:,} steps{numbers}  {stopping.reason}'
    print(f'{run.workdir} {end}: {text}'.rstrip())
  return is_done


def _run_steps(
  training: _Training, state: state_lib.TrainState, start: int, due: bool
) -> bool:
  """Makes the updates after `start`; False where a signal ended them.

  Args:
    training: what the steps share.
    state: after `start` updates.
    start: updates made.
    due: whether the evaluation of `start` is still to be done.
  """
  session, milestones = training.session, training.milestones
  run = session.run
  num_steps = growing.last_step(run.config, session.is_grown)
  log = step_log.StepLog(
    run.config,
    milestones,
    training.writer,
    training.progress,
    session.lock,
    start,
  )
  batches = run_lib.device_batches(
    run, training.data, loader_lib.iterate(training.data, start)
  )
  params_norm = jax.jit(optax.tree.norm)
  if due:
    log.stopwatch.pause()
    state = _evaluate(training, state, start, saved=True)
    log.stopwatch.resume()
  for step in range(start + 1, num_steps + 1):
    if training.stopping.is_over:
      return True
    state, metrics = training.train_step(
      state, next(batches), np.int32(step - 1)
    )
    refuse = functools.partial(
      diagnosis.raise_not_finite, session, state, training.data
    )
    # The host reads a step's metrics while the next one runs.
    log.process(refuse)
    log.add(step, metrics | {'stops': training.guard.anywhere()})
    evaluates, saves = milestones.evaluates(step), milestones.saves(step)
    saves = saves or step == num_steps
    if not (evaluates or saves or log.stops):
      continue
    log.process(refuse)
    log.stopwatch.pause()
    saves = saves or log.stops
    # An update can overflow where the loss before it was finite.
    if saves and not np.isfinite(params_norm(state.params)):
      refuse(step, metrics)
    # Saved first: what is evaluated may fail, and is done at the next start.
    if saves:
      _save(training, state, step)
    if log.stops and (evaluates or step < num_steps):
      run.checkpoints.close()
      print(f'stopped by a signal; step {step:,} is saved', flush=True)
      return False
    if evaluates:
      state = _evaluate(training, state, step, saves)
    log.stopwatch.resume()
  return True


def _restore(
  session: session_lib.Session, data: loader_lib.Loader
) -> tuple[state_lib.TrainState, int, dict[str, Any]]:
  """The state to train on from, its step and its manifest, {} if it is new."""
  config = session.run.config
  restored = session.resume()
  if restored is None:
    return session.init_state(), 0, {}
  manifest = restored.manifest
  data.check(manifest['data'], config.train.accept_changes)
  # The checkpoint was written before the step was evaluated.
  state = state_lib.observe(config, restored.state, manifest.get('observed'))
  return state, restored.step, manifest


def _announce(
  run: run_lib.Run,
  state: state_lib.TrainState,
  step: int,
  manifest: Mapping[str, Any],
):
  """Says what is trained, on what, from where, and what has changed."""
  count = gemini.param_count(state.params)
  trained = gemini.param_count(
    parameter_groups.trained(run.config, state.params)
  )
  share = (
    ''
    if trained == count
    else (f', of which {trained:,} ({trained / count:.2%}) are trained,')
  )
  print(
    f'{count:,} parameters{share} on '
    f'{progress_lib.devices_line()}; {placement.describe(state)}'
  )
  print(f'{"resuming" if step else "starting"} at step {step:,}', flush=True)
  if 'config' in manifest and step < run.config.train.num_steps:
    saved = legacy.upgrade(manifest['config'])
    change = schedule_lib.course_change(run.config, saved, step)
    print(change, end='', flush=True)


def _open_writer(
  session: session_lib.Session, step: int, manifest: Mapping[str, Any]
) -> metric_writer.Writer:
  """Opens the sinks of metrics; process zero alone can be refused them."""
  run, size = session.run, manifest.get('metrics_bytes', 0)
  writers = []
  open_one = lambda: writers.append(
    metric_writer.Writer(run.workdir, run.config, step, size)
  )
  processes.on_process_zero(open_one)
  if not writers:
    open_one()
  (writer,) = writers
  # Not before the lines of what was cut off are gone; see session.py.
  session.clean()
  # The other processes write none.
  if not processes.all_processes(
    not processes.is_process_zero() or writer.size() >= size
  ):
    # The user has put an empty file in its place.
    processes.on_process_zero(
      lambda: run.checkpoints.attach(
        step, {'metrics_bytes': writer.size()}, manifest.get('metric')
      )
    )
  return writer


def _save(training: _Training, state: state_lib.TrainState, step: int):
  """Starts to save a checkpoint, with what a resume needs to know."""
  session = training.session
  config = session.run.config
  processes.on_process_zero(session.lock.check)
  session.run.checkpoints.save(
    step,
    state_lib.saved(config, state),
    {
      'config': dataclasses.asdict(config),
      'data': training.data.state(step),
      'metrics_bytes': training.writer.size(),
      'results': dict(training.results),
      'due': training.milestones.evaluates(step),
    }
    | training.stopping.saved()
    | ({base_lib.KEY: dict(session.base)} if session.base else {}),
  )


def _evaluate(
  training: _Training, state: state_lib.TrainState, step: int, saved: bool
) -> state_lib.TrainState:
  """Does what is due at a step; returns the state, which extensions may change.

  The outcome is attached to the checkpoint of the step. Without it, the next
  start does all of this again, and drops the lines that were written here.
  """
  session, milestones = training.session, training.milestones
  run = session.run
  params = state_lib.evaluation_params(run.config, state)
  extensions = enabled.extensions(run.config)
  reference = extensions.reference_params(state)
  evaluate = lambda loaders: held_out.evaluate(
    run, params, training.eval_step, loaders, reference
  )
  loaders = dict(training.loaders)
  validation = loaders.pop('validation', None)
  results: dict[str, float] = {}
  if validation is not None and milestones.validates(step):
    results = evaluate({'validation': validation})
  value = evaluation.objective(results, run.config.loss_weights)
  is_settled = step >= extensions.settled_step
  if value is not None and is_settled and session.is_grown:
    training.stopping.observe(value)
  if milestones.is_last(step) or training.stopping.is_over:
    results |= evaluate(loaders)
    results |= evaluators.evaluate(run, params, training.loaders, step)
  if results:
    training.results.update(results)
    training.writer.write(step, results)
    training.progress.note(
      f'step {step:,}{progress_lib.spell_results(results)}'
    )
  run_report.write(run, step, training.stopping.reason)
  if saved:
    outcome = {
      'metrics_bytes': training.writer.size(),
      'results': training.results,
      'due': False,
      'observed': value,
    } | training.stopping.saved()
    metric = value if is_settled else None
    run.checkpoints.wait()
    processes.on_process_zero(session.lock.check)
    processes.on_process_zero(
      lambda: run.checkpoints.attach(step, outcome, metric)
    )
  return state_lib.observe(run.config, state, value)


def compile_step(
  config: config_lib.Config,
  model: gemini.Gemini,
  optimizer: optax.GradientTransformationExtraArgs,
  abstract: state_lib.TrainState,
  batch: batch_lib.Batch,
) -> Any:
  """`train_step`, compiled once for these shapes and shardings."""
  step = step_lib.jitted(config, model, optimizer, abstract)
  compiled = compilation.timed('train_step', step, abstract, batch, np.int32(0))
  memory = compiled.memory_analysis()
  host.return_freed_blocks(memory.temp_size_in_bytes if memory else 0)
  return compiled
