"""Programs that are compiled ahead of time, and kept on disk."""

import logging
import time
from typing import Any

import jax

from gemini_jax import config as config_lib
from gemini_jax import host


def timed(name: str, function: Any, *args: Any) -> Any:
  """Compiles a jitted function for these arguments, and logs the time.

  A call with arguments of other shapes is an error, not a second compilation.
  """
  begin = time.monotonic()
  compiled = function.lower(*args).compile()
  logging.info('compiled %s in %.1f s', name, time.monotonic() - begin)
  return compiled


def enable_cache(config: config_lib.Config):
  """Keeps compiled programs in `train.compilation_cache`.

  Does nothing where that is '', or where the user has set jax's own cache.
  """
  path = config.train.compilation_cache
  if path is None:
    path = host.cache_folder('xla')
  # JAX defines its settings as it runs, which a type checker cannot see.
  current = jax.config.jax_compilation_cache_dir  # pyright: ignore
  if path and not current:
    jax.config.update('jax_compilation_cache_dir', str(host.expand_path(path)))
