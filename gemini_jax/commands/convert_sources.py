"""Models to convert: runs, published models, updates of PEFT."""

import dataclasses
import functools
import os
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import tqdm

from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.data import gguf_tokenizer, huggingface_tokenizer
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.models import build, gemini
from gemini_jax.parallel import mesh as mesh_lib
from gemini_jax.parallel import sharding
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import (
  compressed,
  peft_files,
  published,
  published_towers,
  tuning,
)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model with its tokenizer, from any source.

  Attributes:
    config: of a run that has these parameters.
    tokenizer: of the model.
    params: of the model, in leaf types where it was tuned.
    manifest: what a checkpoint of them has to say.
  """

  config: config_lib.Config
  tokenizer: tokenizer_lib.Tokenizer
  params: Any
  manifest: dict[str, Any] = dataclasses.field(default_factory=dict)


def _open(path: pathlib.Path) -> run_lib.Run:
  """A run on a mesh that its batches need not fit."""
  config = config_lib.read(path / config_lib.FILE)
  return run_lib.open_run(config, path, mesh_lib.make_mesh(config.parallel))


def open_run(path: pathlib.Path, checkpoint: str) -> Loaded:
  """The model that was trained in a workdir."""
  run = _open(path)
  with sharding.use(run.mesh):
    restored = run.restore_params(checkpoint, 'checkpoint')
  kept = (base_lib.KEY, base_lib.SOURCE)
  manifest = {k: v for k, v in restored.manifest.items() if k in kept}
  return Loaded(run.config, run.tokenizer, restored.params, manifest)


def open_peft(path: pathlib.Path, base_path: pathlib.Path) -> Loaded:
  """The updates in a folder of PEFT, as those of a run tuned from a base."""
  run = _open(base_path)
  train = dataclasses.replace(
    run.config.train, init_from=os.path.abspath(base_path)
  )
  config = dataclasses.replace(run.config, train=train)
  base = base_lib.Base(config)
  plain = build.abstract_params(run.model, run.mesh)
  entries = published.huggingface_entries(config.model, plain)
  with sharding.use(run.mesh):
    adapter = peft_files.read(path, plain, entries)
    config = dataclasses.replace(config, tune=adapter.tune)
    params = base.read(plain)[0]
    try:
      peft_files.check_base(adapter, params, base.manifest.get(base_lib.SOURCE))
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f'--base={base_path}: {error}') from error
    identity = base.identity(params)
    abstract = tuning.abstract_params(config, run.model, run.mesh)
    params = tuning.attached(adapter.tune, adapter.own, params, abstract)
  return Loaded(config, run.tokenizer, params, {base_lib.KEY: identity})


def open_tower(path: pathlib.Path, base_path: pathlib.Path) -> Loaded:
  """A language model with the published encoder of a folder beside it.

  What neither has is drawn: the projector from the encoder's width to the
  model's, and vectors of placeholders where the token table has no row left.
  """
  tower = published_towers.open_tower(path)
  base = merged(open_run(base_path, 'latest'))
  model = base.config.model
  config_lib.check(
    tower.kind not in model.kinds,
    f'--base={base_path} already reads media of the kind {tower.kind}',
  )
  words = base.tokenizer
  fitting = build.with_vocab(
    dataclasses.replace(
      base.config,
      model=dataclasses.replace(
        model, vocab_size=None, **{tower.kind: tower.section}
      ),
    ),
    words.vocab_size,
  )
  rows = max(model.vocab_size or 0, fitting.model.vocab_size or 0)
  config = dataclasses.replace(
    fitting, model=dataclasses.replace(fitting.model, vocab_size=rows)
  )
  mesh = build.fsdp_mesh(config.model)
  network = build.make_model(config, mesh)
  abstract = build.abstract_params(network, mesh)
  subtree = abstract['perception'][f'encoders_{tower.kind}']['tower']
  with sharding.use(mesh):
    imported = tower.params(subtree)
    params = _beside(network, abstract, base.params)
  params['perception'][f'encoders_{tower.kind}']['tower'] = imported
  return Loaded(config, words, params)


def _beside(network: gemini.Gemini, abstract: Any, base: Any) -> Any:
  """Parameters of a model, those of a smaller one where it has them.

  Rows that a table has more than that one are drawn, and so is what it has not.
  """
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  there = {
    name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)
  }
  lacking = [
    name(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    if name(path) not in there or there[name(path)].shape != leaf.shape
  ]

  def draw(key):
    params = nn.unbox(gemini.init_params(network, key))
    return {
      name(path): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      if name(path) in lacking
    }

  drawn = jax.jit(draw)(jax.random.key(0))

  def one(path, wanted):
    leaf = there.get(name(path))
    if name(path) in lacking:
      new: Any = drawn.pop(name(path))
      if leaf is not None:
        new = new.at[tuple(map(slice, leaf.shape))].set(leaf)
      leaf = new
    assert leaf is not None
    return jax.device_put(leaf.astype(wanted.dtype), wanted.sharding)

  return jax.tree_util.tree_map_with_path(one, abstract)


def merged(loaded: Loaded) -> Loaded:
  """The model of a run that was tuned or compressed, as one that was not."""
  config = loaded.config
  if config.compress.is_stored:
    mesh = jax.tree.leaves(loaded.params)[0].sharding.mesh
    plain = build.abstract_params(build.make_model(config, mesh), mesh)
    params = jax.jit(lambda params: compressed.to_plain(params, plain))(
      loaded.params
    )
    config = dataclasses.replace(config, compress=config_lib.Compress())
    return Loaded(config, loaded.tokenizer, params)
  if config.tune.method == 'full':
    return loaded
  merge = lambda params: jax.tree.map(
    lambda leaf, of_base: leaf.astype(of_base.dtype),
    tuning.merged(params),
    tuning.without(params),
  )
  config = dataclasses.replace(
    config,
    tune=config_lib.Tune(),
    train=dataclasses.replace(config.train, init_from=''),
  )
  return Loaded(config, loaded.tokenizer, jax.jit(merge)(loaded.params))


def cast(loaded: Loaded, dtype: str) -> Loaded:
  """A model that is neither tuned nor compressed, with another dtype.

  Args:
    loaded: the model.
    dtype: of its parameters, some excepted that are always in float32, and of
      the computation.
  """
  model = dataclasses.replace(
    loaded.config.model, dtype=dtype, param_dtype=dtype
  )
  init = functools.partial(gemini.init_params, gemini.Gemini(model))
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  params = jax.tree.map(
    lambda leaf, shape: leaf.astype(shape.dtype), loaded.params, shapes
  )
  config = dataclasses.replace(loaded.config, model=model)
  return dataclasses.replace(loaded, config=config, params=params)


def open_published(path: pathlib.Path, dtype: str) -> Loaded:
  """A published model on the devices that are here."""
  source = published.open_source(path)
  if source.metadata:
    tokenizer = gguf_tokenizer.from_gguf(source.metadata)
  else:
    tokenizer = huggingface_tokenizer.from_folder(path)
  config = dataclasses.replace(
    source.config(dtype), tokenizer=config_lib.Tokenizer(kind='huggingface')
  )
  tokenizer = huggingface_tokenizer.without_added(
    tokenizer, config.model.vocab_size or 0, str(path)
  )
  config = build.with_vocab(config, tokenizer.vocab_size)
  mesh = build.fsdp_mesh(config.model)
  with (
    tqdm.tqdm(
      total=len(source.tensors), unit='tensor', disable=not sys.stderr.isatty()
    ) as bar,
    sharding.use(mesh),
  ):
    params = source.params(config, mesh, lambda name: bar.update())
  return Loaded(
    config, tokenizer, params, {base_lib.SOURCE: os.path.abspath(path)}
  )
