"""What is saved comes back bitwise; what is damaged is named and set aside."""

import errno
import gc
import json
import logging
import math
import os
import pathlib
import shutil
import types
import zlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gemini_jax.checkpoint import checkpointer, storage
from gemini_jax.checkpoint import manifest as manifest_lib


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
  checkpoints = checkpointer.Checkpointer(folder, keep_last=3)
  for step in (1, 2, 3):
    checkpoints.save(step, make(step), {'data': {'next': step}})
  checkpoints.close()
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy of it to damage."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


def test_a_round_trip(folder):
  checkpoints = checkpointer.Checkpointer(folder)
  assert checkpoints.steps() == [1, 2, 3]
  for step in (None, 3, 1):
    restored = checkpoints.restore(abstract(make()), step)
    assert restored.step == (step or 3)
    assert restored.manifest['data'] == {'next': step or 3}
    assert_bitwise(restored.state, make(step or 3))


def test_nothing_to_restore(tmp_path):
  checkpoints = checkpointer.Checkpointer(tmp_path / 'none')
  assert checkpoints.steps() == []
  assert checkpoints.best() is None
  assert checkpoints.restore(abstract(make())) is None
  checkpoints.clean()
  assert not (tmp_path / 'none').exists()


def test_the_newest_and_the_best_are_kept(tmp_path):
  checkpoints = checkpointer.Checkpointer(tmp_path, keep_last=2)
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
  checkpoints = checkpointer.Checkpointer(
    tmp_path, keep_last=1, keep_best=False
  )
  for step, metric in enumerate((1.0, 2.0), 1):
    checkpoints.save(step, {'x': jnp.arange(3)}, {}, metric)
  checkpoints.close()
  assert checkpoints.steps() == [2]


def test_a_step_is_saved_again(folder):
  """After a resume from an older checkpoint."""
  checkpoints = checkpointer.Checkpointer(folder, keep_last=3)
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
    restored = checkpointer.Checkpointer(folder).restore(abstract(make()))
  assert restored.step == 2
  assert_bitwise(restored.state, make(2))
  assert name in caplog.text
  assert str(folder / '00000003') in caplog.text
  assert (folder / '00000003.damaged').is_dir()
  assert not (folder / '00000003').exists()
  assert checkpointer.Checkpointer(folder).steps() == [1, 2]


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
    if str(name) == checkpointer.MANIFEST:
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
  'content',
  [
    *('', '{', '[]', '{"step": 3}', '{"files": 3}', 'null', '\0' * 99),
    '[' * 100_000,
    '{"a":' * 100_000,
  ],
)
def test_a_manifest_of_garbage(content, folder, caplog):
  (folder / '00000003' / checkpointer.MANIFEST).write_text(content)
  damaged(folder, caplog, checkpointer.MANIFEST)


def test_another_number_in_the_manifest(folder, caplog):
  """It would resume at another place of the data."""
  path = folder / '00000003' / checkpointer.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['data']['next'] = 4
  path.write_text(json.dumps(manifest, indent=1))
  damaged(folder, caplog, f'{checkpointer.MANIFEST} has changed')


def test_all_are_damaged(folder, caplog):
  for step in (1, 2, 3):
    (folder / f'{step:08d}' / checkpointer.MANIFEST).write_text('')
  before = files(folder)
  with (
    caplog.at_level(logging.ERROR),
    pytest.raises(
      checkpointer.DamageError, match=r'every .* is damaged \(steps 1, 2, 3\)'
    ),
  ):
    checkpointer.Checkpointer(folder).restore(abstract(make()))
  assert caplog.text.count('is damaged') == 3
  assert files(folder) == before, 'nothing is set aside for nothing'


def test_reading_changes_nothing(folder):
  (folder / '00000003' / checkpointer.MANIFEST).write_text('')
  before = files(folder)
  checkpoints = checkpointer.Checkpointer(folder)
  assert checkpoints.restore(abstract(make()), set_aside=False).step == 2
  assert files(folder) == before
  assert checkpoints.damaged() == []
  checkpoints.restore(abstract(make()))
  assert checkpoints.damaged() == [folder / '00000003.damaged']


def test_the_step_that_was_asked_for_is_damaged(folder):
  (folder / '00000002' / checkpointer.MANIFEST).write_text('')
  with pytest.raises(checkpointer.DamageError, match='manifest'):
    checkpointer.Checkpointer(folder).restore(abstract(make()), 2)
  assert (folder / '00000002').is_dir()


def test_a_save_that_was_cut_off_does_not_count(folder, caplog):
  """Arrays without a manifest: the process died between the two."""
  (folder / '00000003' / checkpointer.MANIFEST).unlink()
  (folder / '00000004').mkdir()
  (folder / '00000005.unfinished' / 'state').mkdir(parents=True)
  checkpoints = checkpointer.Checkpointer(folder)
  assert checkpoints.steps() == [1, 2]
  assert checkpoints.restore(abstract(make())).step == 2
  with caplog.at_level(logging.WARNING):
    checkpoints.clean()
  assert caplog.text.count('removing the unfinished checkpoint') == 3
  assert sorted(path.name for path in folder.iterdir()) == [
    '00000001',
    '00000002',
  ]
  assert checkpoints.steps() == [1, 2]


def test_the_manifest_appears_last(tmp_path, monkeypatch):
  """A failure while it is written leaves no checkpoint, and is not silent."""
  checkpoints = checkpointer.Checkpointer(tmp_path)
  checkpoints.save(1, {'x': jnp.arange(3)}, {})
  checkpoints.wait()

  def fail(path):
    raise OSError('disk full')

  monkeypatch.setattr(manifest_lib, '_checksum', fail)
  checkpoints.save(2, {'x': jnp.arange(3)}, {})
  with pytest.raises(OSError, match='disk full'):
    checkpoints.wait()
  assert checkpoints.steps() == [1]
  assert list((tmp_path / '00000002.unfinished' / 'state').rglob('*'))
  assert not (tmp_path / '00000002').exists()


def test_another_model_is_refused_by_its_first_array(folder):
  checkpoints = checkpointer.Checkpointer(folder)
  state = make()
  other = state.replace(params={**state.params, 'kernel': jnp.zeros((16, 9))})
  with pytest.raises(checkpointer.MismatchError) as error:
    checkpoints.restore(abstract(other))
  assert 'params/kernel is float32[16, 8] there and float32[16, 9]' in str(
    error.value
  )
  more = state.replace(params={**state.params, 'a': jnp.zeros(2)})
  with pytest.raises(
    checkpointer.MismatchError,
    match=r'params/a is absent there and float32\[2\] in this config',
  ):
    checkpoints.restore(abstract(more))
  half = state.replace(step=jnp.float32(0))
  with pytest.raises(
    checkpointer.MismatchError, match=r'step is int32\[\] there and float32\[\]'
  ):
    checkpoints.restore(abstract(half))
  assert checkpoints.steps() == [1, 2, 3], 'nothing is set aside'


@pytest.mark.parametrize('in_parts', [False, True])
def test_restored_onto_another_mesh(in_parts, tmp_path, monkeypatch):
  """Saved on data=8; read on fsdp=8, on 4 * 2 and on one device.

  Of a large array each of the 8 copies gives a part, of a small one the first
  gives all of it.
  """
  if in_parts:
    monkeypatch.setattr(storage, '_MIN_PART_BYTES', 1)
  mesh = lambda shape, axes, devices: jax.sharding.Mesh(
    np.array(devices).reshape(shape), axes
  )
  devices = jax.devices()
  data = mesh((8,), ('data',), devices)
  saved = make(4, NamedSharding(data, PartitionSpec()))
  checkpoints = checkpointer.Checkpointer(tmp_path)
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
  checkpoints = checkpointer.Checkpointer(tmp_path, keep_last=9)
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


@pytest.mark.parametrize(
  'name', ['lr=[1e-3]', '**', 'a*[!b]?', '[ab', 'ü #%41']
)
def test_a_folder_of_any_name(name, tmp_path):
  """Sweeps name folders so; to Orbax some of these are patterns."""
  checkpoints = checkpointer.Checkpointer(tmp_path / name)
  checkpoints.save(5, make(5), {})
  checkpoints.close()
  assert_bitwise(checkpoints.restore(abstract(make())).state, make(5))


@pytest.mark.parametrize('path', ['/tmp/a\\b', '/gs/runs', '/tmp/\udcff'])
def test_a_folder_that_orbax_takes_for_another(path):
  with pytest.raises(checkpointer.PathError, match='cannot hold checkpoints'):
    checkpointer.Checkpointer(path)


def test_what_cannot_be_read_back_does_not_count(tmp_path, monkeypatch):
  """Orbax says that it is saved, but its arrays are not in the files."""
  checkpoints = checkpointer.Checkpointer(tmp_path, keep_last=1)
  checkpoints.save(1, make(1), {})
  checkpoints.wait()
  with monkeypatch.context() as patch:
    patch.setattr(storage._Path, 'glob', lambda path, pattern: iter(()))
    checkpoints.save(2, make(2), {})
    with pytest.raises(checkpointer.DamageError, match='cannot be read back'):
      checkpoints.wait()
  assert checkpoints.steps() == [1]
  assert_bitwise(checkpoints.restore(abstract(make())).state, make(1))


def test_folders_of_others_are_left_alone(folder):
  """Only names that a save makes are checkpoints, and only ours are removed."""
  for name in ('6', '007', '²', '-0000009', '99999999999'):
    shutil.copytree(folder / '00000001', folder / name)
  for name in ('2024', '0000002024', 'old.unfinished', '7.removed'):
    (folder / name).mkdir()
    (folder / name / 'notes.txt').write_text('mine')
  before = files(folder)
  checkpoints = checkpointer.Checkpointer(folder, keep_last=9)
  assert checkpoints.steps() == [1, 2, 3]
  checkpoints.clean()
  assert checkpoints.restore(abstract(make())).step == 3
  checkpoints.save(4, make(4), {})
  checkpoints.close()
  assert set(files(folder)) > set(before)


def test_a_folder_in_the_way_is_named(folder):
  (folder / '00002024').mkdir()
  (folder / '00002024' / 'notes.txt').write_text('mine')
  with pytest.raises(checkpointer.PathError, match='00002024 has the name of'):
    checkpointer.Checkpointer(folder).clean()
  assert (folder / '00002024' / 'notes.txt').read_text() == 'mine'


def test_checkpoints_on_another_disk(folder, tmp_path):
  """Linked from here: used, and when it is old only the link is removed."""
  (folder / '00000001').rename(tmp_path / 'other')
  (folder / '00000001').symlink_to(tmp_path / 'other')
  (tmp_path / 'link').symlink_to(folder)
  checkpoints = checkpointer.Checkpointer(tmp_path / 'link', keep_last=1)
  assert_bitwise(checkpoints.restore(abstract(make()), 1).state, make(1))
  checkpoints.save(4, make(4), {})
  checkpoints.close()
  assert checkpoints.steps() == [4]
  assert not (folder / '00000001').is_symlink()
  assert (tmp_path / 'other' / checkpointer.MANIFEST).exists()


def test_a_metric_that_is_not_finite_is_none(tmp_path):
  checkpoints = checkpointer.Checkpointer(tmp_path, keep_last=9)
  for step, metric in enumerate((math.nan, 3.0, -math.inf, 2.0, math.nan), 1):
    checkpoints.save(step, {'x': jnp.arange(3)}, {}, metric)
  checkpoints.close()
  assert checkpoints.best() == 4
  # As earlier versions wrote it.
  for step in (1, 2, 4):
    forge(checkpoints.path(step), lambda manifest: manifest.update(metric='1'))
  forge(checkpoints.path(5), lambda manifest: manifest.update(metric=math.nan))
  assert checkpoints.best() is None


def forge(path, edit=None):
  """Gives a changed checkpoint the checksums that it must have."""
  manifest = json.loads((path / checkpointer.MANIFEST).read_text())
  del manifest['checksum']
  for name in manifest['files']:
    content = (path / name).read_bytes()
    manifest['files'][name] = [len(content), zlib.crc32(content)]
  if edit is not None:
    edit(manifest)
  encode = lambda: json.dumps(manifest, indent=1).encode()
  manifest['checksum'] = zlib.crc32(encode())
  (path / checkpointer.MANIFEST).write_bytes(encode())


@pytest.mark.parametrize(
  ('values', 'problem'),
  [
    ({'step': 2}, 'is of step 2, not of 3'),
    ({'step': [3]}, r'is of step [3], not of 3'),
    ({'arrays': None}, 'shapes of the arrays'),
    ({'arrays': {'step': 3}}, 'shapes of the arrays'),
    ({'files': None}, 'size and checksum'),
    ({'files': {'state/d': [1]}}, 'size and checksum'),
    ({'files': {'state/d': ['1', 2]}}, 'size and checksum'),
    ({'files': {'../00000002/manifest.json': [1, 2]}}, 'is not its own'),
    ({'files': {'state/../../x': [1, 2]}}, 'is not its own'),
    ({'files': {'/etc/passwd': [1, 2]}}, 'is not its own'),
    ({'files': {'state/\0': [1, 2]}}, 'is not its own'),
    ({'files': {'state': [0, 0]}}, 'is missing'),
  ],
)
def test_a_forged_manifest(values, problem, folder, caplog):
  forge(folder / '00000003', lambda manifest: manifest.update(values))
  damaged(folder, caplog, problem)


def test_a_folder_of_another_step(folder, caplog):
  shutil.rmtree(folder / '00000003')
  shutil.copytree(folder / '00000001', folder / '00000003')
  damaged(folder, caplog, 'is of step 1, not of 3')


def test_forged_files(folder, saved, caplog):
  """Their checksums are right: whatever Orbax says of them is damage."""
  names = [
    path.relative_to(saved / '00000003')
    for path in (saved / '00000003' / 'state').rglob('*')
    if path.is_file() and path.stat().st_size
  ]
  set_aside = 0
  for name in names:
    for change in (
      lambda content: content[: len(content) // 2],
      lambda content: content[:60] + b'\xff' + content[61:],
      lambda content: content.replace(b'"key"', b'"kex"'),
      lambda content: b'[' * 100_000,
    ):
      path = folder / '00000003'
      content = (path / name).read_bytes()
      (path / name).write_bytes(change(content))
      forge(path)
      restored = checkpointer.Checkpointer(folder).restore(abstract(make()))
      # What Orbax does not need it does not miss.
      assert_bitwise(restored.state, make(restored.step))
      assert restored.step in (2, 3)
      if restored.step == 2:
        set_aside += 1
        (folder / '00000003.damaged').rename(path)
      (path / name).write_bytes(content)
  assert set_aside > 10
  # What Orbax gave up is not told of later.
  gc.collect()


@pytest.mark.parametrize(
  'name', [checkpointer.MANIFEST, 'state/x', '_METADATA']
)
@pytest.mark.parametrize('kind', ['fifo', 'device', 'gone'])
def test_what_is_no_file_is_not_read(name, kind, folder, caplog):
  path = folder / '00000003' / name
  if name == '_METADATA':
    (path,) = (folder / '00000003' / 'state').rglob(name)
  path.unlink(missing_ok=True)
  if kind == 'fifo':
    os.mkfifo(path)
  else:
    path.symlink_to('/dev/zero' if kind == 'device' else path / 'gone')
  if (name, kind) == (checkpointer.MANIFEST, 'gone'):
    assert checkpointer.Checkpointer(folder).steps() == [1, 2]
    return
  damaged(folder, caplog, path.name)


def test_a_link_to_a_folder_is_not_followed(folder, caplog):
  (folder / '00000003' / 'state' / 'more').symlink_to(folder)
  damaged(folder, caplog, 'state/more is a link to a folder')


@pytest.mark.parametrize(
  ('saved', 'wanted'),
  [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)],
)
def test_floats_are_converted(saved, wanted, tmp_path, caplog):
  """Moments kept in another type by an earlier version, say."""
  values = np.random.default_rng(0).normal(size=(5, 3))
  state = {'x': jnp.asarray(values, saved), 'n': jnp.int32(3)}
  checkpoints = checkpointer.Checkpointer(tmp_path)
  checkpoints.save(1, state, {})
  checkpoints.close()
  expected = state | {'x': state['x'].astype(wanted)}
  with caplog.at_level(logging.INFO):
    restored = checkpoints.restore(abstract(expected))
  assert_bitwise(restored.state, expected)
  assert caplog.text.count('converting 1 of 2 arrays') == 1
  other = expected | {'x': jnp.zeros((5, 3), jnp.int32)}
  with pytest.raises(checkpointer.MismatchError, match='x is '):
    checkpoints.restore(abstract(other))


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number, tmp_path, monkeypatch):
  """What TensorStore raises is an error of the system; nothing is removed."""
  checkpoints = checkpointer.Checkpointer(tmp_path, keep_last=1)
  checkpoints.save(1, {'x': jnp.arange(3)}, {})
  checkpoints.wait()

  def fail():
    raise ValueError(
      'RESOURCE_EXHAUSTED: Failed writing: "/x/d/ddf1": Failed to write 160 '
      f"bytes to file 14: No space left on device [os_error_code='{number}']"
    )

  with monkeypatch.context() as patch:
    patch.setattr(
      storage.ocp,
      'save_async',
      lambda path, state: types.SimpleNamespace(result=fail),
    )
    checkpoints.save(2, {'x': jnp.arange(3)}, {})
    with pytest.raises(OSError) as error:
      checkpoints.close()
  assert error.value.errno == number
  assert checkpoints.steps() == [1]


def test_what_is_attached_is_written_in_one_piece(tmp_path, monkeypatch):
  """A kill at any moment leaves the old manifest or the new one."""
  checkpoints = checkpointer.Checkpointer(tmp_path)
  results = {'a': 1.0}
  checkpoints.save(1, make(1), {'results': results})
  checkpoints.wait()
  path = checkpoints.path(1) / checkpointer.MANIFEST
  before = path.read_bytes()

  def killed(self, target):
    assert path.read_bytes() == before
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      checkpoints.attach(1, {'results': {'a': 2.0}}, 0.5)
  assert checkpoints.manifest(1)['results'] == {'a': 1.0}
  checkpoints.attach(1, {'results': {'a': 2.0}}, 0.5)
  assert checkpoints.manifest(1)['results'] == {'a': 2.0}
  assert checkpoints.best() == 1
  checkpoints.close()


def test_a_folder_that_goes_while_it_is_written(tmp_path):
  checkpoints = checkpointer.Checkpointer(tmp_path / 'run' / 'checkpoints')
  with pytest.raises(checkpointer.DamageError, match='run was removed'):
    checkpoints.save(1, make(1), {})
  checkpoints.close()
