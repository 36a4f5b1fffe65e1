"""FLOPs against hand counts, traced programs and the compiler."""

import dataclasses
import types

import flax.linen as nn
import jax
import pytest

import tiny
import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import chunked_attention
from gemini_jax.models import gemini
from gemini_jax.objectives import losses
from gemini_jax.train import flops

LENGTH, MEMORY = 128, 96

MODELS = {
  'decoder': {},
  'grouped queries': {'num_kv_heads': 1},
  'gated': {'gated': True},
  'wide heads': {'head_dim': 24, 'mlp_dim': 100},
  'local': {
    'attention_pattern': ('local', 'global'),
    'window': 8,
    'num_layers': 3,
  },
  'encoder-decoder': {
    'architecture': 'encoder_decoder',
    'num_encoder_layers': 3,
  },
  'local encoder-decoder': {
    'architecture': 'encoder_decoder',
    'num_kv_heads': 2,
    'attention_pattern': ('local',),
    'window': 16,
  },
}
EXPERTS = {
  'architecture': 'encoder_decoder',
  'num_experts': 8,
  'experts_per_token': 3,
  'expert_dim': 40,
  'shared_expert_dim': 24,
  'gated': True,
}


def make(name):
  return config_lib.Model(
    **{
      'vocab_size': 320,
      'max_length': LENGTH,
      'width': 64,
      'num_layers': 2,
      'num_heads': 4,
      'gated': False,
      'scan_layers': False,
    }
    | (EXPERTS if name == 'experts' else MODELS[name])
  )


def pairs_by_hand(length, window, causal):
  """Query-key pairs within reach, counted one by one."""
  return sum(
    (abs(q - k) < window) and (k <= q or not causal)
    for q in range(length)
    for k in range(length)
  )


def by_hand(config, length, memory):
  """2 FLOPs for each multiplication, from the shapes of the parameters."""
  boxed = jax.eval_shape(
    lambda: gemini.init_params(gemini.Gemini(config), jax.random.key(0))
  )
  flat, _ = jax.tree_util.tree_flatten_with_path(boxed)
  total = 2 * length * config.width * config.vocab_size
  for path, leaf in flat:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if 'kernel' in name:
      share = 1
      if '/expert_' in name:
        share = config.experts_per_token / config.num_experts
      reads_memory = name.startswith('encoder') or (
        'cross_attention/key' in name or 'cross_attention/value' in name
      )
      total += 2 * leaf.size * share * (memory if reads_memory else length)

  def stack(num_layers, length, causal):
    pattern = config.attention_pattern
    kinds = [pattern[i % len(pattern)] for i in range(num_layers)]
    windows = [config.window if k == 'local' else length for k in kinds]
    return sum(pairs_by_hand(length, window, causal) for window in windows)

  pairs = stack(config.num_layers, length, True)
  pairs += stack(config.encoder_layers, memory, False)
  if config.encoder_layers:
    pairs += config.num_layers * length * memory
  return total + 4 * config.num_heads * config.head_width * pairs


# What the compiler counts of experts depends on the backend.
@pytest.mark.parametrize('name', [*MODELS, 'experts'])
def test_forward_flops_equal_a_count_by_hand(name):
  config = make(name)
  memory = MEMORY if config.encoder_layers else 0
  assert flops.forward_flops(config, LENGTH, memory) == by_hand(
    config, LENGTH, memory
  )


@pytest.mark.parametrize('name', MODELS)
def test_forward_flops_agree_with_the_compiler(monkeypatch, name):
  """In one band XLA computes every pair, those outside of the mask too."""
  monkeypatch.setattr(chunked_attention, '_BANDS', 1)
  config = make(name)
  memory = MEMORY if config.encoder_layers else 0
  network = gemini.Gemini(config)
  params = toy.model_params(network)
  encoder = toy.sequence(1, MEMORY) if memory else None
  batch = toy.batch(rows=1, length=LENGTH, encoder=encoder)
  forward = jax.jit(lambda p, b: network.apply({'params': p}, b)[0])
  cost = forward.lower(params, batch).cost_analysis()['flops']
  pattern = config.attention_pattern
  masked = 0
  for layers, length, causal in (
    (config.num_layers, LENGTH, True),
    (config.encoder_layers, memory, False),
  ):
    for i in range(layers):
      local = pattern[i % len(pattern)] == 'local'
      window = config.window if local else length
      masked += length**2 - pairs_by_hand(length, window, causal)
  masked *= 4 * config.num_heads * config.head_width
  expected = flops.forward_flops(config, LENGTH, memory) + masked
  # Norms, softmax and activations are what is left.
  assert 1 <= cost / expected < 1.1


# Small in attention, and of everything that is beside the two stacks.
EXTRA = {
  'decoder': {},
  'experts': EXPERTS,
  'encoder-decoder': MODELS['encoder-decoder'],
  'latent decoder': {
    'latent': {'dim': 8, 'memory': 3},
    'num_encoder_layers': 3,
  },
  'latent encoder-decoder': {
    'architecture': 'encoder_decoder',
    'latent': {'dim': 8},
  },
  'contrast': {
    'architecture': 'encoder_decoder',
    'contrast_dim': 16,
    'num_encoder_layers': 3,
  },
  'images': {'image': {'height': 32, 'width': 32, 'num_layers': 2}},
  'convolutions': {'image': {'height': 32, 'width': 32, 'num_blocks': 2}},
  'resampler': {'image': {'height': 32, 'width': 32, 'num_tokens': 4}},
  'sounds': {'audio': {'sample_rate': 1000, 'num_mels': 8, 'num_layers': 1}},
  'videos': {
    'image': {'height': 16, 'width': 16, 'num_layers': 1},
    'video': {'num_frames': 3, 'frame_tokens': 1},
  },
  'autoencoders': {
    'architecture': 'encoder_decoder',
    'image': {'height': 32, 'width': 32, 'autoencoder': {'dim': 4}},
    'audio': {'sample_rate': 1000, 'num_mels': 8, 'autoencoder': {'dim': 4}},
  },
}


@pytest.mark.parametrize('name', EXTRA)
def test_forward_flops_agree_with_what_is_traced(monkeypatch, name):
  """Of the whole forward pass, on every pair of tokens."""
  monkeypatch.setattr(chunked_attention, '_BANDS', 1)
  fields = {
    'vocab_size': 320,
    'max_length': LENGTH,
    'width': 64,
    'num_layers': 2,
    'num_heads': 4,
  }
  cross = EXTRA[name].get('architecture') == 'encoder_decoder'
  objective = 'seq2seq' if cross else 'causal'
  model = tiny.config(
    model=fields | EXTRA[name], data={'pack': False, 'objective': objective}
  ).model
  network = gemini.Gemini(model)
  media = {
    kind: batch_lib.blank_media(kind, model, 1, 2) for kind in model.kinds
  }
  memory = LENGTH if model.encodes else 0
  encoder = None
  if model.cross:
    memory = MEMORY
    encoder = toy.sequence(1, MEMORY).replace(media=media)
  batch = toy.batch(rows=1, length=LENGTH, encoder=encoder)
  batch = batch.replace(decoder=batch.decoder.replace(media=media))
  params = jax.eval_shape(
    lambda: nn.unbox(gemini.init_params(network, jax.random.key(0)))
  )
  traced = jax.make_jaxpr(
    lambda params: losses.model_sums(network, params, batch)
  )(params)
  masked = LENGTH**2 - pairs_by_hand(LENGTH, LENGTH, True)
  masked *= 4 * model.num_layers * model.num_heads * model.head_width
  counts = dict.fromkeys(model.kinds, 4 if model.cross else 2)
  count = flops.forward_flops(model, LENGTH, memory, counts)
  assert count + masked == pytest.approx(
    flops.product_flops(traced.jaxpr), rel=5e-3
  )


def test_products_are_counted_where_they_are_repeated():
  """In loops, and of branches the least."""

  def function(x, kernel):
    x, _ = jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=3)
    return jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ kernel)

  traced = jax.make_jaxpr(function)(toy.normal((2, 4)), toy.normal((4, 4)))
  assert flops.product_flops(traced.jaxpr) == 3 * 2 * 2 * 4 * 4


def test_flops_of_a_step():
  config = tiny.config(data={'batch_size': 6})
  forward = flops.forward_flops(config.model, 12)
  assert flops.step_flops(config) == 18 * forward
  for method, passes in (('lora', 2), ('head', 1)):
    tuned = dataclasses.replace(
      config,
      tune=config_lib.Tune(method=method),
      train=config_lib.Train(init_from='/base'),
    )
    assert flops.step_flops(tuned) == 6 * passes * forward
  config = tiny.config(
    model={'architecture': 'encoder_decoder'},
    data={'objective': 'seq2seq', 'inputs_length': 7},
  )
  assert flops.step_flops(config) == 6 * flops.forward_flops(
    config.model, 12, 7
  )
  # Nothing but the own tokens, which the encoder reads too.
  config = tiny.config(model={'latent': {'dim': 3}}, data={'pack': False})
  assert flops.step_flops(config) == 6 * flops.forward_flops(
    config.model, 12, 12
  )
  image = {'height': 4, 'width': 4, 'patch': 2, 'num_layers': 1}
  config = tiny.config(
    model={'image': image},
    data={'tasks': ('{image:a} {image:b} -> {c}',), 'pack': False},
  )
  assert flops.step_flops(config) == 6 * flops.forward_flops(
    config.model, 12, media={'image': 2}
  )


@pytest.mark.parametrize(
  ('kind', 'dtype', 'peak'),
  [
    ('TPU v5 lite', 'bfloat16', 197e12),
    ('TPU v5', 'bfloat16', 459e12),
    ('TPU v5p', 'bfloat16', 459e12),
    ('NVIDIA H100 PCIe', 'bfloat16', 756e12),
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989e12),
    ('TPU v5', 'float32', None),
    ('NVIDIA GeForce RTX 4090', 'bfloat16', None),
    ('cpu', 'bfloat16', None),
  ],
)
def test_a_peak_is_known_or_none(kind, dtype, peak):
  device = types.SimpleNamespace(device_kind=kind)
  assert flops.peak_flops(device, dtype) == peak
