"""A run of conversations learns the answers, and answers by the template."""

import json

import numpy as np
import pytest

import byte_pair
import tiny
from gemini_jax.data import chat, huggingface_tokenizer, tokenizer
from gemini_jax.infer import prompts
from gemini_jax.models import gemini

pytest.importorskip('jinja2', reason='needs gemini_jax[weights]')

LINES = (
  "tokenizer.kind = 'huggingface'",
  "data.chat_field = 'messages'",
  'data.sequence_length = 64',
  'model.max_length = 80',
  'optimizer.learning_rate = 1e-2',
  'optimizer.warmup_steps = 0',
  'train.num_steps = 40',
  'train.eval_every = 40',
  'train.save_every = 20',
  'generate.temperature = 0.0',
  'generate.max_tokens = 12',
)


def talks(count):
  """Random questions, of which nothing can be learned, and one answer."""
  rng = np.random.default_rng(0)
  question = lambda: ''.join(rng.choice(list('abcdefghijkl'), 8))
  return [
    [
      {'role': 'user', 'content': question()},
      {'role': 'assistant', 'content': 'the cat'},
      {'role': 'user', 'content': question()},
      {'role': 'assistant', 'content': 'sat'},
    ]
    for _ in range(count)
  ]


def experiment(folder):
  (folder / 'words').mkdir()
  byte_pair.make(folder / 'words')
  (folder / 'talks.jsonl').write_text(
    '\n'.join(json.dumps({'messages': talk}) for talk in talks(40))
  )
  return tiny.experiment(
    folder,
    *LINES,
    f"tokenizer.path = '{folder / 'words'}'",
    f"data.train = ('jsonl:{folder / 'talks.jsonl'}#[!3::4]',)",
    f"data.validation = ('jsonl:{folder / 'talks.jsonl'}#[3::4]',)",
  )


@pytest.fixture
def untrained(tmp_path):
  """An experiment, and a folder that has its tokenizer and nothing else."""
  file = experiment(tmp_path)
  (tmp_path / 'run').mkdir()
  words = huggingface_tokenizer.from_folder(tmp_path / 'words')
  words.save(tmp_path / 'run' / 'tokenizer')
  return file, tmp_path / 'run', words


def test_it_learns_the_answers_and_gives_them(capsys, tmp_path):
  """Questions could not be predicted: more than 2 nats a token."""
  file, workdir = experiment(tmp_path), tmp_path / 'run'
  assert tiny.run(file, workdir) == 0
  losses = [line.get('validation/loss') for line in tiny.metrics(workdir)]
  assert losses[-1] < 0.3
  capsys.readouterr()
  options = 'generate.chat=prompt', 'generate.prompt=abcd'
  assert tiny.run(file, workdir, *options, mode='generate') == 0
  assert capsys.readouterr().out.startswith('the cat\n')
  (sample,) = tiny.generated(workdir)
  assert (sample['prompt'], sample['text']) == ('abcd', 'the cat')
  assert sample['tokens'][-1] == byte_pair.SPECIALS.index('<|im_end|>')
  (tmp_path / 'talk.json').write_text(json.dumps(talks(1)[0][:3]))
  option = f'generate.chat={tmp_path}/talk.json'
  assert tiny.run(file, workdir, option, mode='generate') == 0
  assert capsys.readouterr().out.startswith('sat\n')


def test_a_prompt_is_the_last_message(untrained, tmp_path):
  *_, words = untrained
  talk = talks(1)[0]
  (tmp_path / 'talk.json').write_text(json.dumps({'messages': talk}))
  for chat_option, prompt, expected in (
    ('prompt', 'a', [{'role': 'user', 'content': 'a'}]),
    (f'{tmp_path}/talk.json', '', talk),
    (f'{tmp_path}/talk.json', 'a', [*talk, {'role': 'user', 'content': 'a'}]),
  ):
    config = tiny.config(generate={'chat': chat_option, 'prompt': prompt})
    model = gemini.Gemini(config.model)
    read = prompts.read_prompt(config, model, words, prompt)
    assert read.tokens.tolist() == chat.prompt(words, expected).tolist()
    assert (read.text, read.prefix) == (expected[-1]['content'], '')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'talk.json: No such file'),
    ('{', 'talk.json is not JSON'),
    ('[{"role": "user"}]', "talk.json: messages[0] has no 'content'"),
  ],
)
def test_a_conversation_that_cannot_be_read(
  content, message, untrained, capsys, tmp_path
):
  file, workdir, _ = untrained
  if content is not None:
    (tmp_path / 'talk.json').write_text(content)
  option = f'generate.chat={tmp_path}/talk.json'
  assert tiny.run(file, workdir, option, mode='generate') == 2
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert message in line and 'generate.chat=' in line


def test_a_run_without_a_template(capsys, tmp_path):
  file = tiny.experiment(tmp_path)
  (tmp_path / 'run').mkdir()
  tokenizer.Bytes().save(tmp_path / 'run' / 'tokenizer')
  options = 'generate.chat=prompt', 'generate.prompt=abcd'
  assert tiny.run(file, tmp_path / 'run', *options, mode='generate') == 2
  message = "generate.chat='prompt' needs a chat template"
  assert message in capsys.readouterr().err.strip().splitlines()[-1]
