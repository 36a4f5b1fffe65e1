"""Rows hold what the conventions of each objective say."""

import numpy as np
import pytest

from gemini_jax import config
from gemini_jax.data import packing, tokenizer, transforms

BYTES = tokenizer.Bytes()
BOS, EOS = BYTES.bos_id, BYTES.eos_id
PAIRS = {'inputs_field': 'a', 'targets_field': 'b'}


def ids(text):
  return BYTES.encode(text).tolist()


def make(records, num_rows=1, **fields):
  """The batch with all records in row 0, as whole pieces."""
  documents = [
    transforms.document([(text,) for text in record], BYTES)
    for record in records
  ]
  tokens = np.concatenate([tokens for tokens, _ in documents])
  lengths = np.array([len(tokens) - 1 for tokens, _ in documents])
  starts = np.cumsum(lengths + 1) - lengths - 1
  firsts = np.array([first for _, first in documents])
  data = config.Data(**fields)
  pieces = packing.Pieces(np.zeros_like(starts), starts, lengths, firsts)
  return transforms.assemble(
    tokens.astype(np.uint16), pieces, num_rows, data, BYTES
  )


def test_documents():
  tokens, first = transforms.document((('hi',),), BYTES)
  assert (tokens.tolist(), first) == ([BOS, *ids('hi'), EOS], 1)
  tokens, first = transforms.document((('in',), ('out',)), BYTES)
  assert tokens.tolist() == [BOS, *ids('in'), EOS, *ids('out'), EOS]
  assert tokens[first:].tolist() == [*ids('out'), EOS]


def test_causal_text():
  batch = make([('ab',), ('c',)], num_rows=2, sequence_length=8)
  assert batch.decoder.tokens[0].tolist() == [
    *[BOS, *ids('ab')],
    *[BOS, *ids('c')],
    *[0, 0, 0],
  ]
  assert batch.targets[0].tolist() == [
    *[*ids('ab'), EOS],
    *[*ids('c'), EOS],
    *[0, 0, 0],
  ]
  assert batch.weights[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
  assert batch.decoder.segments[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
  assert batch.decoder.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
  assert batch.prefix is None and batch.encoder is None
  # The row without a piece is padding.
  assert not batch.weights[1].any() and not batch.decoder.segments[1].any()
  for leaf in (batch.decoder.tokens, batch.targets, batch.decoder.segments):
    assert leaf.dtype == np.int32
  assert batch.weights.dtype == np.float32


@pytest.mark.parametrize('objective', ['causal', 'prefix'])
def test_pairs_in_one_sequence(objective):
  batch = make(
    [('ab', 'c'), ('d', 'ef')],
    sequence_length=12,
    objective=objective,
    **PAIRS,
  )
  first = [BOS, *ids('ab'), EOS, *ids('c'), EOS]
  second = [BOS, *ids('d'), EOS, *ids('ef'), EOS]
  row = batch.decoder.tokens[0].tolist()
  assert row == first[:-1] + second[:-1] + [0, 0]
  assert batch.targets[0].tolist() == first[1:] + second[1:] + [0, 0]
  assert batch.weights[0].tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0]
  if objective == 'prefix':
    seen = [1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0]
    assert batch.prefix.dtype == bool
    assert batch.prefix[0].tolist() == [bool(value) for value in seen]
  else:
    assert batch.prefix is None


def test_pairs_for_an_encoder_and_a_decoder():
  batch = make(
    [('ab', 'c'), ('d', 'ef')],
    sequence_length=6,
    inputs_length=7,
    objective='seq2seq',
    **PAIRS,
  )
  assert batch.encoder.tokens[0].tolist() == [
    *[*ids('ab'), EOS],
    *[*ids('d'), EOS],
    *[0, 0],
  ]
  assert batch.encoder.segments[0].tolist() == [1, 1, 1, 2, 2, 0, 0]
  assert batch.encoder.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0]
  assert batch.decoder.tokens[0].tolist() == [
    *[BOS, *ids('c')],
    *[BOS, *ids('ef')],
    0,
  ]
  assert batch.targets[0].tolist() == [*ids('c'), EOS, *ids('ef'), EOS, 0]
  assert batch.decoder.segments[0].tolist() == [1, 1, 2, 2, 2, 0]
  assert batch.weights[0].tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize('objective', ['prefix', 'seq2seq'])
def test_text_is_cut_at_a_random_target(objective):
  """What is shown and what is asked for are the text, for every cut."""
  data = config.Data(
    sequence_length=9, inputs_length=9, objective=objective, pack=False
  )
  tokens, _ = transforms.document((('abcdefgh',),), BYTES)
  whole = packing.Pieces(*np.array([[0], [0], [9], [1]]))
  cuts = set()
  for seed in range(60):
    pieces = transforms.random_firsts(whole, [seed])
    batch = transforms.assemble(tokens, pieces, 1, data, BYTES)
    asked = batch.targets[0][batch.weights[0] > 0].tolist()
    cuts.add(len(asked))
    if objective == 'seq2seq':
      shown = batch.encoder.tokens[0][batch.encoder.segments[0] > 0].tolist()
      assert shown.pop() == EOS
      assert batch.decoder.tokens[0][0] == BOS
    else:
      shown = batch.decoder.tokens[0][batch.prefix[0]].tolist()
      assert shown.pop(0) == BOS
    assert shown + asked == [*ids('abcdefgh'), EOS]
  assert cuts == set(range(1, 10))
  assert pieces == transforms.random_firsts(whole, [59])
