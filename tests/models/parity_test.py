"""Llama, Qwen 2 and Gemma 2/3 are values of the config.

Tiny models of Hugging Face's `transformers` with random weights, and ours with
the same ones, give the same logits.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import gemini

torch = pytest.importorskip('torch', reason='needs gemini_jax[parity]')
with warnings.catch_warnings():
  # What their imports warn of is theirs to mend.
  warnings.simplefilter('ignore')
  transformers = pytest.importorskip(
    'transformers', reason='needs gemini_jax[parity]'
  )

VOCAB_SIZE, LENGTH = 61, 40

# The sizes that all models share, by Hugging Face's names and by ours.
THEIRS = {
  'vocab_size': VOCAB_SIZE,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'attn_implementation': 'eager',
}
OURS = {
  'vocab_size': VOCAB_SIZE,
  'max_length': 64,
  'width': 32,
  'mlp_dim': 48,
  'num_heads': 4,
  'num_kv_heads': 2,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One architecture, by their class and fields and by our fields."""

  name: str
  theirs: dict
  ours: dict
  # Gemma stores the scale of a norm as its difference from 1, as we do.
  scale_offset: float = 0.0


LLAMA = {
  'num_hidden_layers': 3,
  'rms_norm_eps': 1e-5,
  'rope_theta': 500_000.0,
  'tie_word_embeddings': False,
}
OUR_LLAMA = {
  'num_layers': 3,
  'activation': 'silu',
  'norm_eps': 1e-5,
  'rope_base': 500_000.0,
  'tie_embeddings': False,
}
GEMMA = {
  'hidden_activation': 'gelu_pytorch_tanh',
  'query_pre_attn_scalar': 24,
  'head_dim': 16,
  'sliding_window': 5,
}
OUR_GEMMA = {
  'activation': 'gelu',
  'query_scale': 24.0,
  'head_dim': 16,
  'window': 5,
  'norm': 'pre_post',
  'scale_embeddings': True,
}
CASES = {
  'llama': Case('Llama', LLAMA, OUR_LLAMA, 1.0),
  'llama_tied': Case(
    'Llama',
    LLAMA | {'tie_word_embeddings': True},
    OUR_LLAMA | {'tie_embeddings': True},
    1.0,
  ),
  'llama_single_kv_head': Case(
    'Llama',
    LLAMA | {'num_key_value_heads': 1},
    OUR_LLAMA | {'num_kv_heads': 1},
    1.0,
  ),
  'llama_mlp_bias': Case(
    'Llama', LLAMA | {'mlp_bias': True}, OUR_LLAMA | {'mlp_bias': True}, 1.0
  ),
  'llama3': Case(
    'Llama',
    LLAMA
    | {
      # Small enough for all three kinds of wavelength to occur.
      'rope_theta': 100.0,
      'rope_scaling': {
        'rope_type': 'llama3',
        'factor': 4.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 32,
      },
    },
    OUR_LLAMA
    | {
      'rope_base': 100.0,
      'rope_llama3_context': 32,
      'rope_llama3_factors': (4.0, 1.0, 4.0),
    },
    1.0,
  ),
  'qwen2': Case('Qwen2', LLAMA, OUR_LLAMA | {'attention_bias': True}, 1.0),
  'gemma2': Case(
    'Gemma2',
    GEMMA
    | {
      'num_hidden_layers': 5,
      'attn_logit_softcapping': 1.5,
      'final_logit_softcapping': 2.0,
    },
    OUR_GEMMA
    | {
      'num_layers': 5,
      'attention_pattern': ('local', 'global'),
      'attention_softcap': 1.5,
      'logit_softcap': 2.0,
    },
  ),
  'gemma3': Case(
    'Gemma3',
    GEMMA
    | {
      'num_hidden_layers': 7,
      'rope_theta': 1_000_000.0,
      'rope_local_base_freq': 10_000.0,
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
    OUR_GEMMA
    | {
      'num_layers': 7,
      'attention_pattern': ('local',) * 5 + ('global',),
      'qk_norm': True,
      'rope_base': 1_000_000.0,
      'rope_base_local': 10_000.0,
      'rope_scale': 8.0,
    },
  ),
}


CASES['gemma3_short'] = dataclasses.replace(
  CASES['gemma3'],
  theirs=CASES['gemma3'].theirs
  | {'num_hidden_layers': 2, 'sliding_window_pattern': 2},
  ours=CASES['gemma3'].ours
  | {'num_layers': 2, 'attention_pattern': ('local', 'global')},
)


def build_theirs(case):
  """Their model, all of its weights drawn anew: norms are not ones."""
  config_name = {'Gemma3': 'Gemma3TextConfig'}.get(
    case.name, f'{case.name}Config'
  )
  config = getattr(transformers, config_name)(**(THEIRS | case.theirs))
  model = getattr(transformers, f'{case.name}ForCausalLM')(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      center = case.scale_offset if 'norm' in name else 0.0
      spread = 0.5 if 'embed' in name else 0.3
      parameter.copy_(
        center + spread * torch.randn(parameter.shape, generator=generator)
      )
  return model


# Ours: theirs and, after the transpose, the shape of one layer's tensor.
LAYER = {
  'attention/query': ('self_attn.q_proj', lambda c: (c.num_heads, -1)),
  'attention/key': ('self_attn.k_proj', lambda c: (c.kv_heads, -1)),
  'attention/value': ('self_attn.v_proj', lambda c: (c.kv_heads, -1)),
  'attention/output': ('self_attn.o_proj', None),
  'attention/query_norm': ('self_attn.q_norm', None),
  'attention/key_norm': ('self_attn.k_norm', None),
  'feedforward/gate': ('mlp.gate_proj', None),
  'feedforward/up': ('mlp.up_proj', None),
  'feedforward/down': ('mlp.down_proj', None),
}
LLAMA_NORMS = {
  'attention_norm': 'input_layernorm',
  'feedforward_norm': 'post_attention_layernorm',
}
GEMMA_NORMS = {
  'attention_norm': 'input_layernorm',
  'attention_post_norm': 'post_attention_layernorm',
  'feedforward_norm': 'pre_feedforward_layernorm',
  'feedforward_post_norm': 'post_feedforward_layernorm',
}


def translate(config, shapes, weights, scale_offset):
  """Our parameters, filled with theirs; every one of theirs is used."""
  post = config.norm == 'pre_post'
  norms = GEMMA_NORMS if post else LLAMA_NORMS
  sources = {name: source for name, (source, _) in LAYER.items()} | norms
  unused = dict(weights)

  def take(name, kind, shape):
    tensor = unused.pop(f'{name}.{"bias" if kind == "bias" else "weight"}')
    if kind == 'scale':
      tensor = tensor - scale_offset
    if kind == 'kernel':
      tensor = tensor.T
    return jnp.asarray(tensor.reshape(shape))

  def fill(path, leaf):
    names = [key.key for key in path]
    kind = names[-1]
    if 'layers' in names:
      source = sources['/'.join(names[2:-1])]
      return jnp.stack(
        [
          take(f'model.layers.{i}.{source}', kind, leaf.shape[1:])
          for i in range(config.num_layers)
        ]
      )
    source = {
      'token': 'model.embed_tokens',
      'decoder_norm': 'model.norm',
      'head': 'lm_head',
    }[names[0]]
    return take(source, kind, leaf.shape)

  params = jax.tree_util.tree_map_with_path(fill, shapes)
  assert not set(unused) - {'lm_head.weight'}, 'left over'
  return params


@functools.cache
def reference(name):
  """(tokens, their logits, our parameters)."""
  case = CASES[name]
  theirs = build_theirs(case)
  model = gemini.Gemini(config_lib.Model(**(OURS | case.ours)))
  params = translate(
    model.config,
    toy.model_params(model),
    {name: value.numpy() for name, value in theirs.state_dict().items()},
    case.scale_offset,
  )
  tokens_BT = np.random.default_rng(0).integers(3, VOCAB_SIZE, (2, LENGTH))
  with torch.no_grad():
    expected_BTV = theirs(torch.from_numpy(tokens_BT)).logits.numpy()
  return tokens_BT, expected_BTV, params


def error(name, **changes):
  """Our largest difference as a share of their largest logit."""
  tokens_BT, expected_BTV, params = reference(name)
  model = gemini.Gemini(config_lib.Model(**(OURS | CASES[name].ours | changes)))
  sequence = batch_lib.plain_sequence(tokens_BT, np.full(2, LENGTH))
  batch = batch_lib.Batch(sequence, tokens_BT, np.ones(tokens_BT.shape))
  logits_BTV, _ = jax.jit(model.apply)({'params': params}, batch)
  difference = np.abs(np.asarray(logits_BTV) - expected_BTV).max()
  return difference / np.abs(expected_BTV).max()


@pytest.mark.parametrize('name', CASES)
def test_logits_equal(name):
  assert error(name) < 1e-5
  # A flat reference would say nothing.
  assert np.std(reference(name)[1]) > 0.2


@pytest.mark.parametrize(
  ('name', 'changes'),
  [
    ('llama3', {'rope_llama3_context': 0}),
    ('gemma2', {'window': 6}),
    ('gemma2', {'attention_softcap': 50.0}),
    ('gemma3_short', {'rope_base_local': None}),
    ('gemma3_short', {'rope_scale': 1.0}),
    ('gemma3_short', {'activation': 'gelu_exact'}),
  ],
)
def test_each_subtle_field_matters(name, changes):
  """Parity would not survive a wrong value."""
  assert error(name, **changes) > 5e-5
