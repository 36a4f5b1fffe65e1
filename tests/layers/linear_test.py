"""The learned linear map equals jnp.einsum, the norm its formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from gemini_jax.layers import linear

# (equation, input, kernel, axes), as the package uses them.
EQUATIONS = {
  'projection': (
    'BTD,DNH->BTNH',
    (2, 3, 8),
    (8, 4, 2),
    ('embed', 'heads', None),
  ),
  'output': (
    'BTNH,NHD->BTD',
    (2, 3, 4, 2),
    (4, 2, 8),
    ('heads', None, 'embed'),
  ),
  'up': ('BTD,DF->BTF', (2, 3, 8), (8, 5), ('embed', 'mlp')),
  'down': ('BTF,FD->BTD', (2, 3, 5), (5, 8), ('mlp', 'embed')),
  'head': ('BTD,DV->BTV', (2, 3, 8), (8, 11), ('embed', 'vocab')),
}


@functools.partial(jax.jit, static_argnames=('module', 'equation'))
def apply(module, params, x, equation=None):
  args = (x,) if equation is None else (equation, x)
  return module.apply({'params': params}, *args)


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(module, equation, x):
  return module.init(jax.random.key(0), equation, x)['params']


@pytest.mark.parametrize('use_bias', [False, True])
@pytest.mark.parametrize('name', EQUATIONS)
def test_einsum_equals_jnp_einsum(name, use_bias):
  equation, x_shape, shape, axes = EQUATIONS[name]
  module = linear.Einsum(shape, axes, use_bias=use_bias)
  num_in = len(x_shape) - 2
  params = {'kernel': toy.normal(shape, 1)}
  if use_bias:
    params['bias'] = toy.normal(shape[num_in:], 2)
  x = toy.normal(x_shape)
  expected = np.einsum(equation, x, params['kernel'])
  if use_bias:
    expected += np.asarray(params['bias'])
  out = apply(module, params, x, equation)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['projection', 'output'])
def test_einsum_parameters(name):
  """Names of dims go with the shape; the spread is 1 / sqrt(fan in)."""
  equation, x_shape, shape, axes = EQUATIONS[name]
  big = tuple(16 * size for size in shape)
  x = toy.normal((1, 1, *big[: len(x_shape) - 2]))
  params = init(linear.Einsum(big, axes, use_bias=True), equation, x)
  kernel, bias = params['kernel'], params['bias']
  assert kernel.names == axes and kernel.value.shape == big
  assert bias.names == axes[len(x_shape) - 2 :]
  assert bias.value.shape == big[len(x_shape) - 2 :]
  assert not np.any(bias.value)
  fan_in = np.prod(big[: len(x_shape) - 2])
  values = np.asarray(kernel.value)
  assert values.std() == pytest.approx(fan_in**-0.5, rel=0.05)
  assert abs(values.mean()) < 0.1 * fan_in**-0.5


def test_einsum_types_and_scale():
  module = linear.Einsum(
    (64, 64), ('embed', 'mlp'), True, jnp.bfloat16, jnp.float32, 0.3
  )
  params = init(module, 'BTD,DF->BTF', toy.normal((1, 1, 64)))
  kernel = params['kernel'].value
  assert kernel.dtype == params['bias'].value.dtype == jnp.float32
  assert np.std(kernel) == pytest.approx(0.3, rel=0.05)
  out = apply(module, params, toy.normal((1, 2, 64)), 'BTD,DF->BTF')
  assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'equation',
  [
    'BTD,FD->BTF',  # contracts the kernel's end
    'BDT,DF->BTF',  # contracts the middle of the input
    'BTD,DF->BFT',  # transposes the output
    'BTNH,HND->BTD',  # contracts in another order
  ],
)
def test_an_equation_of_another_form_is_refused(equation):
  x = toy.normal((2,) * len(equation.split(',')[0]))
  shape = (2,) * len(equation.split(',')[1].split('->')[0])
  with pytest.raises(ValueError, match='does not contract') as error:
    init(linear.Einsum(shape, (None,) * len(shape)), equation, x)
  assert equation in str(error.value)


@pytest.mark.parametrize('shape', [(2, 3, 16), (2, 3, 4, 16)])
def test_rms_norm_equals_its_formula(shape):
  eps = 0.1
  x, scale = toy.normal(shape), toy.normal(16, 1)
  module = linear.RMSNorm(eps)
  out = apply(module, {'scale': scale}, x)
  x, scale = np.asarray(x, float), np.asarray(scale, float)
  expected = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * (1 + scale)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_a_small_scale_in_bfloat16_is_not_lost():
  """Beside 1, bfloat16 has steps of 0.008."""
  x, scale = toy.normal((2, 3, 16)), jnp.full(16, 0.003, jnp.bfloat16)
  out = linear.rms_norm(x, scale, 0.1)
  plain = linear.rms_norm(x, 0 * scale, 0.1)
  np.testing.assert_allclose(out / plain, 1 + float(scale[0]), rtol=1e-6)


def test_an_output_of_another_type_is_not_rounded_before():
  x, kernel = toy.normal((3, 5)), toy.normal((5, 7), 1)
  x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  module = linear.Einsum(
    (5, 7), (None, None), dtype=jnp.bfloat16, out_dtype=jnp.dtype('float32')
  )
  out = module.apply({'params': {'kernel': kernel}}, 'TD,DV->TV', x)
  assert out.dtype == jnp.float32
  expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_starts_as_the_identity_on_unit_vectors():
  x = np.sign(toy.normal((2, 3, 16)))
  variables = linear.RMSNorm(0.0).init(jax.random.key(0), x)
  out = apply(linear.RMSNorm(0.0), variables['params'], x)
  np.testing.assert_allclose(out, x, rtol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
  """The mean of 4096 squares would be lost in bfloat16's 8 bits."""
  x = toy.normal((1, 1, 4096)).astype(jnp.bfloat16)
  scale = jnp.zeros(4096)
  out = linear.RMSNorm(dtype=jnp.bfloat16).apply(
    {'params': {'scale': scale}}, x
  )
  assert out.dtype == jnp.bfloat16
  x = np.asarray(x, float)
  expected = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(np.asarray(out, float), expected, rtol=2**-8)
