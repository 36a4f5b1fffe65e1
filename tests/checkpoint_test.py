"""What is saved comes back bitwise; what is damaged is named and set aside."""

import json
import logging
import pathlib
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gemini_jax import checkpoint


@flax.struct.dataclass
class Inner:
  table: jax.Array
  nothing: None = None


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  inner: tuple[Inner, ...]


def make(seed=0, sharding=None):
  rng = np.random.default_rng(seed)
  put = lambda x: jax.device_put(jnp.asarray(x), sharding)
  normal = rng.normal(size=(16, 8)).astype(np.float32)
  # Bit patterns that arithmetic would change.
  normal[0, :4] = [np.nan, np.inf, -0.0, 1e-45]
  return State(
    step=jnp.int32(seed),
    params={
      'kernel': put(normal),
      'half': put(rng.normal(size=(8, 3)).astype(jnp.bfloat16)),
    },
    inner=(Inner(put(rng.integers(0, 9, (8,), np.int32))), Inner(put(normal))),
  )


def abstract(state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    ),
    state,
  )


def assert_bitwise(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with steps 1, 2 and 3."""
  folder = tmp_path_factory.mktemp('saved')
  checkpoints = checkpoint.Checkpointer(folder, keep_last=3)
  for step in (1, 2, 3):
    checkpoints.save(step, make(step), {'data': {'next': step}})
  checkpoints.close()
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of it to damage."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


def test_a_round_trip(folder):
  checkpoints = checkpoint.Checkpointer(folder)
  assert checkpoints.steps() == [1, 2, 3]
  for step in (None, 3, 1):
    restored = checkpoints.restore(abstract(make()), step)
    assert restored.step == (step or 3)
    assert restored.manifest['data'] == {'next': step or 3}
    assert_bitwise(restored.state, make(step or 3))


def test_nothing_to_restore(tmp_path):
  checkpoints = checkpoint.Checkpointer(tmp_path / 'none')
  assert checkpoints.steps() == []
  assert checkpoints.best() is None
  assert checkpoints.restore(abstract(make())) is None
  checkpoints.clean()
  assert not (tmp_path / 'none').exists()


def test_the_newest_and_the_best_are_kept(tmp_path):
  checkpoints = checkpoint.Checkpointer(tmp_path, keep_last=2)
  state = {'x': jnp.arange(3)}
  for step, metric in enumerate((4.0, 1.0, None, 3.0, 2.0), 1):
    checkpoints.save(step, state, {}, metric)
  checkpoints.close()
  assert checkpoints.steps() == [2, 4, 5]
  assert checkpoints.best() == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    '00000002',
    '00000004',
    '00000005',
  ]


def test_the_best_is_not_kept_if_not_wanted(tmp_path):
  checkpoints = checkpoint.Checkpointer(tmp_path, keep_last=1, keep_best=False)
  for step, metric in enumerate((1.0, 2.0), 1):
    checkpoints.save(step, {'x': jnp.arange(3)}, {}, metric)
  checkpoints.close()
  assert checkpoints.steps() == [2]


def test_a_step_is_saved_again(folder):
  """After a resume from an older checkpoint."""
  checkpoints = checkpoint.Checkpointer(folder, keep_last=3)
  checkpoints.save(3, make(7), {})
  checkpoints.close()
  restored = checkpoints.restore(abstract(make()))
  assert_bitwise(restored.state, make(7))


def files(folder):
  return sorted(
    path.relative_to(folder) for path in folder.rglob('*') if path.is_file()
  )


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def damaged(folder, caplog, name):
  """Restores; asserts that step 3 is set aside and step 2 used instead."""
  with caplog.at_level(logging.ERROR):
    restored = checkpoint.Checkpointer(folder).restore(abstract(make()))
  assert restored.step == 2
  assert_bitwise(restored.state, make(2))
  assert name in caplog.text
  assert str(folder / '00000003') in caplog.text
  assert (folder / '00000003.damaged').is_dir()
  assert not (folder / '00000003').exists()
  assert checkpoint.Checkpointer(folder).steps() == [1, 2]


def test_one_bit_in_any_file(folder, saved, caplog):
  names = [
    path
    for path in files(saved / '00000003')
    if (saved / '00000003' / path).stat().st_size
  ]
  assert len(names) > 5
  for name in names:
    # A flipped bit may leave the manifest readable, or not.
    change = ' has changed since it was written'
    if str(name) == checkpoint.MANIFEST:
      change = ''
    caplog.clear()
    path = folder / '00000003'
    flip(path / name)
    damaged(folder, caplog, f'{name}{change}')
    shutil.rmtree(folder / '00000003.damaged')
    shutil.copytree(saved / '00000003', path)


@pytest.mark.parametrize('how', ['truncated', 'missing', 'longer'])
def test_a_file_cut_off_or_missing(how, folder, caplog):
  path = max(
    (folder / '00000003' / 'state').rglob('*'),
    key=lambda path: path.is_file() and path.stat().st_size,
  )
  name = str(path.relative_to(folder / '00000003'))
  content = path.read_bytes()
  if how == 'missing':
    path.unlink()
    damaged(folder, caplog, f'{name} is missing')
    return
  content = content[:-1] if how == 'truncated' else content + b'x'
  path.write_bytes(content)
  damaged(folder, caplog, f'{name} has {len(content)} bytes')


@pytest.mark.parametrize(
  'content', ['', '{', '[]', '{"step": 3}', '{"files": 3}', 'null', '\0' * 99]
)
def test_a_manifest_of_garbage(content, folder, caplog):
  (folder / '00000003' / checkpoint.MANIFEST).write_text(content)
  damaged(folder, caplog, checkpoint.MANIFEST)


def test_another_number_in_the_manifest(folder, caplog):
  """It would resume at another place of the data."""
  path = folder / '00000003' / checkpoint.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['data']['next'] = 4
  path.write_text(json.dumps(manifest, indent=1))
  damaged(folder, caplog, f'{checkpoint.MANIFEST} has changed')


def test_all_are_damaged(folder, caplog):
  for step in (1, 2, 3):
    (folder / f'{step:08d}' / checkpoint.MANIFEST).write_text('')
  with caplog.at_level(logging.ERROR):
    assert checkpoint.Checkpointer(folder).restore(abstract(make())) is None
  assert caplog.text.count('is damaged') == 3


def test_the_step_that_was_asked_for_is_damaged(folder):
  (folder / '00000002' / checkpoint.MANIFEST).write_text('')
  with pytest.raises(checkpoint.DamageError, match='manifest'):
    checkpoint.Checkpointer(folder).restore(abstract(make()), 2)
  assert (folder / '00000002').is_dir()


def test_a_save_that_was_cut_off_does_not_count(folder, caplog):
  """Arrays without a manifest: the process died between the two."""
  (folder / '00000003' / checkpoint.MANIFEST).unlink()
  (folder / '00000004').mkdir()
  checkpoints = checkpoint.Checkpointer(folder)
  assert checkpoints.steps() == [1, 2]
  assert checkpoints.restore(abstract(make())).step == 2
  with caplog.at_level(logging.WARNING):
    checkpoints.clean()
  assert caplog.text.count('removing the unfinished checkpoint') == 2
  assert not (folder / '00000003').exists()
  assert not (folder / '00000004').exists()
  assert checkpoints.steps() == [1, 2]


def test_the_manifest_appears_last(tmp_path, monkeypatch):
  """A failure while it is written leaves no checkpoint, and is not silent."""
  checkpoints = checkpoint.Checkpointer(tmp_path)
  checkpoints.save(1, {'x': jnp.arange(3)}, {})
  checkpoints.wait()

  def fail(path):
    raise OSError('disk full')

  monkeypatch.setattr(checkpoint, '_checksum', fail)
  checkpoints.save(2, {'x': jnp.arange(3)}, {})
  with pytest.raises(OSError, match='disk full'):
    checkpoints.wait()
  assert checkpoints.steps() == [1]
  assert list((tmp_path / '00000002' / 'state').rglob('*'))


def test_another_model_is_refused_by_its_first_array(folder):
  checkpoints = checkpoint.Checkpointer(folder)
  state = make()
  other = state.replace(params={**state.params, 'kernel': jnp.zeros((16, 9))})
  with pytest.raises(checkpoint.MismatchError) as error:
    checkpoints.restore(abstract(other))
  assert 'params/kernel is float32[16, 8] there and float32[16, 9]' in str(
    error.value
  )
  more = state.replace(params={**state.params, 'a': jnp.zeros(2)})
  with pytest.raises(
    checkpoint.MismatchError,
    match=r'params/a is absent there and float32\[2\] in this config',
  ):
    checkpoints.restore(abstract(more))
  half = state.replace(step=jnp.float32(0))
  with pytest.raises(
    checkpoint.MismatchError, match=r'step is int32\[\] there and float32\[\]'
  ):
    checkpoints.restore(abstract(half))
  assert checkpoints.steps() == [1, 2, 3], 'nothing is set aside'


def test_restored_onto_another_mesh(tmp_path):
  """Saved on data=8; read on fsdp=8, on 4 * 2 and on one device."""
  mesh = lambda shape, axes, devices: jax.sharding.Mesh(
    np.array(devices).reshape(shape), axes
  )
  devices = jax.devices()
  data = mesh((8,), ('data',), devices)
  saved = make(4, NamedSharding(data, PartitionSpec()))
  checkpoints = checkpoint.Checkpointer(tmp_path)
  checkpoints.save(4, saved, {})
  checkpoints.close()
  fsdp = mesh((8,), ('fsdp',), devices)
  two = mesh((2, 4), ('a', 'b'), devices)
  for sharding in (
    NamedSharding(fsdp, PartitionSpec('fsdp')),
    NamedSharding(two, PartitionSpec('b')),
    jax.sharding.SingleDeviceSharding(devices[3]),
  ):
    wanted = make(0, sharding)
    restored = checkpoints.restore(abstract(wanted)).state
    assert_bitwise(restored, saved)
    jax.tree.map(
      lambda a, b: (
        None
        if a.sharding == b.sharding
        else pytest.fail(f'{a.sharding} {b.sharding}')
      ),
      restored,
      wanted,
    )
  assert len(wanted.params['kernel'].devices()) == 1


def test_the_state_may_be_given_away_after_save(tmp_path):
  """Donated to the next step while the files are still written."""
  checkpoints = checkpoint.Checkpointer(tmp_path, keep_last=9)
  step = jax.jit(
    lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0
  )
  state = {'x': jnp.zeros(200_000)}
  for number in range(4):
    checkpoints.save(number, state, {})
    state = step(state)
  checkpoints.close()
  for number in range(4):
    restored = checkpoints.restore(abstract(state), number).state
    assert (np.asarray(restored['x']) == number).all()
