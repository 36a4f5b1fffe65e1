"""Only an output that is all of the target counts."""

import json

import tiny
from gemini_jax import config as config_lib
from gemini_jax.data import splits
from gemini_jax.evaluate import exact_match
from gemini_jax.infer import generation
from gemini_jax.infer import samples as samples_lib


class Words:
  """One id for each letter."""

  pad_id, bos_id, eos_id = 0, 1, 2
  adds_bos = True

  def encode(self, text):
    return [ord(c) - ord('a') + 3 for c in text]

  def decode(self, ids):
    return ''.join(chr(int(i) + ord('a') - 3) for i in ids if i > 2)


def test_only_the_whole_target_counts(monkeypatch):
  """A word too many, one too few and an input too long are wrong."""
  config = tiny.config(
    model={'architecture': 'encoder_decoder'},
    data={'objective': 'seq2seq', 'inputs_length': 5},
    generate={
      'temperature': 0.9,
      'count': 3,
      'max_tokens': 1,
      'source': 'interpolate',
      'prompt': 'a || b',
      'steer': 'tone=good',
    },
  )
  answers = {'ab': 'ba', 'abc': 'cbaa', 'ba': 'a', '': '', 'abcd': 'dcba'}
  seen = []

  def answer(config, model, params, tokenizer, prompts):
    del model, params, tokenizer
    seen.append(config.generate)
    return [
      samples_lib.Sample(prompt, answers[prompt], (), ()) for prompt in prompts
    ]

  monkeypatch.setattr(generation, 'generate', answer)
  pairs = [(word, word[::-1]) for word in (*answers, 'abcde')]
  model = type('Model', (), {'config': config.model})
  share = exact_match.exact_match(config, model, None, Words(), pairs)
  assert share == 3 / 6
  assert seen[0].temperature == 0
  # How texts are generated for people to read is another matter.
  assert (seen[0].source, seen[0].steer) == ('prompt', '')
  assert seen[0].count == seen[0].beam_size == 1
  assert seen[0].max_tokens == 12


def test_pairs_of_a_split(tmp_path):
  lines = [{'inputs': f'a{i}', 'targets': f'a{i}'[::-1]} for i in range(30)]
  (tmp_path / 'words.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  config = config_lib.Data(
    validation=(
      f'jsonl:{tmp_path}/words.jsonl#[:4]',
      f'jsonl:{tmp_path}/words.jsonl#[20:]',
    ),
    inputs_field='inputs',
    targets_field='targets',
  )
  pairs = splits.pairs(config, 'validation', 99)
  assert len(pairs) == 14
  assert all(inputs == targets[::-1] for inputs, targets in pairs)
  assert splits.pairs(config, 'validation', 6) == pairs[:6]
