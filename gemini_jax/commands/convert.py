r"""Brings a published model into a workdir, and a run to where others read it.

  python -m gemini_jax.commands.convert --source=FOLDER|FILE.gguf \
      --target=WORKDIR [--dtype=float32|bfloat16]
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FOLDER \
      --format=huggingface [--dtype=bfloat16]
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FILE.gguf \
      --format=gguf [--type=Q8_0]
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FOLDER \
      --format=peft
  python -m gemini_jax.commands.convert --source=PEFT_FOLDER --base=WORKDIR \
      --target=WORKDIR
  python -m gemini_jax.commands.convert --source=VIT|SIGLIP|WHISPER \
      --base=WORKDIR --target=WORKDIR
  python -m gemini_jax.commands.convert --source=WORKDIR --target=FOLDER \
      --format=stablehlo [--rows=1] [--slots=1024]

The source is a folder of Hugging Face (config.json, safetensors, a tokenizer),
a GGUF file, or a workdir. What becomes a workdir can be given to --mode=eval
and --mode=generate, and to a training as train.init_from. A source that is no
workdir can be written in the other formats too. Of a run that was tuned, peft
keeps the updates of low rank alone; all other formats have them merged into the
matrices. Updates in a folder of PEFT become a run that was tuned from --base.
The encoder of a ViT, SigLIP or Whisper is added to the model of --base, which
then reads pictures or sounds; the projector between the two is yet to train.
StableHLO is the model as programs, which weights/exported_program.py runs
without the code of the model, on CPU, GPU and TPU.

  --format      gemini_jax (a workdir), huggingface, gguf, peft or stablehlo
  --dtype       of the parameters and of the computation, float32 or bfloat16;
                not given: that of a workdir, float32 of what others published
  --type        of the matrices in a GGUF file: F32, F16, BF16 or Q8_0; not
                given: F16
  --checkpoint  of a workdir: latest, or best by validation loss; not given:
                latest
  --base        workdir of the model that a folder of PEFT updates, or that an
                encoder is added to
  --rows        texts that the programs of StableHLO write at once; not given: 1
  --slots       longest text of these, prompt included, in tokens; not given:
                1024

A flag that the source or the format does not read is refused. The target must
not exist. Exit codes: 0 done, 2 a mistake in what was asked for, 130 Ctrl-C.
"""

import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from gemini_jax import command, host
from gemini_jax import config as config_lib
from gemini_jax.commands import convert_sources, convert_targets, program
from gemini_jax.models import gemini
from gemini_jax.weights import peft_files, published_towers

DTYPES = ('float32', 'bfloat16')
_OPTIONS = convert_targets.Options()
# '': not given.
_FLAGS: dict[str, str | None] = {
  'source': None,
  'target': None,
  'format': 'gemini_jax',
  'dtype': '',
  'type': '',
  'checkpoint': '',
  'base': '',
  'rows': '',
  'slots': '',
}
# The format that alone reads a flag.
_FORMATS = {'type': 'gguf', 'rows': 'stablehlo', 'slots': 'stablehlo'}


def main(argv: Sequence[str]) -> int:
  """Converts what the flags name; returns the exit code."""
  work = lambda: convert(**command.parse_flags(argv, _FLAGS))
  return program.main(argv, __doc__, _FLAGS, work)


def convert(
  source: str,
  target: str,
  format: str = 'gemini_jax',
  dtype: str = '',
  type: str = '',
  checkpoint: str = '',
  base: str = '',
  rows: str = '',
  slots: str = '',
):
  """Converts a model; see the module.

  Raises:
    ConfigError: the source cannot be read, the target exists or cannot be
      written, the format has no such models, or a flag is not read.
  """
  config_lib.check(
    format in convert_targets.WRITERS,
    f'--format={format} must be one of {", ".join(convert_targets.WRITERS)}',
  )
  for name, value, accepted in (
    ('dtype', dtype, DTYPES),
    ('type', type, convert_targets.TYPES),
    ('checkpoint', checkpoint, ('latest', 'best')),
  ):
    config_lib.check(
      not value or value in accepted,
      f'--{name}={value} must be one of {", ".join(accepted)}',
    )
  for name, value in (('rows', rows), ('slots', slots)):
    config_lib.check(
      not value or (value.isdecimal() and 0 < int(value) < 2**20),
      f'--{name}={value} must be a number above 0',
    )
  for name, value in (('type', type), ('rows', rows), ('slots', slots)):
    config_lib.check(
      not value or format == _FORMATS[name],
      f'--{name}={value} is of --format={_FORMATS[name]}, not of '
      f'--format={format}',
    )
  options = convert_targets.Options(
    type or _OPTIONS.type,
    int(rows or _OPTIONS.rows),
    int(slots or _OPTIONS.slots),
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
    is_run or not checkpoint,
    f'--checkpoint={checkpoint} is of a workdir, and --source={source} is none',
  )
  is_peft = (from_path / peft_files.CONFIG).exists()
  is_tower = not is_run and published_towers.is_tower(from_path)
  config_lib.check(
    bool(base) == (is_peft or is_tower),
    f'--base={base} is the workdir that a folder of PEFT updates, or that an '
    f'encoder of media is added to; --source={source} is '
    f'{"" if is_peft or is_tower else "not "}such a folder',
  )
  is_merged = format != 'peft' and not (is_peft and format == 'gemini_jax')
  config_lib.check(
    is_merged or not dtype,
    f'--dtype={dtype} is of a whole model, and updates of low rank alone are '
    'written',
  )
  if is_peft:
    base_path = command.folder('base', base)
    loaded = convert_sources.open_peft(from_path, base_path)
  elif is_tower:
    base_path = command.folder('base', base)
    loaded = convert_sources.open_tower(from_path, base_path)
  elif is_run:
    loaded = convert_sources.open_run(from_path, checkpoint or 'latest')
  else:
    loaded = convert_sources.open_published(from_path, dtype or DTYPES[0])
  if is_merged:
    loaded = convert_sources.merged(loaded)
  if dtype:
    loaded = convert_sources.cast(loaded, dtype)
  write(loaded, to_path, format, options)


def write(
  loaded: convert_sources.Loaded,
  target: pathlib.Path,
  format: str = 'gemini_jax',
  options: convert_targets.Options = _OPTIONS,
):
  """Writes a model in a format, whole or not at all, and says so.

  Raises:
    ConfigError: the target cannot be written, or the format has no such models.
  """
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
      dir=target.parent,
      prefix=f'{target.name}.unfinished_',
      ignore_cleanup_errors=True,
    ) as folder:
      # Of the same name, which a format may write.
      draft = pathlib.Path(folder, target.name)
      convert_targets.WRITERS[format](loaded, draft, options)
      draft.rename(target)
  except OSError as error:
    raise config_lib.ConfigError(
      f'--target={target} cannot be written: {error.strerror}'
    ) from error
  print(
    f'{target}: {gemini.param_count(loaded.params):,} parameters, '
    f'{_size(target) / 2**20:,.1f} MiB'
  )


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
