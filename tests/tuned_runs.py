"""Runs of random models, and runs that tune them."""

import dataclasses

import jax

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.models import parameter_groups
from gemini_jax.train import session as session_lib
from gemini_jax.weights import base as base_lib

# As a Llama is.
MODEL = {'activation': 'silu', 'norm': 'pre', 'tie_embeddings': False}


def save(config, folder, seed=4, **manifest):
  """A run of a random model, or one that tunes it."""
  session = session_lib.open_session(config, folder)
  state = session.init_state()
  own = parameter_groups.own(config.tune, state.params)
  drawn = toy.random_tree(jax.eval_shape(lambda: own), seed)
  state = state.replace(params=drawn)
  if session.base:
    manifest[base_lib.KEY] = session.base
  session.run.checkpoints.save(3, state, manifest)
  session.run.checkpoints.close()
  session.write_config()


def base_config(folder):
  """A config of a base, on texts in a folder."""
  config = tiny.parse(folder)
  model = dataclasses.replace(config.model, **MODEL)
  return dataclasses.replace(config, model=model)


def tuned(config, base, **tune):
  """The config of a run that tunes the one in the folder `base`."""
  train = dataclasses.replace(config.train, init_from=str(base))
  return dataclasses.replace(config, train=train, tune=config_lib.Tune(**tune))
