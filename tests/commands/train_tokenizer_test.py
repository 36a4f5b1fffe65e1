"""The command that trains a tokenizer."""

import subprocess
import sys

from gemini_jax.commands import train_tokenizer
from gemini_jax.data import tokenizer

CORPUS = ['the cat sat on the mat\n', 'def f(x):\n    return x + 1\n'] * 20


def test_the_command_trains_a_model(tmp_path):
  (tmp_path / 'a.txt').write_text(''.join(CORPUS))
  command = [sys.executable, '-m', 'gemini_jax.commands.train_tokenizer']
  command += ['--input', tmp_path / 'a.txt', '--output', tmp_path / 'm']
  done = subprocess.run(
    [*command, '--vocab_size', '300'], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert '300 pieces' in done.stdout and 'bytes per token' in done.stdout
  assert tokenizer.load(tmp_path / 'm').vocab_size == 300
  assert (
    train_tokenizer.main([*map(str, command[3:]), '--vocab_size', '9999']) == 2
  )
