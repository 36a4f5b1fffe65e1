"""Tensors of layers: captured as computed, edited where asked, however run.

B batch, T length, S encoder length, D width, N heads, H head width, F hidden
width, L layers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import hooks
from gemini_jax.models import contexts, gemini, transformer
from gemini_jax.parallel import pipeline, sharding

ROWS, LAYERS = 8, 4
# Tokens of a row before its padding.
REAL = 10
ONLY_THIRD = np.arange(LAYERS) == 2
FIELDS = {
  'architecture': 'encoder_decoder',
  'num_layers': LAYERS,
  'attention_pattern': ('local', 'global'),
  'qk_norm': True,
  'norm': 'pre_post',
}
RUNS = {
  'unrolled': {'scan_layers': False},
  'scan': {},
  'remat': {'remat': True, 'remat_save': ('attended', 'residual')},
  'stages': {'remat': True},
  'one_by_one': {},
  'sharded': {},
}
MESHES = {
  'stages': {'pipeline': 2},
  'one_by_one': {'pipeline': 2},
  'sharded': {'data': 2, 'tensor': 2},
}
NAMES = [
  'residual_before',
  'residual_after_attention',
  'residual_after_cross_attention',
  'residual_after_feedforward',
  *(f'attention/{x}' for x in ('input', 'query', 'key', 'value', 'attended')),
  'attention/output',
  'cross_attention/query',
  'cross_attention/output',
  *(f'feedforward/{x}' for x in ('input', 'gate', 'up', 'hidden', 'output')),
]


@functools.cache
def built(run):
  schedule = pipeline.Schedule(microbatches=4, in_stages=run != 'one_by_one')
  model = gemini.Gemini(toy.model(**FIELDS | RUNS[run]).config, schedule)
  mesh = toy.make_mesh(**MESHES.get(run, {}))
  return model, toy.model_params(model), mesh


@functools.cache
def a_batch():
  return toy.batch(
    ROWS,
    segments=[1] * REAL + [0] * (toy.T - REAL),
    encoder=toy.sequence(ROWS, toy.S, seed=4),
  )


def squares(tensors):
  """Sums over real tokens of the squares of a matrix's inputs."""
  real_BT1 = tensors['real'][..., None]
  return {
    name: jnp.sum(jnp.where(real_BT1, tensors[name] ** 2, 0), axis=(0, 1))
    for name in ('attention/input', 'feedforward/hidden')
  }


CAPTURE = {
  'decoder/all': hooks.Capture(lambda tensors: {n: tensors[n] for n in NAMES}),
  'decoder/squares': hooks.Capture(squares, sums=True),
  'encoder/keys': hooks.tensor('attention/key'),
}


# What is added where an edit is, and what the tensor is multiplied by before.
# A vector in the decoder; keys of the encoder that replace the model's.
EDITS = {
  'decoder/residual_after_attention': (toy.normal((1, 1, 16)), 1.0),
  'encoder/attention/key': (toy.normal((1, ROWS, 2, 4), 1), 0.0),
  'decoder/feedforward/gate': (toy.normal((1, 1, 24), 2), 0.5),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(model, gradient, params, batch, layers):
  """The output, what is captured, and the gradient to the edits' numbers."""

  def value(shifts):
    edits = {
      path: hooks.affine(layers[path], shift=shifts[path], scale=scale)
      for path, (_, scale) in EDITS.items()
    }
    output, captured = hooks.apply(
      model,
      hooks.EditedParams(params, edits),
      batch,
      True,
      method='forward',
      capture=CAPTURE,
    )
    total = jnp.sum(output.x_BTD * toy.normal(output.x_BTD.shape, 9))
    return total, (output.x_BTD, captured)

  shifts = {path: shift for path, (shift, _) in EDITS.items()}
  if not gradient:
    return value(shifts)[1]
  return jax.value_and_grad(value, has_aux=True)(shifts)


@functools.cache
def results(run, edited=(), gradient=False):
  """Of a run whose third layer has the named edits."""
  model, params, mesh = built(run)
  layers = {path: ONLY_THIRD & (path in edited) for path in EDITS}
  with sharding.use(mesh):
    return forward(model, gradient, params, a_batch(), layers)


def test_what_is_captured_is_what_layers_one_by_one_compute():
  model, params, _ = built('scan')
  batch, layers = a_batch(), params['decoder']['layers']
  captured = results('scan')[1]['decoder/all']

  def inputs(model):
    memory_BSD, _ = model.encode(batch.encoder)
    context = contexts.decoder(
      model.config,
      batch.decoder,
      memory_BSD=memory_BSD,
      memory=batch.encoder,
    )
    return model.embed(batch.decoder, True), context

  x_BTD, context = jax.jit(
    lambda: model.apply({'params': params}, method=inputs)
  )()
  block = transformer.Block(model.config, decodes=True)

  @functools.partial(jax.jit, static_argnums=2)
  def advance(own, x_BTD, kind):
    return block.apply({'params': own}, x_BTD, context.views[kind], context)[0]

  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  for i, kind in enumerate(('local', 'global') * 2):
    own = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
    near(captured['residual_before'][i], x_BTD)
    mean_BT1 = np.mean(np.square(x_BTD), axis=-1, keepdims=True)
    scale_D = 1 + np.asarray(own['attention_norm']['scale'])
    normed_BTD = x_BTD / np.sqrt(mean_BT1 + 1e-6) * scale_D.reshape(1, 1, -1)
    near(captured['attention/input'][i], normed_BTD)
    kernel = own['attention']['value']['kernel']
    v_BTKH = np.einsum('BTD,DKH->BTKH', normed_BTD, kernel)
    near(captured['attention/value'][i], v_BTKH)
    out_BTD = np.einsum(
      'BTNH,NHD->BTD',
      captured['attention/attended'][i],
      own['attention']['output']['kernel'],
    )
    near(captured['attention/output'][i], out_BTD)
    gate_BTF = np.einsum(
      'BTD,DF->BTF',
      captured['feedforward/input'][i],
      own['feedforward']['gate']['kernel'],
    )
    near(captured['feedforward/gate'][i], gate_BTF)
    near(
      captured['feedforward/hidden'][i],
      jax.nn.gelu(gate_BTF) * captured['feedforward/up'][i],
    )
    x_BTD = advance(own, x_BTD, kind)
    near(captured['residual_after_feedforward'][i], x_BTD)
  assert captured['attention/query'].shape == (LAYERS, ROWS, toy.T, 4, 4)


@pytest.mark.parametrize('run', ['unrolled', 'stages'])
def test_every_way_to_run_captures_and_edits_the_same(run):
  """Sums over rows too."""
  edited = tuple(EDITS)
  toy.assert_near(results(run, edited), results('scan', edited), rtol=1e-4)


@pytest.mark.parametrize('run', [run for run in RUNS if run != 'scan'])
def test_the_gradient_to_an_edit_is_the_same(run):
  edited = tuple(EDITS)
  toy.assert_near(
    results(run, edited, True), results('scan', edited, True), rtol=1e-4
  )


def test_an_edit_changes_what_follows_and_nothing_before():
  path = 'decoder/residual_after_attention'
  x_BTD, captured = results('scan', (path,))
  plain_BTD, plain = results('scan')
  edited, plain = captured['decoder/all'], plain['decoder/all']
  for name in NAMES:
    np.testing.assert_array_equal(edited[name][:2], plain[name][:2])
    assert np.any(edited[name][3] != plain[name][3])
  for name in ('residual_before', 'attention/output'):
    np.testing.assert_array_equal(edited[name][2], plain[name][2])
  np.testing.assert_allclose(
    edited['residual_after_attention'][2],
    plain['residual_after_attention'][2] + EDITS[path][0],
    rtol=1e-6,
  )
  assert np.abs(x_BTD - plain_BTD).max() > 0.1


def test_an_edit_of_the_encoder_reaches_the_decoder_through_its_output():
  _, edited = results('scan', ('encoder/attention/key',))
  _, plain = results('scan')
  keys_LBSKH, plain_LBSKH = edited['encoder/keys'], plain['encoder/keys']
  np.testing.assert_array_equal(keys_LBSKH[:2], plain_LBSKH[:2])
  shift = EDITS['encoder/attention/key'][0]
  np.testing.assert_array_equal(
    keys_LBSKH[2], np.broadcast_to(shift[0][:, None], keys_LBSKH[2].shape)
  )
  assert np.abs(keys_LBSKH[3] - plain_LBSKH[3]).max() > 0.1
  edited, plain = edited['decoder/all'], plain['decoder/all']
  for name, changes in (('attention/output', 0), ('cross_attention/output', 1)):
    size = np.abs(edited[name][0] - plain[name][0]).max()
    assert (size > 1e-3) == changes


def test_sums_are_of_real_tokens():
  _, captured = results('stages', tuple(EDITS))
  for name, sums_LF in captured['decoder/squares'].items():
    x_LBTF = np.asarray(captured['decoder/all'][name])[:, :, :REAL]
    np.testing.assert_allclose(
      sums_LF, np.sum(x_LBTF**2, axis=(1, 2)), rtol=1e-4
    )


@pytest.mark.parametrize('run', ['scan', 'unrolled'])
def test_decoding_with_a_cache_captures_and_edits_the_same(run):
  """A chunk, then token by token; positions 4 and 9 alone are edited."""
  model, params, _ = built(run)
  batch = a_batch()
  memory = batch.encoder
  at_T = np.isin(np.arange(toy.T), (4, 9))
  paths = ('decoder/attention/key', 'decoder/residual_after_feedforward')
  capture = {'decoder/all': CAPTURE['decoder/all']}

  @jax.jit
  def decode(sequence, at_T, memory_BSD, cache):
    edits = {
      path: hooks.affine(
        ONLY_THIRD, shift=0.5, scale=2.0, positions_BT=at_T[None]
      )
      for path in paths
    }
    edits['decoder/cross_attention/value'] = hooks.affine(ONLY_THIRD, scale=2.0)
    (x_BTD, cache, _), captured = hooks.apply(
      model,
      hooks.EditedParams(params, edits),
      sequence,
      memory=memory,
      memory_BSD=memory_BSD,
      cache=cache,
      method='decode_hidden',
      capture=capture,
    )
    return x_BTD, captured['decoder/all'], cache

  memory_BSD = toy.normal((ROWS, toy.S, 16), 3)
  sequence = toy.sequence(ROWS)
  whole = decode(sequence, at_T, memory_BSD, None)[:2]
  cache = gemini.init_cache(model.config, ROWS, toy.T, toy.S)
  parts, given = [], memory_BSD
  for start, stop in ((0, 5), *((i, i + 1) for i in range(5, toy.T))):
    part = jax.tree.map(lambda leaf, s=slice(start, stop): leaf[:, s], sequence)
    *outputs, cache = decode(part, at_T[start:stop], given, cache)
    parts.append(outputs)
    given = None
  x_BTD = jnp.concatenate([part[0] for part in parts], axis=1)
  tensors = jax.tree.map(
    lambda *leaves: jnp.concatenate(leaves, axis=2), *(p[1] for p in parts)
  )
  toy.assert_near((x_BTD, tensors), whole, rtol=1e-4)


def test_other_values_and_layers_are_not_compiled_anew():
  model, params, _ = built('scan')

  @jax.jit
  def run(params):
    return gemini.apply(model, params, a_batch(), True, method='forward').x_BTD

  outputs = []
  for layer in (0, 3):
    for scale, shift in ((1, 2), (0, 1), (3, 0)):
      edit = hooks.affine(
        np.arange(LAYERS) == layer,
        scale=scale,
        shift=np.full((1, 1, 16), shift),
        positions_BT=np.arange(toy.T)[None] == layer,
      )
      edits = {'decoder/attention/output': edit}
      outputs.append(run(hooks.EditedParams(params, edits)))
  assert run._cache_size() == 1
  for i, one in enumerate(outputs):
    assert all(np.any(one != other) for other in outputs[:i])


def test_nothing_asked_is_nothing_computed(monkeypatch):
  """The gradient's program is the one of a model without points."""
  model, params, _ = built('scan')

  def lowered(apply):
    def loss(params):
      return jnp.sum(apply(params, a_batch(), True, method='forward').x_BTD)

    return jax.jit(jax.grad(loss)).lower(params).as_text()

  def hooked(*args, **kwargs):
    return hooks.apply(model, *args, capture={}, **kwargs)[0]

  plain = functools.partial(gemini.apply, model)
  programs = [lowered(hooked), lowered(plain)]
  monkeypatch.setattr(hooks, 'point', lambda module, name, x: x)
  assert programs == [lowered(plain)] * 2


@pytest.mark.parametrize(
  ('captured', 'edited', 'message'),
  [
    (
      ('decoder/x', 'attention/quary'),
      None,
      'attention/quary is no tensor of this layer; did you mean '
      'attention/query',
    ),
    (
      ('decodr/x', 'attention/query'),
      None,
      'no stack of this model is at decodr/x',
    ),
    (
      None,
      ('decoder/attention/gate', ONLY_THIRD),
      'attention/gate is no tensor of this layer',
    ),
    (
      None,
      ('decodr/attention/query', ONLY_THIRD),
      'no stack of this model is at decodr/attention/query',
    ),
    (
      None,
      ('decoder/attention/query', [True]),
      'an edit has 1 layers, the stack 4',
    ),
  ],
)
def test_what_is_not_there_is_named(captured, edited, message):
  model, params, _ = built('scan')
  capture, edits = {}, {}
  if captured:
    capture[captured[0]] = hooks.tensor(captured[1])
  if edited:
    edits[edited[0]] = hooks.affine(edited[1])
  apply = functools.partial(
    hooks.apply, model, method='forward', deterministic=True, capture=capture
  )
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(apply, hooks.EditedParams(params, edits), a_batch())


def test_a_stack_that_does_not_run_gives_nothing():
  model, params, _ = built('scan')
  capture = {'decoder/x': hooks.tensor('attention/query')}
  apply = functools.partial(
    hooks.apply, model, method='encode', capture=capture
  )
  with pytest.raises(ValueError, match='the stack of decoder/x does not run'):
    jax.eval_shape(apply, params, toy.sequence())


def test_tensors_of_experts():
  model = toy.model(num_experts=3, expert_dim=8, shared_expert_dim=8)
  names = ('router', 'shared/up', 'output')

  def capture(tensors):
    return [tensors[f'feedforward/{name}'] for name in names]

  _, captured = jax.eval_shape(
    functools.partial(
      hooks.apply, model, capture={'decoder/x': hooks.Capture(capture)}
    ),
    toy.model_params(model),
    toy.batch(),
  )
  shapes = [leaf.shape for leaf in captured['decoder/x']]
  assert shapes == [(2, toy.B, toy.T, size) for size in (3, 8, 16)]
