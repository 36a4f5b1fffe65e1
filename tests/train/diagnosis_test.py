"""The first tensor that is not finite is found and named."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
import toy
from gemini_jax import config as config_lib
from gemini_jax.models import gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import pipeline, sharding
from gemini_jax.train import diagnosis
from gemini_jax.train import optimizer as optimizer_lib
from gemini_jax.train import state as state_lib


def diagnose(change, batch=None, model=(), scan_layers=True, **optimizer):
  """What is found once `change` has edited the parameters in place."""
  encodes = 'architecture' in dict(model)
  config = tiny.config(
    data={'objective': 'seq2seq' if encodes else 'causal'},
    model=dict(model) | {'num_layers': 3, 'scan_layers': scan_layers},
    optimizer=optimizer,
  )
  network = gemini.Gemini(config.model)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  params = jax.tree.map(np.array, toy.model_params(network))
  change(params)
  params = jax.tree.map(jnp.asarray, params)
  opt_state = jax.jit(rule.init)(params)
  state = state_lib.TrainState(jnp.int32(0), params, opt_state, {})
  _, name = diagnosis.first_not_finite(
    config, network, rule, state, toy.batch() if batch is None else batch
  )
  return name


def layers(params, stack='decoder'):
  return params[stack]['layers']


def test_a_parameter():
  def change(params):
    layers(params)['feedforward']['up']['kernel'][1, 0, 0] = np.nan

  assert diagnose(change) == ('parameter decoder/layers/feedforward/up/kernel')


@pytest.mark.parametrize('scan_layers', [True, False])
@pytest.mark.parametrize('layer', [0, 2])
def test_the_output_of_a_layer(layer, scan_layers):
  def change(params):
    # 1e30 squared is too large, each alone is not.
    layers(params)['feedforward']['up']['kernel'][layer] = 1e30
    layers(params)['feedforward']['gate']['kernel'][layer] = 1e30

  found = diagnose(change, scan_layers=scan_layers)
  assert found.startswith(f'output of decoder layer {layer}, feedforward')


@pytest.mark.parametrize('stack', ['encoder', 'decoder'])
def test_a_layer_of_either_stack(stack):
  def change(params):
    layers(params, stack)['feedforward']['up']['kernel'][1] = 1e30
    layers(params, stack)['feedforward']['gate']['kernel'][1] = 1e30

  batch = toy.batch(encoder=toy.sequence(length=toy.S, seed=1))
  found = diagnose(change, batch, model=(('architecture', 'encoder_decoder'),))
  assert found.startswith(f'output of {stack} layer 1, feedforward')


def test_outside_of_a_stack():
  """The last norm is no part of the last layer."""

  def change(params):
    params['decoder_norm']['scale'][:] = 3e38

  assert diagnose(change) == 'output of decoder_norm'


def test_the_loss():
  batch = toy.batch()
  weights_BT = np.array(batch.weights)
  weights_BT[0, 0] = np.inf
  found = diagnose(lambda params: None, batch.replace(weights=weights_BT))
  assert found == 'the loss'


def test_a_gradient_alone():
  """At zero every norm multiplies derivatives by 1e10, and values by 0."""

  def change(params):
    params['token']['embedding'][:] = 0.0

  found = diagnose(
    change, model=(('norm_eps', 1e-20), ('tie_embeddings', False))
  )
  assert found.startswith('gradient of ')


def test_an_update_alone():
  found = diagnose(
    lambda params: None, learning_rate=3e38, weight_decay=10.0, clip_norm=0.0
  )
  assert found.startswith('update of ')


def test_a_norm_alone():
  """Each gradient is finite, the sum of their squares is not."""
  batch = toy.batch()
  weights_BT = np.array(batch.weights)
  weights_BT[0, 0] = 1e30
  found = diagnose(
    lambda params: None,
    batch.replace(weights=weights_BT),
    clip_norm=0.0,
    learning_rate=1e-3,
  )
  assert 'norm' in found or 'update' in found


def test_nothing_when_all_is_well():
  found = diagnose(lambda params: None)
  assert found == 'a norm, which overflows'


def walk(seed, change=lambda params: None, batch=None, mesh=None, **sections):
  """(step, name) of a state after two updates, as a run would look for it."""
  config = tiny.config(**sections)
  schedule = pipeline.make_schedule(config.parallel)
  network = gemini.Gemini(config.model, schedule)
  rule = optimizer_lib.make_optimizer(config.optimizer, 10)
  params = jax.tree.map(np.array, toy.model_params(network, seed))
  change(params)
  params = jax.tree.map(jnp.asarray, params)
  opt_state = jax.jit(rule.init)(params)
  state = state_lib.TrainState(jnp.int32(2), params, opt_state, {})
  batch = toy.batch(rows=4) if batch is None else batch
  with sharding.use(mesh) if mesh else contextlib.nullcontext():
    return diagnosis.first_not_finite(config, network, rule, state, batch)


def test_parameters_are_the_work_of_the_step_before():
  """Their update overflowed; the loss of that step was finite."""

  def change(params):
    params['token']['embedding'][3, 2] = np.inf

  assert walk(0, change) == (2, 'parameter token/embedding')

  def overflow(params):
    params['decoder_norm']['scale'][:] = 3e38

  assert walk(0, overflow) == (3, 'output of decoder_norm')


def test_what_only_a_draw_of_z_makes():
  """The mean of z is finite, a draw of it is not."""

  def change(params):
    # Of mean and log-variance.
    params['latent']['posterior']['bias'][1] = 200.0

  step, name = walk(
    0, change, model={'latent': {'dim': 3}}, data={'pack': False}
  )
  # exp(100) fits into float32, its square does not.
  assert step == 3
  assert name.startswith(('output of latent_embedding', 'output of decoder'))


@pytest.mark.parametrize('parts', [1, 2])
def test_what_only_dropout_makes(parts):
  """What is kept is doubled, and overflows; of a part, with its own key."""

  def change(params):
    params['token']['embedding'][:] = 2e38

  options = {'accumulation_steps': parts}
  step, name = walk(0, change, model={'dropout': 0.5}, optimizer=options)
  assert (step, name) == (3, 'output of dropout')


def test_a_layer_in_stages():
  """Looked for on one stage, microbatch by microbatch, as they were drawn."""
  parallel = config_lib.Parallel(data=1, pipeline=2)
  mesh = mesh_lib.make_mesh(parallel, jax.devices()[:2])

  def change(params):
    layers(params)['feedforward']['up']['kernel'][2] = 1e30
    layers(params)['feedforward']['gate']['kernel'][2] = 1e30

  step, name = walk(
    0,
    change,
    mesh=mesh,
    model={'num_layers': 4, 'dropout': 0.5},
    data={'batch_size': 4},
    parallel={'data': 1, 'pipeline': 2},
  )
  assert step == 3
  assert name.startswith('output of decoder layer 2, feedforward')


def test_remat_hides_nothing():
  def change(params):
    layers(params)['feedforward']['up']['kernel'][1] = 1e30
    layers(params)['feedforward']['gate']['kernel'][1] = 1e30

  found = diagnose(change, model={'remat': True})
  assert found.startswith('output of decoder layer 1, feedforward')


def test_a_loss_beside_the_cross_entropy_is_named():
  """The KL term overflows, z does not, and the decoder does not read it."""
  config = {'latent': {'dim': 3, 'memory': 0}}

  def change(params):
    # The square of the mean is too large.
    params['latent']['posterior']['bias'][0] = 1e30
    params['latent_embedding']['kernel'][:] = 0.0

  step, name = walk(0, change, model=config, data={'pack': False})
  assert (step, name) == (3, 'the loss, in kl')
