"""Validation decides what stays pruned; a rollback is to the bit."""

import shutil

import jax
import numpy as np
import pytest

import tiny
from gemini_jax import config as config_lib
from gemini_jax.adapt import enabled, masks, pruning
from gemini_jax.checkpoint import checkpointer
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.train import metrics_file, session
from gemini_jax.train import state as state_lib

LINES = (
  "sparsity.method = 'gated'",
  'sparsity.gate.first_epochs = 1',
  'sparsity.gate.last_epochs = 1',
  'train.epoch_examples = 31',
  'train.epochs = 6',
  'train.eval_every = 4',
  'train.save_every = 3',
  'train.keep_last = 20',
  'train.log_every = 1',
)


def made(step):
  """(extensions, a state after `step` steps of a gated run)."""
  config = tiny.config(
    sparsity={
      'method': 'gated',
      'gate': {'first_epochs': 1, 'last_epochs': 1, 'tolerance': 0.1},
    },
    train={'epoch_examples': 8, 'epochs': 6, 'eval_every': 4},
    data={'validation': ('text:x',)},
  )
  mesh = mesh_lib.make_mesh(config.parallel, jax.devices()[:1])
  model, optimizer, abstract = session.abstract_parts(config, mesh)
  state = state_lib.init_state(config, model, optimizer, abstract)
  return enabled.extensions(config), state.replace(step=step)


def moved(state, epoch, scale=1.01):
  """As after training: other weights, a later step."""
  move = lambda leaf: (
    leaf * scale + 0.5 if leaf.dtype == np.float32 else leaf + 1
  )
  return state.replace(
    params=jax.tree.map(move, state.params),
    opt_state=jax.tree.map(move, state.opt_state),
    step=jax.numpy.int32(4 * epoch),
  )


def share(state):
  return float(masks.sparsity(pruning.of(state)))


def test_accept_refuse_and_stop():
  on, state = made(np.int32(4))
  state = moved(state, 1)
  begun = on.after_validation(state, np.float32(2))
  assert share(begun) == pytest.approx(0.5, abs=0.01)
  # In the middle of an epoch nothing is judged.
  middle = on.after_validation(begun.replace(step=jax.numpy.int32(6)), 9.0)
  assert share(middle) == share(begun)
  good = on.after_validation(moved(begun, 2), np.float32(2.19))
  assert share(good) == pytest.approx(0.75, abs=0.01)
  # Beside the dense model's loss, not the last one that was accepted.
  worse = on.after_validation(moved(good, 3), np.float32(2.21))
  assert share(worse) == pytest.approx(0.625, abs=0.01)
  # And beside the lowest.
  best = on.after_validation(moved(begun, 2), np.float32(1.8))
  for loss, expected in {1.97: 0.875, 1.99: 0.625}.items():
    after = on.after_validation(moved(best, 3), np.float32(loss))
    assert share(after) == pytest.approx(expected, abs=0.01)
  for loss in (2.21, np.nan):
    bad = on.after_validation(moved(begun, 2), np.float32(loss))
    # Back to the dense point, and half as far.
    assert float(bad.extra['gate']['alpha']) == 0.25
    assert share(bad) == pytest.approx(0.25, abs=0.01)
    assert int(bad.step) == 8
    expected = masks.apply(pruning.of(bad), state.params)
    jax.tree.map(np.testing.assert_array_equal, bad.params, expected)
    # The moments go back as well; counts of updates go on.
    expected = masks.apply_to_state(
      pruning.of(bad),
      state.params,
      jax.tree.map(
        lambda old, last: old if old.dtype == np.float32 else last + 1,
        state.opt_state,
        begun.opt_state,
      ),
    )
    jax.tree.map(np.testing.assert_array_equal, bad.opt_state, expected)
  for loss, wanted in ((2.0, 0.5), (3.0, 0.0)):
    last = on.after_validation(moved(begun, 5), np.float32(loss))
    assert share(last) == pytest.approx(wanted, abs=0.01)
    after = on.after_validation(moved(last, 6), np.float32(99))
    assert share(after) == share(last)


def test_the_first_finite_loss_is_the_one_to_keep():
  """None before it: nothing is pruned, nor accepted beside NaN."""
  on, state = made(np.int32(4))
  state = moved(state, 1)
  for epoch, loss in ((1, np.nan), (2, np.inf), (5, np.nan)):
    state = state.replace(step=jax.numpy.int32(4 * epoch))
    assert on.after_validation(state, np.float32(loss)) is state
  begun = on.after_validation(moved(state, 3), np.float32(-2))
  assert float(begun.extra['gate']['reference']) == -2
  assert share(begun) == pytest.approx(0.5, abs=0.01)
  # The tolerance of a negative loss is above it too.
  for loss, alpha in ((-1.81, 0.5), (-1.79, 0.25), (-np.inf, 0.25)):
    after = on.after_validation(moved(begun, 4), np.float32(loss))
    assert float(after.extra['gate']['alpha']) == alpha


@pytest.mark.parametrize(
  ('fields', 'step'),
  [
    ({'sparsity': {'method': 'rigl'}}, 0),
    ({'sparsity': {'method': 'gradual', 'end': 0.5}}, 12),
    ({'gates': {'method': 'l0', 'heads': 0.5, 'end': 0.75}}, 18),
    # Judged last at 20, where the checkpoint is older than the judgement.
    ({'sparsity': {'method': 'gated', 'gate': {'last_epochs': 1}}}, 21),
  ],
)
def test_best_is_what_has_the_form_that_was_asked_for(fields, step):
  config = tiny.config(
    train={'epoch_examples': 8, 'epochs': 6, 'eval_every': 4},
    data={'validation': ('text:x',)},
    **fields,
  )
  assert enabled.extensions(config).settled_step == step


def test_decisions_follow_the_losses():
  """Negative control: the same losses in another order end elsewhere."""
  found = []
  for losses in ((2.0, 2.1, 2.1, 2.1, 9.0), (2.0, 9.0, 2.1, 2.1, 2.1)):
    on, state = made(np.int32(4))
    for epoch, loss in enumerate(losses, 1):
      state = on.after_validation(moved(state, epoch), np.float32(loss))
    found.append(share(state))
  assert found[0] == pytest.approx(0.875, abs=0.01)
  assert found[1] == pytest.approx(1 - 0.75**3, abs=0.01)


def test_it_resumes_to_the_bit(tmp_path):
  """Continued from an earlier checkpoint, at an epoch's end."""
  file = tiny.experiment(tmp_path, *LINES)
  whole = tmp_path / 'run'
  assert tiny.run(file, whole) == 0
  config = config_lib.read(whole / 'config.json')
  assert config.train.num_steps == 24, 'of 31 examples, 4 batches of 8'
  lines = tiny.metrics(whole, *metrics_file.TIMINGS)
  shares = [line['train/sparsity'] for line in lines if 'train/loss' in line]
  assert shares[3] == 0 < shares[4], shares
  assert (whole / 'gate.png').read_bytes().startswith(b'\x89PNG')
  assert '(gate.png)' in (whole / 'report.md').read_text()
  wanted = tiny.arrays(whole)
  checkpoints = checkpointer.Checkpointer(whole / 'checkpoints')
  # Of a lower loss, perhaps, but dense or refused.
  assert len(checkpoints.steps()) == 8
  assert checkpoints.best() == 24
  again = tmp_path / 'again'
  shutil.copytree(whole, again)
  checkpoints = checkpointer.Checkpointer(again / 'checkpoints')
  for step in checkpoints.steps():
    if step > 12:
      shutil.rmtree(checkpoints.path(step))
  assert tiny.run(file, again) == 0
  assert tiny.metrics(again, *metrics_file.TIMINGS) == lines
  found = tiny.arrays(again)
  assert found.keys() == wanted.keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'sparsity': {'gate': {'alpha': 1.5}}}, 'sparsity.gate.alpha=1.5 must'),
    ({'train': {}}, 'needs train.epoch_examples'),
    ({'data': {'validation': ()}}, 'needs data.validation'),
    (
      {'train': {'epoch_examples': 8, 'epochs': 9, 'eval_every': 3}},
      'train.eval_every=3 must divide the 4 steps',
    ),
    (
      {'train': {'epoch_examples': 8, 'epochs': 4, 'eval_every': 4}},
      'the run has 4; train more than 4',
    ),
    ({'optimizer': {'ema_decay': 0.9}}, 'optimizer.ema_decay=0.9 does not go'),
    ({'train': {'epochs': 3}}, 'train.epochs=3 needs train.epoch_examples'),
  ],
)
def test_what_makes_no_sense_is_refused(fields, message):
  good = {
    'sparsity': {},
    'train': {'epoch_examples': 8, 'epochs': 9, 'eval_every': 4},
    'data': {'validation': ('text:x',)},
  } | fields
  good['sparsity'] = {'method': 'gated'} | good['sparsity']
  with pytest.raises(config_lib.ConfigError, match=message):
    tiny.config(**good)
