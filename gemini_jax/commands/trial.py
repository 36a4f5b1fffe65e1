"""A trial of a sweep: `gemini_jax.main` in a process that ends with the sweep.

The sweep holds the other end of this process's stdin and never writes. However
the sweep ends, by SIGKILL too, the system closes that end, and so ends this.
"""

import os
import runpy
import threading


def _end_with_sweep():
  os.read(0, 1)
  os._exit(1)


if __name__ == '__main__':
  threading.Thread(target=_end_with_sweep, daemon=True).start()
  runpy.run_module('gemini_jax.main', run_name='__main__', alter_sys=True)
