"""Records with pictures and sounds, in files, and a model that reads them."""

import json

import numpy as np

from gemini_jax import config as config_lib

WORDS = ('dark', 'middle', 'light')


def write(folder, count=12, seed=0):
  """JSONL of `count` records: picture.png, sound.wav and a word for both.

  Pictures are 8 x 8 grey ones about as light as the word says; sounds of 40 to
  200 samples at 1 kHz are as loud.
  """
  import PIL.Image
  import soundfile

  rng = np.random.default_rng(seed)
  lines = []
  for i in range(count):
    level = i % len(WORDS)
    pixels = rng.integers(0, 50, (8, 8)) + 100 * level
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
    samples = rng.normal(0, 0.1 + 0.1 * level, rng.integers(40, 201))
    soundfile.write(folder / f'{i}.wav', samples.clip(-1, 1), 1000)
    lines.append(
      {
        'picture': f'{i}.png',
        'sound': f'{i}.wav',
        'level': level,
        'word': WORDS[level],
      }
    )
  path = folder / 'records.jsonl'
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  return path


def model(**fields):
  """Reads pictures of 4 tokens and sounds of up to 5, and writes both."""
  values = {
    'vocab_size': 320,
    'max_length': 40,
    'width': 16,
    'mlp_dim': 24,
    'num_layers': 1,
    'num_heads': 2,
    'image': config_lib.Image(
      height=8,
      width=8,
      channels=1,
      patch=4,
      autoencoder=config_lib.Autoencoder(dim=3, width=16, num_components=2),
    ),
    'audio': config_lib.Audio(
      sample_rate=1000,
      seconds=0.2,
      num_mels=4,
      window=0.02,
      hop=0.01,
      patch=4,
      autoencoder=config_lib.Autoencoder(dim=2, width=16, num_components=2),
    ),
  }
  return config_lib.Model(**(values | fields))


def data(path, *tasks, **fields):
  """The data section of tasks over the records of `path`."""
  values = {
    'train': (f'jsonl:{path}',),
    'validation': (f'jsonl:{path}',),
    'tasks': tasks,
    'batch_size': 4,
    'sequence_length': 24,
    'inputs_length': 24,
    'pack': False,
    'cache_dir': str(path.parent / 'cache'),
  }
  return config_lib.Data(**(values | fields))
