"""Strict numerics on eight CPU devices, and a cache that is thrown away."""

import os
import tempfile
from importlib import metadata

# Read by jax and by the package when they are first used.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = [
  '--xla_force_host_platform_device_count=8',
  # Not split for threads to compile in parallel: both cores have a test.
  '--xla_cpu_parallel_codegen_split_count=1',
]
# Toy programs run once: without these passes they compile four times faster.
# Later releases do not know the flag, and stop at what they do not know.
if metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join((os.environ.get('XLA_FLAGS', ''), *_FLAGS))
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# Held here, so that it goes when the session ends.
_CACHE = tempfile.TemporaryDirectory(prefix='gemini_jax_tests_')
os.environ['XDG_CACHE_HOME'] = _CACHE.name

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
