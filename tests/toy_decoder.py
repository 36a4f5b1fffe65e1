"""Small decoders with random weights, and a tokenizer for them."""

import functools

import numpy as np

import toy
from gemini_jax import config as config_lib
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.infer import decoding
from gemini_jax.models import gemini

PAD, BOS, EOS = 0, 1, 2
VOCAB_SIZE = 40
LENGTH = 20
# One shorter and one longer than a chunk of prefill, none a multiple of it.
PROMPT_LENGTHS = (1, 7, 11)
CHUNK = 5
# Rows of every batch; most tests leave some empty.
NUM_ROWS = 8

MODELS = {
  'plain': {},
  'local': {
    'attention_pattern': ('local', 'global'),
    'window': 3,
    'num_kv_heads': 2,
    'num_layers': 3,
    'qk_norm': True,
    'rope_base_local': 100.0,
  },
  'learned': {
    'position': 'learned',
    'num_kv_heads': 1,
    'norm': 'pre_post',
    'tie_embeddings': False,
    'scan_layers': False,
  },
  'encoder': {
    'architecture': 'encoder_decoder',
    'position': 'learned',
    'num_kv_heads': 1,
    'qk_norm': True,
  },
  'encoder_local': {
    'architecture': 'encoder_decoder',
    'attention_pattern': ('local', 'global'),
    'window': 3,
    'num_kv_heads': 2,
    'norm': 'pre_post',
  },
  'experts': {
    'num_experts': 5,
    'experts_per_token': 2,
    'expert_dim': 24,
    'shared_expert_dim': 16,
  },
  'encoder_experts': {
    'architecture': 'encoder_decoder',
    'num_experts': 3,
    'experts_per_token': 1,
  },
  'prefix': {'attention_pattern': ('local', 'global'), 'window': 6},
  'latent': {
    'latent': config_lib.Latent(dim=5, memory=2),
    'num_kv_heads': 2,
    'qk_norm': True,
  },
  'encoder_latent': {
    'architecture': 'encoder_decoder',
    'latent': config_lib.Latent(dim=5),
  },
}


class Toy(tokenizer_lib.Tokenizer):
  """A tokenizer whose last two ids are the halves of one character."""

  def __init__(self):
    letters = [bytes([ord('A') + i]) for i in range(VOCAB_SIZE - 5)]
    pieces = [b'', b'', b'', *letters, b'\xc3', b'\xa9']
    super().__init__(pieces, PAD, BOS, EOS)

  def encode(self, text):
    return np.array([self.pieces.index(c.encode()) for c in text], np.int32)


@functools.cache
def build(name):
  """(decoder, params) of a random model that is far from uniform."""
  model = gemini.Gemini(
    config_lib.Model(
      vocab_size=VOCAB_SIZE,
      max_length=LENGTH,
      width=32,
      mlp_dim=48,
      **({'num_layers': 2} | MODELS[name]),
    )
  )
  decoder = decoding.Decoder(
    model,
    NUM_ROWS,
    pad_id=PAD,
    eos_id=EOS,
    forbidden=(PAD, BOS),
    prefill_chunk=CHUNK,
    memory_length=9 if name.startswith('encoder') else 0,
    prefix=name == 'prefix',
  )
  return decoder, toy.model_params(model, 1)


def random_rows(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [
    np.array([BOS, *rng.integers(3, VOCAB_SIZE, n - 1)], np.int32)
    for n in lengths
  ]


def arguments(name):
  """Prompts of different lengths, and inputs where there is an encoder."""
  if name.startswith('encoder'):
    prompts = [np.array([BOS], np.int32)] * 3
    values = {'prompts': prompts, 'inputs': random_rows((3, 9, 6), seed=1)}
  else:
    values = {'prompts': random_rows(PROMPT_LENGTHS, seed=7), 'inputs': None}
  if 'latent' in name:
    values['latents'] = np.random.default_rng(5).normal(size=(3, 5))
  return values
