"""TensorBoard's files are written without what they do not need."""

import os
import subprocess
import sys

import tiny


def test_a_run_does_not_wait_for_torch(tmp_path):
  """TensorBoard's writer would import it; ours has no need of it."""
  (tmp_path / 'torch.py').write_text("raise RuntimeError('was imported')")
  program = (
    'import importlib.util, pathlib, sys\n'
    'from gemini_jax.train import tensorboard_writer\n'
    'path = pathlib.Path(sys.argv[1])\n'
    "tensorboard_writer.TensorBoard(path / 'board', 1).close()\n"
    "assert 'torch' not in sys.modules\n"
    "assert importlib.util.find_spec('torch').origin.startswith(sys.argv[1])\n"
  )
  folders = tmp_path, tiny.ROOT, tiny.ROOT / 'tests'
  path = os.pathsep.join(map(str, folders))
  subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    env=os.environ | {'PYTHONPATH': path},
    check=True,
  )
