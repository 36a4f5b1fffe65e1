"""Where metrics are written, and what becomes of lines that are lost."""

import errno
import json
import math
import os

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax.train import metric_writer, metrics_file


def test_a_writer_goes_on_where_the_checkpoint_was(tmp_path):
  writer = metric_writer.Writer(tmp_path, tiny.config(), 0, 0)
  writer.write(1, {'train/loss': 2.5, 'train/mfu': None})
  size = writer.size()
  writer.write(2, {'train/loss': 2.0})
  writer.close()
  assert (tmp_path / metrics_file.FILE).stat().st_size > size
  writer = metric_writer.Writer(tmp_path, tiny.config(), 1, size)
  writer.write(2, {'train/loss': math.nan, 'x': math.inf, 'y': -math.inf})
  assert writer.size() == (tmp_path / metrics_file.FILE).stat().st_size
  writer.close()
  text = (tmp_path / metrics_file.FILE).read_text()
  assert 'NaN' not in text
  assert 'Infinity' not in text
  assert [json.loads(line) for line in text.splitlines()] == [
    {'step': 1, 'train/loss': 2.5, 'train/mfu': None},
    {'step': 2, 'train/loss': None, 'x': None, 'y': None},
  ]
  assert list((tmp_path / 'tensorboard').iterdir())


@pytest.mark.parametrize(
  ('how', 'problem'),
  [
    ('missing', 'is missing'),
    ('shorter', 'has 12 bytes'),
    ('changed', 'has no line that ends at byte'),
    ('fifo', 'not a regular file'),
    ('device', 'not a regular file'),
  ],
)
def test_a_record_that_lost_its_lines(how, problem, tmp_path):
  """It is not filled up with zeros."""
  writer = metric_writer.Writer(tmp_path, tiny.config(), 0, 0)
  writer.write(1, {'train/loss': 2.5})
  size = writer.size()
  writer.write(2, {'train/loss': 2.5})
  writer.close()
  path = tmp_path / metrics_file.FILE
  content = path.read_bytes()
  path.unlink()
  if how == 'shorter':
    path.write_bytes(content[:12])
  elif how == 'changed':
    path.write_bytes(content.replace(b'2.5', b'2.25'))
  elif how == 'fifo':
    os.mkfifo(path)
  elif how == 'device':
    path.symlink_to('/dev/zero')
  before = path.is_file() and path.read_bytes()
  with pytest.raises(config_lib.ConfigError, match=problem):
    metric_writer.Writer(tmp_path, tiny.config(), 1, size)
  assert (path.is_file() and path.read_bytes()) == before


def test_an_empty_record_stands_for_what_is_not_wanted(tmp_path):
  (tmp_path / metrics_file.FILE).write_text('')
  writer = metric_writer.Writer(tmp_path, tiny.config(), 7, 1234)
  writer.write(8, {'train/loss': 2.5})
  assert writer.size() == (tmp_path / metrics_file.FILE).stat().st_size
  writer.close()
  assert tiny.metrics(tmp_path) == [{'step': 8, 'train/loss': 2.5}]


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
  """It does not wait for ever for a thread of TensorBoard's that has ended."""
  writer = metric_writer.Writer(tmp_path, tiny.config(), 0, 0)

  def fail(events, event):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(
      'tensorboardX.event_file_writer.EventsWriter.write_event', fail
    )
    with pytest.raises(OSError) as error:
      writer.write(1, {'train/loss': 2.5})
  assert error.value.errno == errno.ENOSPC
  writer.close()


@pytest.mark.parametrize('how', ['cut', 'removed'])
def test_a_record_that_goes_during_the_run(how, tmp_path, caplog):
  """It is said; lines go on, and the checkpoint counts on what is there."""
  writer = metric_writer.Writer(tmp_path, tiny.config(), 0, 0)
  path = tmp_path / 'metrics.jsonl'
  writer.write(1, {'a': 1.0})
  writer.size()
  path.write_text('') if how == 'cut' else path.unlink()
  writer.write(2, {'a': 2.0})
  size = writer.size()
  assert ('has lost lines' if how == 'cut' else 'was removed') in caplog.text
  writer.write(3, {'a': 3.0})
  writer.close()
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line['step'] for line in lines] == ([2, 3] if how == 'cut' else [3])
  assert size == (len('{"step": 2, "a": 2.0}\n') if how == 'cut' else 0)
