"""The run whose parameters another one starts from, or tunes.

A run that is tuned saves what it trains. The rest, its base, is read from the
run in `train.init_from` again, and known by a fingerprint in the manifest.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.checkpoint import checkpointer, parameters
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.weights import compressed, tuning

# What a manifest calls the base, and what a model was imported from.
KEY = 'base'
SOURCE = 'source'


class Base:
  """The run in the folder `train.init_from`.

  Attributes:
    path: the folder.
    field: that names it, for messages.
    config: of that run.
    step: of the checkpoint that was read last.
    manifest: of that checkpoint.
  """

  def __init__(self, config: config_lib.Config, *, is_tuned: bool = False):
    """Opens it.

    Args:
      config: of the run that starts from it.
      is_tuned: whether this run has been tuned, so that it is lost without.

    Raises:
      ConfigError: there is no run with a checkpoint.
    """
    self.path = host.expand_path(config.train.init_from)
    self.field = f'train.init_from={config.train.init_from}'
    file = self.path / config_lib.FILE
    remedy = ''
    if is_tuned:
      remedy = (
        '; it has the parameters that were tuned, so put it back, or say where '
        'it is with --config.train.init_from'
      )
    config_lib.check(
      os.path.exists(file),
      f'{self.field} is no folder of a run: it has no {file.name}{remedy}',
    )
    self.config = config_lib.read(file)
    try:
      self._checkpoints = checkpointer.Checkpointer(self.path / 'checkpoints')
    except checkpointer.PathError as error:
      raise config_lib.ConfigError(f'{self.field}: {error}') from error
    config_lib.check(
      self._checkpoints.agreed_newest() is not None,
      f'{self.field} holds no checkpoint; train it first{remedy}',
    )
    self.step = 0
    self.manifest: dict[str, Any] = {}

  def parts(self, config: config_lib.Config, abstract: Any) -> Any:
    """The parameters of a run that it has: all, but for an output of classes.

    That it has where its classes, labels or units of numbers are the same.
    """
    if self.config.model.num_classes and _output(self.config) == _output(
      config
    ):
      return abstract
    return {
      name: leaf
      for name, leaf in abstract.items()
      if name != parameter_groups.CLASSES
    }

  def check(self, abstract: Any):
    """Sees that its newest checkpoint has all parameters that are wanted.

    Args:
      abstract: shapes, types and shardings of plain parameters.

    Raises:
      ConfigError: one is missing there, or has another shape.
    """
    if self.config.tune.method != 'full' or self.config.compress.is_stored:
      # It has other arrays; `read` looks.
      return
    try:
      step = max(self._checkpoints.steps())
      saved = self._checkpoints.manifest(step)['arrays']
    except checkpointer.DamageError:
      # An older one may be whole; `read` looks.
      return
    self._select(saved, abstract)

  def read(
    self, abstract: Any, step: int | None = None
  ) -> tuple[Any, list[str]]:
    """Its parameters, as they would be evaluated, in plain arrays.

    Args:
      abstract: shapes, types and shardings of these.
      step: of the checkpoint to read, if it is still there; else the newest.

    Returns:
      The parameters, and the paths of others that it has.

    Raises:
      ConfigError: no checkpoint is whole, or a parameter does not fit.
    """
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    tune, own, model = self.config.tune, abstract, None
    if tune.method != 'full':
      model = build.make_model(self.config, mesh)
      whole = tuning.abstract_params(self.config, model, mesh)
      own = parameter_groups.own(tune, whole)
    if self.config.compress.is_stored:
      model = build.make_model(self.config, mesh)
      own = compressed.abstract_stored(self.config, model, mesh)
    select = lambda saved: self._select(saved, own).arrays
    if step is not None and not self._checkpoints.holds(step):
      step = None
    try:
      restored = self._checkpoints.restore_arrays(select, step)
    except checkpointer.DamageError as error:
      raise config_lib.ConfigError(f'{self.field}: {error}') from error
    config_lib.check(restored is not None, f'{self.field} was emptied')
    assert restored is not None
    self.step, self.manifest = restored.step, restored.manifest
    selection = self._select(restored.manifest['arrays'], own)
    unused = parameters.unused(restored.manifest['arrays'], selection)
    params = selection.params(restored.state)
    if model is None:
      cast = lambda leaf, wanted: leaf.astype(wanted.dtype)
      return jax.tree.map(cast, params, abstract), unused
    if self.config.compress.is_stored:
      plain = build.abstract_params(model, mesh)
      params = compressed.opened(params, plain)
    params = with_base(self.config, model, mesh, params, restored.manifest)
    return self._merged(params, abstract), []

  def identity(self, params: Any) -> dict[str, Any]:
    """What a manifest says of the parameters that were read last."""
    return {'step': self.step, 'fingerprint': fingerprint(params)}

  def source(self, step: int) -> str | None:
    """What a checkpoint was imported from; None: it was not, or is lost."""
    try:
      return self._checkpoints.manifest(step).get(SOURCE)
    except checkpointer.DamageError:
      return None

  def _merged(self, params: Any, abstract: Any) -> Any:
    """The parameters of a run that was tuned, as plain arrays."""
    merged = jax.eval_shape(tuning.merged, params)
    shapes = lambda tree: {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    there, here = shapes(merged), shapes(abstract)
    for path in sorted(there.keys() | here.keys()):
      config_lib.check(
        there.get(path) == here.get(path),
        f'{self.field} holds another model: {path} is '
        f'{there.get(path, "absent")} there and {here.get(path, "absent")} '
        'here; give the same model',
      )
    merge = lambda params: jax.tree.map(
      lambda leaf, wanted: leaf.astype(wanted.dtype),
      tuning.merged(params),
      abstract,
    )
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(merge, out_shardings=where)(params)

  def _select(
    self, saved: dict[str, str], abstract: Any
  ) -> parameters.Selection:
    selection = parameters.select(saved, abstract)
    misfit = parameters.first_misfit(saved, selection)
    config_lib.check(
      not misfit,
      f'{self.field} holds another model: {misfit}; give the same model',
    )
    return selection


def with_base(
  config: config_lib.Config,
  model: gemini.Gemini,
  mesh: Mesh,
  own: Any,
  manifest: Mapping[str, Any],
  base_params: Any = None,
) -> Any:
  """All parameters of a run, of those in its checkpoint.

  Args:
    config: of the run; `own` are all parameters, unless it was tuned.
    model: the network.
    mesh: of the devices.
    own: what the checkpoint has.
    manifest: of the checkpoint.
    base_params: of the base, where they have been read; None: they are read.

  Raises:
    ConfigError: the base cannot be read, or has changed.
  """
  if config.tune.method == 'full':
    return own
  known = manifest.get(KEY)
  config_lib.check(
    isinstance(known, dict)
    and type(known.get('step')) is int
    and isinstance(known.get('fingerprint'), str),
    f'tune.method={config.tune.method!r}: the checkpoint does not say which '
    'parameters it tunes',
  )
  assert known is not None
  where, params = 'the base', base_params
  if params is None:
    base = Base(config, is_tuned=True)
    plain = build.abstract_params(model, mesh)
    params, _ = base.read(base.parts(config, plain), known['step'])
    where = f'{base.field} at step {base.step}'
  found = fingerprint(params)
  config_lib.check(
    found == known['fingerprint'],
    f'{where} has other parameters (fingerprint {found}) than those that were '
    f'tuned, of step {known["step"]} ({known["fingerprint"]}); give the folder '
    'of those',
  )
  whole = tuning.abstract_params(config, model, mesh)
  params = with_classes(params, whole)
  return tuning.attached(config.tune, own, params, whole)


def with_classes(params: Any, abstract: Any) -> Any:
  """Parameters with an output of classes, all zero, if they lack one.

  Args:
    params: of a base.
    abstract: of the run that starts from it.
  """
  name = parameter_groups.CLASSES
  if name not in abstract or name in params:
    return params
  zeros = lambda leaf: jax.device_put(
    jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding
  )
  return params | {name: jax.tree.map(zeros, abstract[name])}


def _output(config: config_lib.Config) -> tuple[Any, ...]:
  """What the output of a run means."""
  is_numbers = config.model.output == 'numbers'
  return (
    config.model.output,
    config.data.label_names,
    config.data.normalization if is_numbers else None,
  )


def fingerprint(params: Any) -> str:
  """Of the numbers of parameters: the same on every mesh, in hex digits."""
  mesh = jax.tree.leaves(params)[0].sharding.mesh
  everywhere = NamedSharding(mesh, PartitionSpec())
  sums = jax.jit(
    lambda params: jax.tree.map(_sum, params), out_shardings=everywhere
  )(params)
  digest = hashlib.sha256()
  for (path, leaf), value in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(sums),
    strict=True,
  ):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    entry = f'{name} {leaf.dtype} {leaf.shape} {value.tolist()}\n'
    digest.update(entry.encode())
  return digest.hexdigest()[:16]


def _sum(array: jax.Array) -> jax.Array:
  """uint32[2], which a change of any number or of their order changes.

  The sum of integers does not depend on its order, and so not on how the array
  is split.
  """
  bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
  values = jax.lax.bitcast_convert_type(array, bits).astype(jnp.uint32)
  place = jnp.zeros(array.shape, jnp.uint32)
  for dim, size in enumerate(array.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim)
    place = place * jnp.uint32(size) + index
  # As the finaliser of MurmurHash3 mixes.
  mixed = values * jnp.uint32(0x9E3779B1) + place * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
  mixed = mixed ^ (mixed >> 16)
  other = (mixed * jnp.uint32(0x27D4EB2F)) ^ (mixed >> 15)
  return jnp.stack([jnp.sum(mixed), jnp.sum(other)])
