"""What a person sees of a training."""

from gemini_jax.train import progress as progress_lib


def test_a_stopwatch_stands_still_while_it_is_paused():
  now = 100.0
  stopwatch = progress_lib.Stopwatch(lambda: now)
  now += 3
  stopwatch.pause()
  now += 1000
  stopwatch.resume()
  now += 2
  assert stopwatch.lap() == 5
  now += 4
  assert stopwatch.lap() == 4


def test_a_log_gets_plain_lines(capsys):
  progress = progress_lib.Progress(10, 1000)
  progress.update(
    510,
    {
      'train/loss': 1.25,
      'train/tokens_per_second': 12345.6,
      'train/mfu': None,
      'train/grad_norm': 3.0,
    },
  )
  progress.note('step 510  validation/loss 1.5')
  progress.close()
  out = capsys.readouterr().out
  assert '\r' not in out
  assert out.splitlines() == [
    'step 510/1,000  loss 1.2500  12,346 tokens/s  0:00 left',
    'step 510  validation/loss 1.5',
  ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
  monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
  progress = progress_lib.Progress(10, 1000)
  progress.update(510, {'train/loss': 1.25, 'train/mfu': 0.5})
  progress.close()
  err = capsys.readouterr().err
  assert 'loss 1.2500' in err
  assert 'MFU 50.0%' in err
  assert '510/1000' in err
