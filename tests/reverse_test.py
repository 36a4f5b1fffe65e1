"""An encoder-decoder learns to write short words backwards."""

import json
import random

import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax.data import splits
from gemini_jax.evaluate import evaluation
from gemini_jax.infer import generation
from gemini_jax.infer import samples as samples_lib

LETTERS = 'abcdefgh'


def write_words(path, num_words, length=(2, 5)):
  """Distinct words of few letters, and the same backwards."""
  rng = random.Random(0)
  words = {}
  while len(words) < num_words:
    words[''.join(rng.choices(LETTERS, k=rng.randint(*length)))] = None
  lines = [{'inputs': w, 'targets': w[::-1]} for w in words]
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def experiment(folder, num_steps):
  folder.mkdir(exist_ok=True)
  write_words(folder / 'words.jsonl', 3000)
  return tiny.experiment(
    folder,
    *tiny.SEQ2SEQ,
    f"data.train = ('jsonl:{folder}/words.jsonl#[:2900]',)",
    f"data.validation = ('jsonl:{folder}/words.jsonl#[2900:]',)",
    "tokenizer.kind = 'characters'",
    'data.sequence_length = 32',
    'data.inputs_length = 32',
    'data.batch_size = 16',
    'model.max_length = 32',
    'model.num_layers = 1',
    'model.width = 64',
    'model.mlp_dim = 128',
    "model.position = 'learned'",
    "optimizer.name = 'muon'",
    'optimizer.learning_rate = 1e-2',
    'optimizer.warmup_steps = 20',
    # Does not depend on the number of steps: both runs share their programs.
    "optimizer.schedule = 'inverse_sqrt'",
    f'train.num_steps = {num_steps}',
    f'train.log_every = {num_steps}',
    f'train.eval_every = {num_steps}',
    f'train.save_every = {num_steps}',
    'eval.exact_match = 64',
  )


def test_words_are_reversed_after_training_and_not_before(tmp_path):
  results = {}
  for num_steps in (130, 1):
    folder = tmp_path / str(num_steps)
    file = experiment(folder, num_steps)
    # In a process of its own, on one device: eight would take their time.
    process = tiny.start(file, folder / 'run')
    output, _ = process.communicate()
    assert process.returncode == 0, output
    results[num_steps] = tiny.metrics(folder / 'run')[-1]
  before, after = results[1], results[130]
  assert before['validation/exact_match'] == 0
  assert before['validation/accuracy'] < 0.4
  assert after['validation/accuracy'] > 0.95
  assert after['validation/exact_match'] > 0.8


class Words:
  """One id for each letter."""

  pad_id, bos_id, eos_id = 0, 1, 2

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
  share = evaluation.exact_match(config, model, None, Words(), pairs)
  assert share == 3 / 6
  assert seen[0].temperature == 0
  # How texts are generated for people to read is another matter.
  assert (seen[0].source, seen[0].steer) == ('prompt', '')
  assert seen[0].count == seen[0].beam_size == 1
  assert seen[0].max_tokens == 12


def test_pairs_of_a_split(tmp_path):
  write_words(tmp_path / 'words.jsonl', 30)
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


def test_exact_match_needs_pairs():
  with pytest.raises(
    config_lib.ConfigError, match=r'eval\.exact_match=3 needs pairs'
  ):
    tiny.config(eval={'exact_match': 3})
