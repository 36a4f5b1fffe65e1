"""The default config, from which every experiment starts.

Fields, types, defaults and meanings are defined in gemini_jax/config/.
"""

import ml_collections

from gemini_jax import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  del arg
  return config_lib.to_config_dict()
