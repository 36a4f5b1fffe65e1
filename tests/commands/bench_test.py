"""Every benchmark runs and says what it should; times are not judged."""

import math

import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.commands import bench, bench_decode, bench_system, peer, timing

KEYS = {
  'step': {'ours_seconds', 'tokens_per_second', 'matmul_seconds'},
  'attention': {'chunked_seconds', 'dense_seconds', 'copy_bytes_per_second'},
  'cross_entropy': {'chunked_seconds', 'dense_seconds'},
  'decode': {'copy_bytes_per_second'},
  'checkpoint': {'blocked_seconds', 'step_seconds'},
  'data': {'tokens_per_second'},
}


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(timing, '_ROUNDS', 2)
  monkeypatch.setattr(timing, '_TURN', 0.0)
  monkeypatch.setattr(bench_system, '_LOADING', 0.1)


@pytest.mark.parametrize('what', bench.WHAT)
@pytest.mark.usefixtures('quick')
def test_a_benchmark_says_what_it_measured(what, capsys):
  config = config_lib.Config(
    model=toy.model(max_length=32).config,
    data=config_lib.Data(
      train=('reverse:50',),
      text_field='inputs',
      batch_size=8,
      sequence_length=toy.T,
    ),
  )
  result = bench.WHAT[what](config, peer.Paths())
  assert result['what'] == what
  for key in KEYS[what]:
    assert result[key] > 0 and math.isfinite(result[key]), key
  if what == 'decode':
    for kind in bench_decode.KINDS:
      for num_rows in bench_decode.BATCH_SIZES:
        found = result[f'{kind}, batch {num_rows}']
        assert found['tokens_per_second'] > 0 < found['copy_share']
        rows = found['tokens_per_second'] * found['step_seconds']
        assert rows == pytest.approx(num_rows)
  if what != 'data':
    assert result['device'] == 'cpu'
    assert 'median' in capsys.readouterr().out
