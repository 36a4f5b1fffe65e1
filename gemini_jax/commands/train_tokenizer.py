"""Trains a SentencePiece model on text files.

python -m gemini_jax.commands.train_tokenizer --input FILE ... --output PATH
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from gemini_jax.data import tokenizer_training


def main(arguments: Sequence[str] | None = None) -> int:
  """Trains a SentencePiece model on text files."""
  parser = argparse.ArgumentParser(
    prog='python -m gemini_jax.commands.train_tokenizer', description=__doc__
  )
  parser.add_argument('--input', nargs='+', required=True, metavar='FILE')
  parser.add_argument('--vocab_size', type=int, default=2048)
  parser.add_argument('--output', required=True, metavar='PATH')
  flags = parser.parse_args(arguments)
  try:
    texts = [pathlib.Path(name).read_text('utf-8') for name in flags.input]
    num_bytes = sum(len(text.encode()) for text in texts)
    print(f'training {flags.vocab_size} pieces on {num_bytes:,} bytes')
    trained = tokenizer_training.train(texts, flags.vocab_size)
    trained.save(flags.output)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  num_tokens = sum(trained.encode(text).size for text in texts)
  print(
    f'{flags.output}: {trained.vocab_size} pieces, '
    f'{num_bytes / max(num_tokens, 1):.2f} bytes per token'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())
