"""Where the results of a task go: names of its metrics, files of its pages."""

import pathlib

from gemini_jax import config as config_lib
from gemini_jax.data import task as task_lib


def page_path(
  workdir: pathlib.Path,
  config: config_lib.Config,
  split: str,
  task: task_lib.Task,
  step: int,
) -> pathlib.Path:
  """The file of a page of media: samples/STEP-SPLIT-TASK.png."""
  parts = f'{step:08d}', split, name(config, task)
  return workdir / 'samples' / f'{"-".join(filter(None, parts))}.png'


def metric_name(
  config: config_lib.Config,
  split: str,
  task: task_lib.Task,
  metric: str,
  unnamed: str = '',
) -> str:
  """SPLIT/TASK_METRIC; `unnamed` stands for the only task without a name."""
  parts = name(config, task) or unnamed, metric
  return f'{split}/{"_".join(filter(None, parts))}'


def name(config: config_lib.Config, task: task_lib.Task) -> str:
  """The task's name, or its number among several."""
  tasks = task_lib.from_config(config.data)
  return task.name or (str(tasks.index(task)) if len(tasks) > 1 else '')
