"""An encoder-decoder learns to write short words backwards."""

import json
import random

import tiny

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
    "evaluate.evaluators = ('exact_match', 'texts')",
    'evaluate.exact_match.num_examples = 64',
    'evaluate.texts.num_examples = 64',
    "evaluate.texts.metrics = ('chrf',)",
    'evaluate.texts.beam_size = 3',
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
  assert before['validation/token_accuracy'] < 0.4
  assert after['validation/token_accuracy'] > 0.95
  assert after['validation/exact_match'] > 0.8
  assert before['validation/chrf_high'] < 40
  assert after['validation/chrf_low'] > 80
  assert 'Validation: texts' in (tmp_path / '130/run/report.md').read_text()
