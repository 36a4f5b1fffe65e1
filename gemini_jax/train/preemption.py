"""Signals that ask a run to save and stop."""

import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class PreemptionGuard:
  """Turns SIGTERM, SIGHUP and Ctrl-C into a wish that all processes share.

  A signal that the process was started to ignore (nohup, `&` in a script)
  stays ignored.
  """

  def __init__(self, mesh: Mesh):
    # bool[devices]: each is told what its process was asked.
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._wishes = [
      jax.make_array_from_callback(
        (mesh.size,), where, lambda _, wish=wish: np.array([wish])
      )
      for wish in (False, True)
    ]
    self._any = jax.jit(
      jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    self._wished = False
    names = 'SIGTERM', 'SIGINT', 'SIGHUP'
    # Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    self._before = {
      number: signal.signal(number, self._wish)
      for number in numbers
      if signal.getsignal(number) != signal.SIG_IGN
    }

  def _wish(self, number: int, frame: Any):
    del frame
    if self._wished and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._wished = True

  def anywhere(self) -> jax.Array | np.bool_:
    """Whether any process was asked to stop; may still be on the devices.

    Every process calls it at the same step, and reads the same answer.
    """
    if jax.process_count() == 1:
      return np.bool_(self._wished)
    return self._any(self._wishes[self._wished])

  def close(self):
    """Gives the signals back."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
