r"""Brings a published model into a workdir, and a run to where others read it.

  python -m gemini_jax.commands.convert --source=FOLDER|FILE.gguf \
      --target=WORKDIR [--dtype=float32|bfloat16]
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FOLDER \
      --format=huggingface
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FILE.gguf \
      --format=gguf [--type=Q8_0]
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FOLDER \
      --format=peft
  python -m gemini_jax.commands.convert --source=PEFT_FOLDER --base=WORKDIR \
      --target=WORKDIR

The source is a folder of Hugging Face (config.json, safetensors, a tokenizer),
a GGUF file, or a workdir. What becomes a workdir can be given to --mode=eval
and --mode=generate, and to a training as train.init_from. A source that is no
workdir can be written in the other formats too. Of a run that was tuned, peft
keeps the updates of low rank alone; all other formats have them merged into the
matrices. Updates in a folder of PEFT become a run that was tuned from --base.

  --format      gemini_jax (a workdir), huggingface, gguf or peft
  --dtype       of the parameters and of the computation in a workdir
  --type        of the matrices in a GGUF file: F32, F16, BF16 or Q8_0
  --checkpoint  of a workdir: latest, or best by validation loss
  --base        workdir of the model that a folder of PEFT updates

The target must not exist. Exit codes: 0 done, 2 a mistake in what was asked
for, 130 Ctrl-C.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import tqdm

from gemini_jax import command, help_page, host
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.checkpoint import checkpointer
from gemini_jax.data import gguf_tokenizer, huggingface_tokenizer
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.parallel import sharding
from gemini_jax.weights import base as base_lib
from gemini_jax.weights import (
  families,
  gguf_file,
  gguf_model,
  importing,
  peft_files,
  published,
  safetensors_files,
  translation,
  tuning,
)

FORMATS = ('gemini_jax', 'huggingface', 'gguf', 'peft')
DTYPES = ('float32', 'bfloat16')
# By llama.cpp's names.
TYPES = {
  'F32': 'float32',
  'F16': 'float16',
  'BF16': 'bfloat16',
  'Q8_0': 'q8_0',
}
_FLAGS: dict[str, str | None] = {
  'source': None,
  'target': None,
  'format': 'gemini_jax',
  'dtype': 'float32',
  'type': 'F16',
  'checkpoint': 'latest',
  'base': '',
}
# Bytes of a file of safetensors, as others shard them.
_SHARD_BYTES = 5 * 10**9


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


def main(argv: Sequence[str]) -> int:
  """Converts what the flags name; returns the exit code."""
  code = help_page.exit_code(argv, __doc__ or '', _FLAGS)
  if code is not None:
    return code
  try:
    convert(**command.parse_flags(argv, _FLAGS))
  except (config_lib.ConfigError, checkpointer.MismatchError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  return 0


def convert(
  source: str,
  target: str,
  format: str = 'gemini_jax',
  dtype: str = 'float32',
  type: str = 'F16',
  checkpoint: str = 'latest',
  base: str = '',
):
  """Converts a model; see the module.

  Raises:
    ConfigError: the source cannot be read, the target exists or cannot be
      written, or the format has no such models.
  """
  for name, value, accepted in (
    ('format', format, FORMATS),
    ('dtype', dtype, DTYPES),
    ('type', type, TYPES),
    ('checkpoint', checkpoint, ('latest', 'best')),
  ):
    config_lib.check(
      value in accepted,
      f'--{name}={value} must be one of {", ".join(accepted)}',
    )
  from_path = command.folder('source', source)
  to_path = command.folder('target', target)
  config_lib.check(from_path.exists(), f'--source={source} does not exist')
  config_lib.check(
    not os.path.lexists(to_path),
    f'--target={target} exists; give another one, or remove it',
  )
  is_run = (from_path / 'checkpoints').is_dir()
  config_lib.check(
    is_run or checkpoint == 'latest',
    f'--checkpoint={checkpoint} is of a workdir, and --source={source} is none',
  )
  is_peft = (from_path / peft_files.CONFIG).exists()
  config_lib.check(
    bool(base) == is_peft,
    f'--base={base} is the workdir that a folder of PEFT updates; '
    f'--source={source} is {"" if is_peft else "not "}such a folder',
  )
  load = _open_run if is_run else _open_published
  if is_peft:
    loaded = _open_peft(from_path, command.folder('base', base))
  else:
    loaded = load(from_path, dtype, checkpoint)
  if format != 'peft' and not (is_peft and format == 'gemini_jax'):
    loaded = _merged(loaded)
  draft = to_path.with_name(f'{to_path.name}.unfinished')
  shutil.rmtree(draft, ignore_errors=True)
  try:
    draft.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[format](loaded, draft, type)
    draft.rename(to_path)
  except OSError as error:
    raise config_lib.ConfigError(
      f'--target={target} cannot be written: {error.strerror}'
    ) from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  print(
    f'{target}: {gemini.param_count(loaded.params):,} parameters, '
    f'{_size(to_path) / 2**20:,.1f} MiB'
  )


def _open_run(path: pathlib.Path, dtype: str, checkpoint: str) -> Loaded:
  """The model that was trained in a workdir."""
  del dtype
  run = run_lib.open_run(config_lib.read(path / config_lib.FILE), path)
  with sharding.use(run.mesh):
    restored = run.restore_params(checkpoint, 'checkpoint')
  return Loaded(run.config, run.tokenizer, restored.params)


def _open_peft(path: pathlib.Path, base_path: pathlib.Path) -> Loaded:
  """The updates in a folder of PEFT, as those of a run tuned from a base."""
  run = run_lib.open_run(
    config_lib.read(base_path / config_lib.FILE), base_path
  )
  train = dataclasses.replace(
    run.config.train, init_from=os.path.abspath(base_path)
  )
  config = dataclasses.replace(run.config, train=train)
  base = base_lib.Base(config)
  plain = build.abstract_params(run.model, run.mesh)
  entries = _entries(config.model, plain)
  with sharding.use(run.mesh):
    adapter = peft_files.read(path, plain, entries)
    config = dataclasses.replace(config, tune=adapter.tune)
    params = base.read(plain)[0]
    identity = base.identity(params)
    abstract = tuning.abstract_params(config, run.model, run.mesh)
    params = tuning.attached(adapter.tune, adapter.own, params, abstract)
  return Loaded(config, run.tokenizer, params, {base_lib.KEY: identity})


def _merged(loaded: Loaded) -> Loaded:
  """The model of a run that was tuned, as one of a run that was not."""
  config = loaded.config
  if config.tune.method == 'full':
    return loaded
  dtype = config.model.param_dtype
  merge = lambda params: jax.tree.map(
    lambda leaf: leaf.astype(dtype), tuning.merged(params)
  )
  config = dataclasses.replace(
    config,
    tune=config_lib.Tune(),
    train=dataclasses.replace(config.train, init_from=''),
  )
  return Loaded(config, loaded.tokenizer, jax.jit(merge)(loaded.params))


def _open_published(path: pathlib.Path, dtype: str, checkpoint: str) -> Loaded:
  """A published model on the devices that are here."""
  del checkpoint
  source = published.open_source(path)
  if source.metadata:
    tokenizer = gguf_tokenizer.from_gguf(source.metadata)
  else:
    tokenizer = huggingface_tokenizer.from_folder(path)
  config = dataclasses.replace(
    source.config(dtype), tokenizer=config_lib.Tokenizer(kind='huggingface')
  )
  config_lib.check(
    tokenizer.vocab_size <= (config.model.vocab_size or 0),
    f'{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model '
    f'{config.model.vocab_size}',
  )
  config = build.with_vocab(config, tokenizer.vocab_size)
  mesh = run_lib.make_mesh(config)
  with (
    tqdm.tqdm(
      total=len(source.tensors), unit='tensor', disable=not sys.stderr.isatty()
    ) as bar,
    sharding.use(mesh),
  ):
    params = source.params(config, mesh, lambda name: bar.update())
  return Loaded(config, tokenizer, params)


def _write_run(loaded: Loaded, target: pathlib.Path, type: str):
  """A workdir with the parameters as the checkpoint of step 0."""
  del type
  target.mkdir()
  loaded.tokenizer.save(target / run_lib.TOKENIZER_FILE)
  checkpoints = run_lib.open_checkpoints(loaded.config, target)
  manifest = {
    'imported': True,
    'data': {'fingerprint': {'tokenizer': loaded.tokenizer.fingerprint}},
  } | loaded.manifest
  own = parameter_groups.own(loaded.config.tune, loaded.params)
  try:
    checkpoints.save(0, {'params': own}, manifest)
    checkpoints.wait()
  finally:
    checkpoints.close()
  text = config_lib.to_json(loaded.config)
  host.replace_file(target / run_lib.CONFIG_FILE, text.encode())


def _write_huggingface(loaded: Loaded, target: pathlib.Path, type: str):
  """A folder that `transformers` loads."""
  del type
  values, made = _exported(loaded, 'huggingface')
  target.mkdir()
  safetensors_files.write_folder(
    target,
    ((name, make()) for name, _, make in made),
    {'format': 'pt'},
    _SHARD_BYTES,
  )
  values |= {
    'pad_token_id': loaded.tokenizer.pad_id,
    'bos_token_id': loaded.tokenizer.bos_id,
    'eos_token_id': loaded.tokenizer.eos_id,
  }
  text = json.dumps(values, indent=2)
  host.replace_file(target / families.CONFIG_FILE, text.encode())
  files = huggingface_tokenizer.huggingface_files(loaded.tokenizer)
  for name, content in files.items():
    host.replace_file(target / name, content)


def _write_gguf(loaded: Loaded, target: pathlib.Path, type: str):
  """A file that llama.cpp runs; vectors stay in float32."""
  values, made = _exported(loaded, 'gguf')
  gguf_model.check(values)
  factors_F = gguf_model.rope_factors(loaded.config.model)
  if factors_F is not None:
    made.append(('rope_freqs.weight', factors_F.shape, lambda: factors_F))
  metadata = gguf_model.metadata_of(values, target.stem)
  metadata |= gguf_tokenizer.gguf_metadata(loaded.tokenizer)
  gguf_file.write_gguf(
    target,
    metadata,
    [
      (name, shape, TYPES[type] if len(shape) > 1 else 'float32', make)
      for name, shape, make in made
    ],
  )


def _write_peft(loaded: Loaded, target: pathlib.Path, type: str):
  """A folder of updates that PEFT puts beside the published base."""
  del type
  entries = _entries(loaded.config.model, _plain(loaded))
  peft_files.write(target, loaded.config, loaded.params, entries)


_WRITERS: dict[str, Callable[[Loaded, pathlib.Path, str], None]] = {
  'gemini_jax': _write_run,
  'huggingface': _write_huggingface,
  'gguf': _write_gguf,
  'peft': _write_peft,
}


def _plain(loaded: Loaded) -> Any:
  """Shapes of the parameters that the model has without tuning."""
  init = functools.partial(
    gemini.init_params, gemini.Gemini(loaded.config.model)
  )
  return nn.unbox(jax.eval_shape(init, jax.random.key(0)))


def _entries(
  model: config_lib.Model, plain: Any
) -> dict[str, translation.Translation]:
  """Where each parameter is in a folder of Hugging Face."""
  values = families.from_model(model)
  return published.export_entries(values, model, plain, 'huggingface')


def _exported(loaded: Loaded, format: translation.Format) -> tuple[Any, Any]:
  """The config.json of a model, and its tensors as others name them."""
  model = loaded.config.model
  values = families.from_model(model)
  entries = published.export_entries(values, model, loaded.params, format)
  return values, importing.export(entries, loaded.params)


def _size(path: pathlib.Path) -> int:
  """Bytes of a file, or of all files in a folder."""
  files = [path] if path.is_file() else path.rglob('*')
  return sum(file.stat().st_size for file in files if file.is_file())


def run() -> int:
  """The command as a process: `main` with this process's arguments."""
  host.start_output()
  return main(sys.argv)


if __name__ == '__main__':
  sys.exit(run())
