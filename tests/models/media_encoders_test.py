"""What encoders see of a medium, where, and in which order.

B media, H x W pixels of C channels, F frames, M bands, N soft tokens, P
numbers in a patch, D width.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax import config as config_lib
from gemini_jax.layers import hooks
from gemini_jax.models import fusion, media_encoders
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import sharding

H, W, SIDE = 12, 16, 4
# The whole canvas; a part of it; parts of patches; nothing.
SIZES = np.array([[12, 16], [8, 12], [5, 6], [0, 0]], np.int32)
HOP, FRAMES, BANDS = 80, 24, 6
SAMPLES = np.array([[24 * HOP], [13 * HOP], [3 * HOP + 1], [0]], np.int32)
CASES = {
  'stem': {},
  'layers': {'num_layers': 2},
  'resampler': {'num_tokens': 5},
  'both': {'num_layers': 2, 'num_tokens': 5},
}
# Of pictures alone.
PICTURES = CASES | {
  'sincos': {'num_layers': 2, 'position': 'sincos'},
  'convolutions': {'num_blocks': 1},
}
EVERY = [
  *(('image', case) for case in PICTURES),
  *(('audio', case) for case in CASES),
]
# 'both' has every layer of 'layers' and of 'resampler', and reads them all.
MASKED = [each for each in EVERY if each[1] not in ('layers', 'resampler')]


@functools.cache
def config_of(case, frame_tokens=0, num_frames=3, **fields):
  image = {'height': H, 'width': W, 'patch': SIDE, 'channels': 1}
  audio = {'sample_rate': 8000, 'seconds': 0.24, 'num_mels': BANDS, 'patch': 4}
  return toy.model(
    image=config_lib.Image(**image, **PICTURES[case]),
    audio=config_lib.Audio(**audio, **CASES.get(case, {})),
    video=config_lib.Video(num_frames, frame_tokens),
    **({'num_heads': 2, 'num_kv_heads': 1} | fields),
  ).config


def module_of(kind, config):
  if kind == 'video':
    return media_encoders.Video(config, media_encoders.Encoder(config, 'image'))
  return media_encoders.Encoder(config, kind)


def sizes_of(kind):
  frames = np.array([[3], [2], [1], [0]], np.int32)
  return {
    'image': SIZES,
    'audio': SAMPLES,
    'video': np.concatenate([frames, SIZES], axis=1),
  }[kind]


def values_of(kind, canvas=(H, W), frames=FRAMES, seed=1):
  rng = np.random.default_rng(seed)
  if kind == 'audio':
    return rng.normal(0, 1, (4, frames, BANDS)).astype(np.float32)
  lead = (4, 3) if kind == 'video' else (4,)
  return rng.integers(0, 256, (*lead, *canvas, 1)).astype(np.uint8)


@functools.cache
def params_of(kind, config):
  return toy.random_params(
    module_of(kind, config), values_of(kind), sizes_of(kind)
  )


@functools.cache
def encode_fn(kind, config) -> Any:
  """(values, sizes) -> tokens [B, N, D] and counts [B]."""
  module, params = module_of(kind, config), params_of(kind, config)
  return jax.jit(
    lambda values, sizes: module.apply({'params': params}, values, sizes)
  )


def real_tokens(encoded, row):
  x_BND, count_B = encoded
  return np.asarray(x_BND)[row, : count_B[row]]


def inside(kind):
  """What lies within the extents, as the values lie."""
  sizes = sizes_of(kind)
  if kind == 'audio':
    return HOP * np.arange(FRAMES)[None] < sizes
  rows, columns = np.indices((H, W))
  at = lambda axis: sizes[:, axis, None, None]
  picture = (rows < at(-2)) & (columns < at(-1))
  if kind == 'image':
    return picture
  return picture[:, None] & (np.arange(3)[None] < sizes[:, :1])[..., None, None]


# Where a patch is, that of 'sincos', no pixel changes.
@pytest.mark.parametrize(
  ('kind', 'case'), [each for each in MASKED if each[1] != 'sincos']
)
def test_pixels_outside_of_the_extent_have_no_gradient(kind, case):
  """The gradient is zero there, exactly, and nowhere else."""
  encode = encode_fn(kind, config_of(case))

  @jax.jit
  @jax.grad
  def gradient(values):
    x_BND, _ = encode(values, sizes_of(kind))
    return jnp.sum(x_BND * toy.normal(x_BND.shape, 5))

  reached = np.any(gradient(values_of(kind).astype(np.float32)) != 0, axis=-1)
  np.testing.assert_array_equal(reached, inside(kind))


@pytest.mark.parametrize(('kind', 'case'), MASKED)
def test_a_larger_canvas_changes_nothing(kind, case):
  config = config_of(case)
  encode, sizes = encode_fn(kind, config), sizes_of(kind)
  small = values_of(kind)
  large = values_of(kind, (H + SIDE, W + 2 * SIDE), FRAMES + 8, seed=2)
  large[tuple(map(slice, small.shape))] = small
  found, again = encode(small, sizes), encode(large, sizes)
  np.testing.assert_array_equal(found[1], again[1])
  for row, size in enumerate(sizes):
    assert found[1][row] == config.tokens_of(kind, size)
    np.testing.assert_allclose(
      real_tokens(found, row), real_tokens(again, row), atol=2e-5
    )
  # What is not real is zeros.
  past = np.arange(found[0].shape[1])[None] >= np.asarray(found[1])[:, None]
  assert past.any()
  assert not np.any(np.asarray(found[0])[past])
  # One program for all sizes.
  encode(small, sizes[::-1].copy())
  assert encode._cache_size() == 2


# Where in a sound a stem's token is, the sequence tells.
@pytest.mark.parametrize(
  ('kind', 'case'), [each for each in EVERY if each != ('audio', 'stem')]
)
def test_positions_are_seen(kind, case):
  """Parts of a medium that move are not tokens that move."""
  encode, sizes = encode_fn(kind, config_of(case)), sizes_of(kind)
  values = values_of(kind)
  other = values.copy()
  if kind == 'image':
    # The patches of the first row move one to the right.
    other[:, :SIDE] = np.roll(values[:, :SIDE], SIDE, axis=2)
  else:
    # A short sound in silence comes later.
    values[:, :8] = values[:, 12:] = 0
    other = np.roll(values, 4, axis=1)
  x_ND, y_ND = (real_tokens(encode(v, sizes), 0) for v in (values, other))
  gaps = np.abs(x_ND[:, None] - y_ND[None]).max(axis=-1)
  # Without positions the same tokens would come in another order.
  assert np.max(np.min(gaps, axis=1)) > 1e-2


def test_frames_of_a_video_are_pictures_and_their_time():
  """All patches: what real frames say stands first, in order."""
  config = config_of('layers')
  values, sizes = values_of('video'), sizes_of('video')
  params = params_of('video', config)
  x_BND, count_B = encode_fn('video', config)(values, sizes)
  np.testing.assert_array_equal(count_B, [3 * 12, 2 * 6, 1 * 4, 0])
  picture = media_encoders.Encoder(config, 'image')
  apply = jax.jit(picture.apply)
  variables = {'params': params['picture']}
  for frame in range(3):
    x_BnD, n_B = apply(variables, values[:, frame], sizes[:, 1:])
    for row in range(4):
      if frame < sizes[row, 0]:
        n = n_B[row]
        np.testing.assert_allclose(
          x_BND[row, frame * n : (frame + 1) * n],
          x_BnD[row, :n] + params['time']['embedding'][None, frame],
          atol=2e-5,
        )
  # What is not real is zeros.
  for row in range(4):
    assert not np.any(x_BND[row, count_B[row] :])


@pytest.mark.parametrize('case', ['layers', 'resampler'])
@pytest.mark.parametrize('frame_tokens', [0, 1, 4])
def test_as_many_tokens_of_a_video_as_the_config_says(case, frame_tokens):
  if case == 'resampler' and frame_tokens == 4:
    with pytest.raises(config_lib.ConfigError, match='frame_tokens=4'):
      config_of(case, frame_tokens)
    return
  config = config_of(case, frame_tokens)
  encode, sizes = encode_fn('video', config), sizes_of('video')
  values = values_of('video')
  x_BND, count_B = encode(values, sizes)
  assert x_BND.shape[1] == config.soft_tokens('video')
  assert count_B.tolist() == [config.tokens_of('video', size) for size in sizes]
  # Beyond the extent and past the last frame nothing is read.
  noise = np.random.default_rng(9).integers(0, 256, values.shape)
  other = np.where(inside('video')[..., None], values, noise).astype(np.uint8)
  assert np.any(other != values)
  np.testing.assert_array_equal(encode(other, sizes)[0], x_BND)


@pytest.mark.parametrize('kind', ['image', 'audio'])
def test_scan_and_remat_change_nothing(kind):
  values, sizes = values_of(kind), sizes_of(kind)
  plain = config_of('layers', scan_layers=False)
  found = encode_fn(kind, plain)(values, sizes)[0]
  for fields in ({}, {'remat': True}):
    other = config_of('layers', **fields)
    assert other != plain
    again = encode_fn(kind, other)(values, sizes)[0]
    np.testing.assert_allclose(found, again, atol=2e-5)


@pytest.mark.parametrize(
  ('kind', 'case', 'frame_tokens'),
  [
    ('image', 'stem', 0),
    ('image', 'convolutions', 0),
    ('image', 'both', 0),
    ('audio', 'both', 0),
    ('video', 'layers', 4),
  ],
)
def test_the_gradient_reaches_every_parameter(kind, case, frame_tokens):
  """And is finite, also where there is no medium."""
  config = config_of(case, frame_tokens)
  module, params = module_of(kind, config), params_of(kind, config)

  @jax.jit
  @jax.grad
  def gradient(params):
    x_BND, _ = module.apply({'params': params}, values_of(kind), sizes_of(kind))
    return jnp.sum(x_BND * toy.normal(x_BND.shape, 5))

  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
    assert np.isfinite(leaf).all() and np.any(leaf != 0), path


@pytest.mark.parametrize(
  ('kind', 'case'),
  [
    ('image', 'stem'),
    ('image', 'both'),
    ('image', 'convolutions'),
    ('audio', 'stem'),
    ('audio', 'both'),
  ],
)
def test_soft_tokens_begin_as_large_as_tokens(kind, case):
  config = config_of(
    case, width=64, mlp_dim=128, dtype='bfloat16', scale_embeddings=True
  )
  module = module_of(kind, config)
  init = lambda key: module.init_with_output(
    key, values_of(kind), sizes_of(kind)
  )
  (x_BND, _), variables = jax.jit(init)(jax.random.key(0))
  assert x_BND.dtype == jnp.bfloat16
  leaves = jax.tree.leaves(nn.unbox(variables))
  assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
  size = np.sqrt(np.mean(np.square(np.asarray(x_BND[0], np.float32))))
  assert size == pytest.approx(fusion.soft_scale(config), rel=0.35)


def test_half_precision_is_near():
  values, sizes = values_of('image'), sizes_of('image')
  high = encode_fn('image', config_of('both'))(values, sizes)[0]
  low = encode_fn('image', config_of('both', dtype='bfloat16'))(values, sizes)
  assert low[0].dtype == jnp.bfloat16
  gap = np.abs(np.asarray(low[0], np.float32) - high).max()
  assert 0 < gap < 0.05 * np.abs(high).max()


@pytest.mark.parametrize('kind', ['audio', 'video'])
def test_a_mesh_changes_nothing(kind):
  """Also where it splits lengths: the resampler's five tokens stay whole."""
  config = config_of('both' if kind == 'audio' else 'layers', num_kv_heads=2)
  module, params = module_of(kind, config), params_of(kind, config)
  values, sizes = values_of(kind), sizes_of(kind)
  mesh = mesh_lib.make_mesh(config_lib.Parallel(fsdp=2, tensor=2, sequence=2))
  boxed = jax.eval_shape(
    lambda: module.init(jax.random.key(0), values, sizes)['params']
  )
  where = sharding.param_shardings(mesh, boxed)
  split = [s for s in jax.tree.leaves(where) if any(s.spec)]
  assert len(split) > 0.6 * len(jax.tree.leaves(where))
  with sharding.use(mesh):
    found = jax.jit(module.apply)(
      {'params': jax.device_put(params, where)}, values, sizes
    )[0]
  plain = encode_fn(kind, config)(values, sizes)[0]
  np.testing.assert_allclose(found, plain, atol=2e-5)


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    ({'head_dim': 6}, 'multiple of 4'),
    ({'head_dim': 3, 'position': 'none'}, 'multiple of 4'),
  ],
)
def test_rotary_heads_of_two_coordinates(fields, match):
  with pytest.raises(config_lib.ConfigError, match=match):
    config_of('layers', **fields)
  config_of('sincos', **fields)


@pytest.mark.parametrize(
  ('kind', 'stack'),
  [('image', 'layers'), ('audio', 'layers'), ('video', 'picture/layers')],
)
def test_layers_are_captured_and_edited(kind, stack):
  config = config_of('layers', frame_tokens=0)
  module, params = module_of(kind, config), params_of(kind, config)
  edit = hooks.affine([False, True], shift=1.0)
  _, captured = jax.eval_shape(
    functools.partial(
      hooks.apply,
      module,
      capture={f'{stack}/x': hooks.tensor('attention/query')},
    ),
    hooks.EditedParams(params, {f'{stack}/attention/output': edit}),
    values_of(kind),
    sizes_of(kind),
  )
  layers, rows, _, *heads = captured[f'{stack}/x'].shape
  assert layers == 2
  assert rows == len(values_of(kind)) * (3 if kind == 'video' else 1)
  assert heads == [config.num_heads, config.head_width]
