"""A stack is the same function however it runs: scan, unrolled, remat.

B batch, T length, D width, L layers.
"""

import collections
import functools
import re
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import toy
from gemini_jax import config as config_lib
from gemini_jax.kernels import masking
from gemini_jax.models import gemini, stack, transformer
from gemini_jax.parallel import sharding

# Five layers of a pattern of two: a scan of two groups, and one left.
REMAINDER = {
  'num_layers': 5,
  'attention_pattern': ('local', 'global'),
  'norm': 'pre_post',
  'qk_norm': True,
  'rope_base_local': 100.0,
}
ENCODER = {
  'architecture': 'encoder_decoder',
  'num_layers': 2,
  'dropout': 0.3,
  'stochastic_depth': 0.5,
}
EXPERTS = {
  'num_layers': 3,
  'attention_pattern': ('local', 'global'),
  'num_experts': 5,
  'expert_dim': 8,
  'shared_expert_dim': 12,
}
NAMES = typing.get_args(
  typing.get_args(typing.get_type_hints(config_lib.Model)['remat_save'])[0]
)
RUNS = {
  'scan': {'scan_layers': True},
  'scan_remat': {'scan_layers': True, 'remat': True},
  'scan_remat_attended': {
    'scan_layers': True,
    'remat': True,
    'remat_save': ('attended',),
  },
  'remat_names': {
    'scan_layers': False,
    'remat': True,
    'remat_save': NAMES,
  },
  'scan_offload': {
    'scan_layers': True,
    'remat': True,
    'remat_save': ('query',),
    'remat_offload': ('attended', 'up'),
  },
  'offload_names': {
    'scan_layers': False,
    'remat': True,
    'remat_offload': NAMES,
  },
}


def built(**fields):
  model = toy.model(**fields)
  return model, toy.model_params(model)


def objective(model, params, batch, key):
  logits_BTV, aux = model.apply(
    {'params': params},
    batch,
    deterministic=not model.config.dropout,
    rngs={'dropout': key},
  )
  value = jnp.sum(logits_BTV * toy.normal(logits_BTV.shape, 7))
  return sum(aux.values(), value), (logits_BTV, aux)


def gradient_fn(model):
  return jax.value_and_grad(functools.partial(objective, model), has_aux=True)


@functools.cache
def value_and_gradient(**fields):
  """((objective, logits), gradient), and the primitives that made it."""
  model, params = built(**fields)
  encoder = None
  if model.config.encoder_layers:
    encoder = toy.sequence(length=toy.S, seed=4)
  args = (params, toy.batch(encoder=encoder), jax.random.key(5))
  traced = jax.jit(gradient_fn(model)).trace(*args)
  return traced.lower().compile()(*args), primitives(traced.jaxpr.jaxpr)


def primitives(jaxpr):
  """How often each occurs, inner programs included."""
  counts = collections.Counter(e.primitive.name for e in jaxpr.eqns)
  for equation in jaxpr.eqns:
    for inner in core.jaxprs_in_params(equation.params):
      counts += primitives(inner)
  return counts


def remats(counts):
  """Uses of jax.checkpoint, whose primitive has had several names."""
  return counts['remat2'] + counts['remat'] + counts['checkpoint']


@pytest.mark.parametrize(
  ('fields', 'run'),
  [(REMAINDER, run) for run in RUNS]
  + [(ENCODER, 'scan_remat_attended'), (ENCODER, 'scan_offload')]
  + [(EXPERTS, 'scan_remat_attended')],
)
def test_every_way_to_run_is_the_same_function(fields, run):
  """One tree of parameters, one value, one gradient (dropout included)."""
  plain, counts = value_and_gradient(scan_layers=False, **fields)
  assert not counts['scan'] and not remats(counts)
  other, other_counts = value_and_gradient(**fields, **RUNS[run])
  assert bool(other_counts['scan']) == RUNS[run]['scan_layers']
  assert bool(remats(other_counts)) == ('remat' in RUNS[run])
  size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[1]))
  assert size > 1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * size),
    plain,
    other,
  )


def test_saved_names_are_not_computed_again():
  """More saved tensors, fewer products in the program."""
  counts = []
  runs = [
    {'remat': True, 'remat_save': names}
    for names in [(), ('attended',), ('attended', 'gate', 'up'), NAMES]
  ]
  for run in (*runs, {}):
    model, params = built(scan_layers=False, **run)
    args = (params, toy.batch(), jax.random.key(0))
    program = jax.make_jaxpr(gradient_fn(model))(*args)
    counts.append(primitives(program.jaxpr)['dot_general'])
  assert counts[0] > counts[1] > counts[2] > counts[3] >= counts[4]


@pytest.mark.parametrize('scan_layers', [True, False])
def test_offloaded_names_go_to_the_host_and_come_back(scan_layers):
  """Those and no others; what is offloaded is not computed again."""
  products = []
  for fields in (
    {},
    {'remat_save': ('gate', 'up')},
    {'remat_offload': ('gate', 'up')},
  ):
    model, params = built(scan_layers=scan_layers, remat=True, **fields)
    args = (params, toy.batch(), jax.random.key(0))
    program = jax.make_jaxpr(gradient_fn(model))(*args)
    products.append(primitives(program.jaxpr)['dot_general'])
    text = str(program)
    hidden = rf'f32<host>\[(?:\d+,)*{toy.T},24\]'
    assert bool(re.search(hidden, text)) == ('remat_offload' in fields)
    assert not re.search(rf'<host>\[(?:\d+,)*{toy.T},16\]', text)
  assert products[0] > products[1] == products[2]


def test_every_name_to_save_is_in_the_program():
  model, params = built()
  program = jax.make_jaxpr(model.apply)({'params': params}, toy.batch())
  assert set(re.findall(r'\bname\[name=(\w+)\]', str(program))) == set(NAMES)


def test_initial_parameters_do_not_depend_on_the_way_to_run():
  trees = []
  for scan_layers in (True, False):
    model = toy.model(num_layers=3, scan_layers=scan_layers)
    init = functools.partial(gemini.init_params, model)
    trees.append(nn.unbox(jax.jit(init)(jax.random.key(1))))
  jax.tree.map(np.testing.assert_array_equal, *trees)
  for leaf in jax.tree.leaves(trees[0]['decoder']):
    assert leaf.shape[0] == 3


def test_a_pattern_is_repeated_and_cut():
  params = built(**REMAINDER)[1]
  spelled = {'attention_pattern': ('local', 'global') * 2 + ('local',)}
  shifted = {'attention_pattern': ('global', 'local')}
  logits = [
    jax.jit(toy.model(**fields).apply)({'params': params}, toy.batch())[0]
    for fields in (REMAINDER, REMAINDER | spelled, REMAINDER | shifted)
  ]
  np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
  assert np.abs(logits[0] - logits[2]).max() > 0.1


def test_layers_differ_and_come_in_order():
  """Swapping the parameters of two layers changes the result."""
  model, params = built()
  apply = jax.jit(model.apply)
  logits_BTV = apply({'params': params}, toy.batch())[0]
  swapped = params | {
    'decoder': jax.tree.map(lambda leaf: leaf[::-1], params['decoder'])
  }
  other_BTV = apply({'params': swapped}, toy.batch())[0]
  assert np.abs(logits_BTV - other_BTV).max() > 0.1


def test_losses_of_layers_are_their_mean():
  """Over encoder and decoder; a dense model has none."""
  model = toy.model(
    architecture='encoder_decoder', num_encoder_layers=1, **EXPERTS
  )
  params = toy.model_params(model)
  encoder = toy.sequence(length=toy.S, seed=4)
  batch = toy.batch(encoder=encoder, segments=[1] * 9 + [0] * 3)

  @jax.jit
  def stacks(params):
    variables = {'params': params}
    memory_BSD, first = model.apply(variables, encoder, method='encode')
    options = {'memory_BSD': memory_BSD, 'memory': encoder, 'method': 'decode'}
    second = model.apply(variables, batch.decoder, **options)[-1]
    return first, second, model.apply(variables, batch)[1]

  first, second, aux = stacks(params)
  assert set(aux) == {'router_balance', 'router_z'}
  for name, value in aux.items():
    layers_L = np.concatenate([first[name], second[name]])
    assert first[name].shape == (1,) and second[name].shape == (3,)
    assert np.ptp(layers_L) > 1e-3
    np.testing.assert_allclose(value, layers_L.mean(), rtol=1e-5)
  dense, params = built()
  assert jax.eval_shape(dense.apply, {'params': params}, toy.batch())[1] == {}


def test_padding_is_left_out_of_the_routers_losses():
  model, params = built(**EXPERTS)
  batch = toy.batch(segments=[1] * 9 + [0] * 3)
  tokens = np.array(batch.decoder.tokens)
  tokens[:, 9:] = 1 + tokens[:, 9:] % (toy.VOCAB_SIZE - 1)
  other = batch.replace(decoder=batch.decoder.replace(tokens=tokens))
  apply = jax.jit(model.apply)
  aux, other_aux = (
    apply({'params': params}, each)[1] for each in (batch, other)
  )
  for name, value in aux.items():
    np.testing.assert_allclose(value, other_aux[name], rtol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 4))
def forward(model, params, batch, key, deterministic=False):
  return model.apply(
    {'params': params}, batch, deterministic, rngs={'dropout': key}
  )[0]


def test_dropout_is_a_function_of_its_key():
  model, params = built(dropout=0.5)
  keys = jax.random.split(jax.random.key(0), 2)
  first, again, other = (
    forward(model, params, toy.batch(), keys[i]) for i in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1
  off = forward(model, params, toy.batch(), keys[0], True)
  assert np.abs(first - off).max() > 0.1
  plain = jax.jit(toy.model().apply)({'params': params}, toy.batch())[0]
  np.testing.assert_allclose(off, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('scan_layers', [True, False])
def test_every_layer_draws_its_own_dropout(scan_layers):
  """Two layers that add one each, each kept with probability 1/2."""
  fields = {'dropout': 0.5, 'scan_layers': scan_layers}
  y_BTD = of_layers_that_add_one(4, 25, **fields)
  values, counts = np.unique(y_BTD, return_counts=True)
  # What is kept is doubled, so that the mean stays what it was: 2.
  np.testing.assert_array_equal(values, [0, 2, 4])
  np.testing.assert_allclose(
    counts / y_BTD.size, [1 / 4, 1 / 2, 1 / 4], rtol=0.1
  )


@pytest.mark.parametrize('run', ['scanned', 'unrolled', 'stages'])
def test_rows_skip_layers_with_a_probability_linear_in_depth(run):
  """Of two layers that add one each; what is added keeps its mean."""
  y_BTD = of_layers_that_add_one(
    4000,
    2,
    toy.make_mesh(pipeline=2 if run == 'stages' else 1),
    stochastic_depth=0.5,
    scan_layers=run == 'scanned',
  )
  np.testing.assert_array_equal(
    y_BTD, np.broadcast_to(y_BTD[:, :1, :1], y_BTD.shape)
  )
  values, counts = np.unique(np.round(y_BTD[:, 0, 0], 5), return_counts=True)
  # The first is skipped with probability 1/4, the second with 1/2.
  np.testing.assert_allclose(values, [0, 4 / 3, 2, 10 / 3], atol=1e-4)
  np.testing.assert_allclose(
    counts / 4000, np.array([1, 3, 1, 3]) / 8, rtol=0.1
  )


def test_stochastic_depth_is_of_training_alone():
  model, params = built(stochastic_depth=0.5)
  batch, key = toy.batch(), jax.random.key(0)
  off = forward(model, params, batch, key, True)
  np.testing.assert_array_equal(off, forward(*built(), batch, key, True))
  assert np.abs(off - forward(model, params, batch, key)).max() > 0.1


def of_layers_that_add_one(rows, length, mesh=None, **fields):
  """Zeros after two layers in training, [rows, length, width]."""
  config = toy.model(mlp_bias=True, **fields).config
  layers = stack.Stack(config, 2)
  x_BTD = jnp.zeros((rows, length, config.width))
  tokens = toy.batch(rows, length).decoder
  context = transformer.Context(
    views={'global': transformer.View(masking.visible(tokens, tokens), None)},
    positions_BT=np.zeros((rows, length), np.int32),
  )
  params = toy.random_params(layers, x_BTD, context)

  def only_the_last_bias(path, leaf):
    is_bias = "['down']['bias']" in jax.tree_util.keystr(path)
    return np.full(leaf.shape, float(is_bias), np.float32)

  params = jax.tree_util.tree_map_with_path(only_the_last_bias, params)
  apply = jax.jit(functools.partial(layers.apply, deterministic=False))
  rngs = {'dropout': jax.random.key(0)}
  with sharding.use(mesh or toy.make_mesh()):
    return np.asarray(apply({'params': params}, x_BTD, context, rngs=rngs)[0])


def test_dropout_of_embeddings_keeps_their_mean():
  model, params = built(dropout=0.3)
  sequence = toy.sequence()

  def embed(key):
    return model.apply(
      {'params': params},
      sequence,
      False,
      method='embed',
      rngs={'dropout': key},
    )

  draws = jax.jit(jax.vmap(embed))(jax.random.split(jax.random.key(0), 4000))
  x_BTD = np.asarray(params['token']['embedding'])[sequence.tokens]
  assert np.mean(np.asarray(draws) == 0) == pytest.approx(0.3, rel=0.02)
  np.testing.assert_allclose(np.mean(draws, axis=0), x_BTD, rtol=0.1)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('scan_layers', [True, False])
def test_a_donated_cache_is_updated_in_place(scan_layers, dtype):
  """A step needs one layer's keys and values beside the cache, no more."""
  num_layers = 16 if scan_layers else 4
  model = toy.model(
    num_layers=num_layers,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    scan_layers=scan_layers,
    dtype=dtype,
  )
  slots = 256 * 4 // jnp.dtype(dtype).itemsize
  cache = jax.eval_shape(lambda: gemini.init_cache(model.config, 8, slots))
  params = nn.unbox(
    jax.eval_shape(lambda: gemini.init_params(model, jax.random.key(0)))
  )

  def step(params, cache, sequence):
    logits_BTV, cache, _ = model.apply(
      {'params': params}, sequence, cache=cache, method='decode'
    )
    return logits_BTV, cache

  compiled = (
    jax.jit(step, donate_argnums=1)
    .lower(params, cache, toy.sequence(8, 1))
    .compile()
  )
  memory = compiled.memory_analysis()
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
  assert size == num_layers * 2**22
  assert memory.alias_size_in_bytes >= size
  assert memory.temp_size_in_bytes < 2**23


def test_keys_of_the_memory_are_those_of_each_layer():
  model, params = built(**ENCODER, qk_norm=True)
  memory_BSD = toy.normal((2, toy.S, model.config.width))
  cache = jax.jit(functools.partial(model.apply, method='cross_cache'))(
    {'params': params}, memory_BSD
  )
  layers = params['decoder']['layers']['cross_attention']
  for i in range(model.config.num_layers):
    kernel_DKH = layers['value']['kernel'][i]
    v_BKSH = np.einsum('BSD,DKH->BKSH', memory_BSD, kernel_DKH)
    np.testing.assert_allclose(cache.value[i], v_BKSH, rtol=1e-4, atol=1e-5)
  assert cache.key.shape == cache.value.shape


def test_a_cache_holds_what_layers_in_a_row_write():
  """Scanned, unrolled, with a rest: the same cache from the same tokens."""
  caches = []
  for scan_layers in (True, False):
    model, params = built(**REMAINDER | {'scan_layers': scan_layers})
    cache = gemini.init_cache(model.config, toy.B, toy.T)
    decode = jax.jit(functools.partial(model.apply, method='decode'))
    caches.append(decode({'params': params}, toy.sequence(), cache=cache)[1])
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(near, *caches)
  for layer in caches[0].self_attention.key:
    assert np.abs(layer).min() > 0
