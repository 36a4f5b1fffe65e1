"""Data sets that TensorFlow Datasets (TFDS) has prepared."""

import os
import pathlib
from typing import Any

from absl import logging

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.data import readers


def read(where: str, split: str, config: config_lib.Data) -> readers.Rows:
  """A split of a TFDS data set, in the notation of TFDS."""
  import tensorflow_datasets

  folder = config.data_dir and str(host.expand_path(config.data_dir))
  # A prepared data set is read without its builder's code.
  prepared = _newest(folder, where) if folder else None
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)  # TFDS logs every file that it opens.
  try:
    builder: Any
    if prepared:
      builder = tensorflow_datasets.builder_from_directory(prepared)
    else:
      builder = tensorflow_datasets.builder(
        where, data_dir=folder, file_format='array_record'
      )
    if not builder.info.splits and not folder:
      builder.download_and_prepare()
    splits = builder.info.splits
  except Exception as error:  # TFDS, builders and network raise anything.
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise config_lib.ConfigError(
      f'{reason.rstrip(".")}; {_remedy(folder)}'
    ) from error
  finally:
    logging.set_verbosity(verbosity)
  config_lib.check(
    bool(splits), f'no prepared data set {where!r}; {_remedy(folder)}'
  )
  accepted = f'splits: {", ".join(splits)}'
  config_lib.check(bool(split), f'write tfds:{where}#SPLIT; {accepted}')
  fields = builder.info.features
  # Pictures stay encoded, which saves time and an image library.
  undecoded = {
    name: tensorflow_datasets.decode.SkipDecoding()
    for name, feature in fields.items()
    if isinstance(feature, tensorflow_datasets.features.Image)
  }
  try:
    records = builder.as_data_source(split=split, decoders=undecoded)
    size = len(records)
  except (ValueError, KeyError, AssertionError) as error:
    raise config_lib.ConfigError(
      f'{split!r} is not a split; {accepted}'
    ) from error
  config_lib.check(size > 0, f'selects no record; {accepted}')
  sizes = [(name, s.num_examples, s.num_bytes) for name, s in splits.items()]
  identity = f'{builder.info.full_name} {builder.data_path} {split} {sizes}'
  labels = {
    # Of a sequence, those of its elements.
    name: getattr(feature, 'feature', feature)
    for name, feature in fields.items()
  }
  names = {
    name: tuple(label.names)
    for name, label in labels.items()
    if isinstance(label, tensorflow_datasets.features.ClassLabel)
    and label.names
  }
  return readers.Rows(records, identity, tuple(sorted(fields)), names)


def _newest(folder: str, where: str) -> str | None:
  """The folder of a prepared data set `NAME[/CONFIG][:VERSION]`, if any."""
  name, _, version = where.partition(':')
  folders = [
    path.parent
    for path in pathlib.Path(folder, name).glob('*/dataset_info.json')
    if version in ('', path.parent.name)
  ]
  number = lambda path: [
    int(part) if part.isdecimal() else -1 for part in path.name.split('.')
  ]
  return str(max(folders, key=number)) if folders else None


def _remedy(folder: str | None) -> str:
  if not folder:
    return 'set data.data_dir to a folder of prepared data sets'
  if not os.path.isdir(folder):
    return f'data.data_dir={folder!r} is not a folder'
  names = sorted(path.name for path in pathlib.Path(folder).iterdir())
  return f'data.data_dir={folder!r} holds {", ".join(names) or "nothing"}'
