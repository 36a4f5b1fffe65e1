"""Settings of the process."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from gemini_jax import host

# Jaxlib 0.10.2 gives 2.39 for the last row (jax issue 39103).
PROGRAM = """
import numpy as np
import gemini_jax
import jax, jax.numpy as jnp
rng = np.random.default_rng(0)
m_HH = rng.normal(size=(3, 3)).astype(np.float32)
r_NH = rng.normal(size=(32769, 3)).astype(np.float32)
function = jax.jit(jax.vmap(lambda r_H: jnp.sum((m_HH @ r_H) ** 2)))
error_N = np.asarray(function(r_NH)) - np.sum((r_NH @ m_HH.T) ** 2, axis=1)
print(np.abs(error_N).max())
"""


def test_reductions_are_right_as_a_user_runs_them():
  names = ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS')
  environment = {k: v for k, v in os.environ.items() if k not in names}
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert float(result.stdout) < 1e-4


@pytest.mark.parametrize(
  ('jaxlib', 'platforms', 'flags', 'expected'),
  [
    ('0.10.2', 'cpu', None, f'{host.FUSIONS}=-reduce'),
    ('0.11.0', None, '', f'{host.FUSIONS}=-reduce'),
    ('0.10.2', 'cuda,cpu', '--other=1', f'--other=1 {host.FUSIONS}=-reduce'),
    ('0.10.2', 'tpu', '--other=1', '--other=1'),
    ('0.12.0.1', 'cpu', None, None),
    ('0.10.2', 'cpu', f'{host.FUSIONS}=all', f'{host.FUSIONS}=all'),
  ],
)
def test_faulty_fusions_are_off_where_they_are(
  monkeypatch, jaxlib, platforms, flags, expected
):
  for name, value in (('JAX_PLATFORMS', platforms), ('XLA_FLAGS', flags)):
    monkeypatch.delenv(name, raising=False)
    if value is not None:
      monkeypatch.setenv(name, value)
  monkeypatch.setattr(metadata, 'version', {'jaxlib': jaxlib}.get)
  host.avoid_faulty_fusions()
  assert os.environ.get('XLA_FLAGS') == expected
