"""A run of tasks over records with media, for tests of evaluators."""

import types

import photo
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer
from gemini_jax.models import gemini

READS = 'read = {image:picture} is {word}, {word} -> {word} it is, {word}'
PAINTS = 'paint = {word} -> {image:picture}'
SPEAKS = 'speak = {word} -> {audio:sound}'


def run(path, workdir, *tasks, **options):
  """What evaluators read of a run; `options` are of the section `evaluate`."""
  config = config_lib.from_config_dict(
    {
      'model': vars(photo.model()),
      'data': vars(photo.data(path, *tasks)),
      'evaluate': options,
    }
  )
  (workdir / 'samples').mkdir()
  return types.SimpleNamespace(
    config=config,
    model=gemini.Gemini(config.model),
    tokenizer=tokenizer.Bytes(),
    workdir=workdir,
  )
