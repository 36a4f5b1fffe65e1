"""Every field at its default, to start an experiment from.

The fields, their types, defaults and meaning stand in gemini_jax/config.py.
"""

import ml_collections

from gemini_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  return config_lib.to_config_dict()
