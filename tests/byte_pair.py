"""A byte-level BPE tokenizer of Hugging Face, trained here, with a chat."""

import functools
import json

import pytest

tokenizers = pytest.importorskip(
  'tokenizers', reason='needs gemini_jax[weights]'
)

from gemini_jax.data import huggingface_tokenizer  # noqa: E402

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
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=list(SPECIALS),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(CORPUS, trainer)
  made.add_tokens(['<think>'])
  return made


def write(path, files):
  """Writes files of bytes, of text, or of JSON."""
  for name, content in files.items():
    if isinstance(content, dict):
      content = json.dumps(content)
    if isinstance(content, str):
      content = content.encode()
    (path / name).write_bytes(content)


def make(path, template=TEMPLATE):
  """Ours, of a folder that is written first."""
  write(
    path,
    {
      'tokenizer.json': library().to_str(),
      'tokenizer_config.json': {
        'bos_token': '<|im_start|>',
        'eos_token': {'content': '<|im_end|>', 'lstrip': False},
        'chat_template': template,
      },
      'generation_config.json': {'eos_token_id': [2, 0]},
    },
  )
  return huggingface_tokenizer.from_folder(path)
