r"""Pictures of coloured shapes and questions that need them, as one list.

  python tests/visual_questions.py DIR [--pictures=4000] [--seed=0]

Writes DIR/questions.jsonl for experiments/question_answering.py: ten questions
about each picture, of the shapes, colours and places of one to three things.
All of a picture stand together, so that the last tenth is about other pictures.
Prints how many of those the most frequent answer to each question is right for.
"""

import argparse
import collections
import json
import pathlib
import random

import PIL.Image
import PIL.ImageDraw

SIDE = 64
SHAPES = ('circle', 'square', 'triangle')
COLOURS = {
  'red': (220, 40, 40),
  'green': (40, 170, 60),
  'blue': (50, 80, 220),
  'yellow': (235, 210, 50),
  'purple': (150, 60, 180),
  'white': (240, 240, 240),
}
PLACES = ('top left', 'top right', 'bottom left', 'bottom right')
Thing = tuple[str, str, str]


def scene(rng: random.Random) -> list[Thing]:
  """Up to three (colour, shape, place), each of them there only once."""
  count = rng.randint(1, 3)
  parts = (tuple(COLOURS), SHAPES, PLACES)
  return list(zip(*(rng.sample(names, count) for names in parts), strict=True))


def draw(rng: random.Random, things: list[Thing]) -> PIL.Image.Image:
  """The things on a dark ground, each somewhere in its quarter."""
  picture = PIL.Image.new('RGB', (SIDE, SIDE), (rng.randint(0, 50),) * 3)
  pen = PIL.ImageDraw.Draw(picture)
  for colour, shape, place in things:
    half = rng.uniform(7, 13)
    column, row = place.endswith('right'), place.startswith('bottom')
    x, y = (
      SIDE / 2 * at + rng.uniform(half + 1, SIDE / 2 - half - 1)
      for at in (column, row)
    )
    box = (x - half, y - half, x + half, y + half)
    fill = tuple(c + rng.randint(-15, 15) for c in COLOURS[colour])
    if shape == 'triangle':
      corners = ((x, y - half), (x - half, y + half), (x + half, y + half))
      pen.polygon(corners, fill=fill)
    else:
      {'circle': pen.ellipse, 'square': pen.rectangle}[shape](box, fill=fill)
  return picture


def question(rng: random.Random, things: list[Thing]) -> tuple[str, str]:
  """One of the things, and the answer that the picture gives."""
  colour, shape, place = rng.choice(things)
  others = [thing for thing in things if thing[1] != shape]
  asked = [
    (f'what colour is the {shape}?', colour),
    (f'what shape is the {colour} thing?', shape),
    (f'where is the {shape}?', place),
    (f'what is at the {place}?', f'a {colour} {shape}'),
    ('how many things are there?', str(len(things))),
  ]
  yes = rng.random() < 0.5
  here = lambda k: [thing[k] for thing in things]
  pick = lambda k, names: rng.choice(
    here(k) if yes else [name for name in names if name not in here(k)]
  )
  answer = 'yes' if yes else 'no'
  asked.append((f'is anything {pick(0, COLOURS)}?', answer))
  if yes or len(things) < len(SHAPES):
    asked.append((f'is there a {pick(1, SHAPES)}?', answer))
  other = rng.choice([name for name in COLOURS if name != colour])
  asked.append((f'is the {shape} {colour if yes else other}?', answer))
  if others:
    other_shape, other_place = rng.choice(others)[1:]
    for word, k in (('above', 0), ('left of', 1)):
      mine, its = place.split()[k], other_place.split()[k]
      if mine != its:
        is_so = mine in ('top', 'left')
        asked.append(
          (
            f'is the {shape} {word} the {other_shape}?',
            'yes' if is_so else 'no',
          )
        )
  return rng.choice(asked)


def write(folder: pathlib.Path, num_pictures: int, seed: int = 0):
  """The pictures and the list of questions."""
  rng = random.Random(seed)
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / 'questions.jsonl').open('w') as file:
    for number in range(num_pictures):
      things, name = scene(rng), f'{number}.png'
      draw(rng, things).save(folder / name)
      for _ in range(10):
        asked, answer = question(rng, things)
        record = {'image': name, 'question': asked, 'answer': answer}
        print(json.dumps(record), file=file)


def prior(folder: pathlib.Path) -> float:
  """How often each question's most frequent answer is right, of the last tenth.

  Of those that the experiment trains on, the first 85 %.
  """
  lines = (folder / 'questions.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  counts = collections.defaultdict(collections.Counter)
  for record in records[: len(records) * 85 // 100]:
    counts[record['question']][record['answer']] += 1
  test = records[len(records) * 9 // 10 :]
  right = [
    [record['answer']]
    == [answer for answer, _ in counts[record['question']].most_common(1)]
    for record in test
  ]
  return sum(right) / len(test)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--pictures', type=int, default=4000)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  write(options.folder, options.pictures, options.seed)
  print(
    f'by the questions alone: {prior(options.folder):.4f} of the last tenth'
  )
