"""Pretrained tokenizers, as published, trained here; the first has a chat."""

import functools
import io
import json

import pytest
import sentencepiece

tokenizers = pytest.importorskip(
  'tokenizers', reason='needs gemini_jax[weights]'
)

from gemini_jax.data import (  # noqa: E402
  huggingface_tokenizer,
  sentencepiece_tokenizer,
)

SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
CORPUS = ['the cat sat on the mat\n', 'def f(x):\n    return x + 1\n'] * 20
# As SmolLM2's: without marks of what the assistant writes.
TEMPLATE = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
  "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same with marks.
MARKED = """{%- for message in messages %}
  {{- '<|im_start|>' + message['role'] + '\n' }}
  {%- if message['role'] == 'assistant' %}
    {%- generation %}
    {{- message['content'] + '<|im_end|>' }}
    {%- endgeneration %}
  {%- else %}
    {{- message['content'] + '<|im_end|>' }}
  {%- endif %}
  {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


@functools.cache
def library():
  """The library's own, whose digits are tokens of their own."""
  return train(
    CORPUS,
    400,
    tokenizers.pre_tokenizers.Digits(individual_digits=True),
    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
  )


def train(texts, vocab_size, *rules):
  """A byte-level BPE on texts, cut by rules; by none if none are given."""
  none = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False)
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(list(rules or [none]))
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIALS),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(texts, trainer)
  made.add_tokens(['<think>'])
  if not rules:
    # Rules that GGUF has a name for.
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
  return made


def write(path, files):
  """Writes files of bytes, of text, or of JSON."""
  for name, content in files.items():
    if isinstance(content, dict):
      content = json.dumps(content)
    if isinstance(content, str):
      content = content.encode()
    (path / name).write_bytes(content)


def make(path, template=TEMPLATE, words=None):
  """Ours, of a folder that is written first."""
  write(
    path,
    {
      'tokenizer.json': (words or library()).to_str(),
      'tokenizer_config.json': {
        'bos_token': '<|im_start|>',
        'eos_token': {'content': '<|im_end|>', 'lstrip': False},
        'chat_template': template,
      },
      'generation_config.json': {'eos_token_id': [2, 0]},
    },
  )
  return huggingface_tokenizer.from_folder(path)


@functools.cache
def sentencepiece_model(kind, vocab_size=280, **options):
  """A SentencePiece model with ids and a prefix as Llama's, or options."""
  proto = io.BytesIO()
  defaults = {
    'byte_fallback': True,
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
  }
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=proto,
    model_type=kind,
    vocab_size=vocab_size,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    minloglevel=2,
    **defaults | options,
  )
  return sentencepiece_tokenizer.SentencePiece(proto.getvalue())
