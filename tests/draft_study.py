r"""A draft for a published model: its own layers, fewer, tuned on its answers.

  python tests/draft_study.py --target=WORKDIR --out=DIR [--writer=WORKDIR] \
      [--layers=4] [--steps=200]

The target answers questions; a model of some of its layers, by
`commands/shrink`, learns these answers and is rounded to int8. What is there
already is kept, and the training resumes. Then `tests/speculation_study.py
--target=WORKDIR --draft=DIR/draft/compressed/round-int8
--prompts=DIR/asked.jsonl` measures what it gains on questions about subjects
that it has seen no answer about. --writer is the target as it writes fastest,
such as its int8 form.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
QUESTIONS = (
  'What is {}?',
  'Explain {} to a child.',
  'Why is {} important?',
  'Write a short story about {}.',
  'Give me five facts about {}.',
  'What are the advantages and disadvantages of {}?',
  'How can I learn more about {}?',
  'Write a letter to a friend about {}.',
)
# One word each, with hyphens for spaces.
SUBJECTS = """
photosynthesis gravity the-moon volcanoes bread honey chess football music
painting sculpture poetry the-Roman-empire democracy money bridges ships trains
bicycles aeroplanes rain snow deserts rivers oceans whales bees ants dogs cats
horses elephants penguins owls trees mushrooms roses tomatoes rice coffee tea
salt sugar cheese sleep dreams memory language writing printing books libraries
schools exercise vaccines the-heart bones teeth electricity magnets light sound
glass steel paper plastic computers the-internet algorithms cryptography
statistics geometry prime-numbers clocks
"""
HELD_OUT = """
climate-change gardening the-sun dolphins castles trade robots friendship
"""


def main():
  """Makes the draft."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--target', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--writer', type=pathlib.Path)
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--steps', type=int, default=200)
  flags = parser.parse_args()
  out = flags.out.absolute()
  out.mkdir(parents=True, exist_ok=True)
  ask(out / 'questions.jsonl', SUBJECTS, QUESTIONS)
  ask(out / 'asked.jsonl', HELD_OUT, QUESTIONS[:1])
  answers = out / 'answers.jsonl'
  if not answers.exists():
    write_answers(
      flags.writer or flags.target, out / 'questions.jsonl', answers
    )
  if not (out / 'cut').exists():
    command(
      'commands.shrink',
      f'--source={flags.target}',
      f'--target={out / "cut"}',
      f'--num_layers={flags.layers}',
    )
  config = ROOT / 'experiments/fine_tune.py'
  options = f'base={out / "cut"},method=full,data={answers}'
  training = {
    'data.batch_size': 8,
    'data.sequence_length': 192,
    # Of the target; few answers would spoil it.
    'optimizer.frozen': '^token/',
    'optimizer.learning_rate': 1e-3,
    'train.num_steps': flags.steps,
  }
  command(
    'main',
    f'--workdir={out / "draft"}',
    f'--config={config}:{options}',
    *(f'--config.{name}={value}' for name, value in training.items()),
  )
  command(
    'main',
    f'--workdir={out / "draft"}',
    '--mode=compress',
    '--config.compress.method=round',
    '--config.compress.weights=int8',
  )


def ask(path: pathlib.Path, subjects: str, questions: tuple[str, ...]):
  """Writes a conversation of one question in each line."""
  lines = [
    {'messages': [{'role': 'user', 'content': question.format(subject)}]}
    for question in questions
    for subject in (name.replace('-', ' ') for name in subjects.split())
  ]
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))


def write_answers(
  writer: pathlib.Path, questions: pathlib.Path, answers: pathlib.Path
):
  """Writes the conversations with the answers of a model."""
  copy = answers.with_name('writer')
  shutil.rmtree(copy, ignore_errors=True)
  copy.mkdir()
  for path in writer.absolute().iterdir():
    if path.name != 'samples':
      (copy / path.name).symlink_to(path)
  options = {'prompts': questions, 'max_tokens': 128, 'batch_size': 32}
  command(
    'main',
    f'--workdir={copy}',
    '--mode=generate',
    *(f'--config.generate.{name}={value}' for name, value in options.items()),
  )
  (samples,) = (copy / 'samples').glob('*.jsonl')
  lines = []
  for asked, written in zip(
    questions.read_text().splitlines(),
    samples.read_text().splitlines(),
    strict=True,
  ):
    messages = json.loads(asked)['messages']
    answer = {'role': 'assistant', 'content': json.loads(written)['text']}
    lines.append(f'{json.dumps({"messages": [*messages, answer]})}\n')
  answers.write_text(''.join(lines))


def command(name: str, *arguments: str):
  """Runs a command of the package."""
  subprocess.run(
    [sys.executable, '-P', '-m', f'gemini_jax.{name}', *arguments],
    check=True,
    cwd=ROOT,
  )


if __name__ == '__main__':
  main()
