"""The record of a run is read whatever has become of it."""

import pytest

from gemini_jax.train import metrics_file


@pytest.mark.parametrize(
  ('content', 'step'),
  [
    (None, 0),
    (b'', 0),
    (b'{"step": 3}\n{"step": 40}\n', 40),
    (b'{"step": 3}\n{"step": 4', 3),
    (b'{"step": 3}\n[]\n{"step": "x"}\n' + b'[' * 100_000, 3),
    (bytes(1000), 0),
  ],
)
def test_the_last_step_of_a_record(content, step, tmp_path):
  if content is not None:
    (tmp_path / metrics_file.FILE).write_bytes(content)
  lines = metrics_file.newest_lines(tmp_path)
  assert next((line['step'] for line in lines), 0) == step
