"""Runs a model that `stablehlo` has written, without the code of the model.

  model = exported_program.load('folder')
  (tokens,) = model.generate([prompt_ids], max_tokens=32)

B rows, V vocabulary.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from gemini_jax import config as config_lib
from gemini_jax import host
from gemini_jax.weights import safetensors_files
from gemini_jax.weights import tensors as tensors_lib

FORMAT = 'gemini_jax.stablehlo.1'
MANIFEST, PARAMS, ENDING = 'manifest.json', 'params.safetensors', '.stablehlo'
_MAX_PROGRAM = 1 << 28


@dataclasses.dataclass(frozen=True)
class Program:
  """A model that was exported.

  Attributes:
    manifest: what its folder says of it.
    params: by name.
    prefill: reads a piece of each prompt.
    decode: reads a token of each row.
  """

  manifest: dict[str, Any]
  params: dict[str, jax.Array]
  prefill: Callable[..., Any]
  decode: Callable[..., Any]

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Container[int] = (),
  ) -> list[list[int]]:
    """The likeliest tokens after each prompt, without what ends it.

    Args:
      prompts: at most `manifest['rows']`, none of them empty.
      max_tokens: of an answer.
      end_ids: what ends a row.

    Raises:
      ConfigError: there are too many prompts, or one does not fit.
    """
    rows, slots = self.manifest['rows'], self.manifest['slots']
    config_lib.check(
      0 < len(prompts) <= rows, f'{len(prompts)} prompts must be 1 to {rows}'
    )
    lengths_B = np.zeros(rows, np.int32)
    lengths_B[: len(prompts)] = [len(prompt) for prompt in prompts]
    config_lib.check(
      min(map(len, prompts)) > 0
      and max(map(len, prompts)) + max_tokens <= slots,
      f'a prompt must have 1 to {slots - max_tokens} tokens, to leave '
      f'{max_tokens} of {slots}',
    )
    logits_BV, cache = self._read_prompts(prompts, lengths_B)
    texts: list[list[int]] = [[] for _ in prompts]
    done_B = lengths_B == 0
    for index in range(max_tokens):
      token_B = np.asarray(jnp.argmax(logits_BV, axis=-1), np.int32)
      for row, text in enumerate(texts):
        done_B[row] |= int(token_B[row]) in end_ids
        if not done_B[row]:
          text.append(int(token_B[row]))
      if done_B.all() or index == max_tokens - 1:
        break
      logits_BV, cache = self.decode(
        self.params,
        cache,
        token_B[:, None],
        (~done_B).astype(np.int32),
        lengths_B + np.int32(index),
      )
    return texts

  def _read_prompts(
    self, prompts: Sequence[Sequence[int]], lengths_B: np.ndarray
  ) -> tuple[jax.Array, Any]:
    """Logits after the last token of each prompt, and the filled cache."""
    piece, shape = self.manifest['piece'], self.manifest['cache']
    cache = {
      name: jnp.zeros(shape['shape'], shape['dtype'])
      for name in ('key', 'value')
    }
    logits_BV = jnp.zeros((len(lengths_B), self.manifest['vocab_size']))
    for start in range(0, int(lengths_B.max()), piece):
      tokens_BT = np.zeros((len(lengths_B), piece), np.int32)
      for row, prompt in enumerate(prompts):
        part = prompt[start : start + piece]
        tokens_BT[row, : len(part)] = part
      counts_B = np.clip(lengths_B - start, 0, piece).astype(np.int32)
      starts_B = np.full_like(counts_B, start)
      new_BV, cache = self.prefill(
        self.params, cache, tokens_BT, counts_B, starts_B
      )
      logits_BV = jnp.where(counts_B[:, None] > 0, new_BV, logits_BV)
    return logits_BV, cache


def load(folder: str | pathlib.Path) -> Program:
  """Opens a folder that `stablehlo.write` made.

  Raises:
    ConfigError: a file is missing or damaged, does not fit the others, or was
      written for other platforms or by a version of jax that this one cannot
      read.
  """
  config_lib.optional('flatbuffers', 'StableHLO needs flatbuffers', 'weights')
  folder = pathlib.Path(folder)
  with config_lib.reading(folder):
    manifest, programs = _read_programs(folder)
  tensors = safetensors_files.open_file(folder / PARAMS)
  with config_lib.reading(folder):
    for name, program in programs.items():
      piece = manifest['piece'] if name == 'prefill' else 1
      _check_sizes(manifest | {'piece': piece}, tensors, name, program)
  params = {
    name: jnp.asarray(tensor.read()) for name, tensor in tensors.items()
  }
  jitted = {
    name: jax.jit(program.call, donate_argnums=1)
    for name, program in programs.items()
  }
  return Program(manifest, params, **jitted)


def _read_programs(
  folder: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, jax.export.Exported]]:
  """The manifest and the programs by name."""
  try:
    manifest = json.loads(host.read_file(folder / MANIFEST))
    config_lib.check(
      isinstance(manifest, dict) and manifest.get('format') == FORMAT,
      f'{MANIFEST} is not that of a model in {FORMAT}',
    )
    contents = {
      name: host.read_file(folder / f'{name}{ENDING}', _MAX_PROGRAM)
      for name in ('prefill', 'decode')
    }
    platform = jax.default_backend()
    platform = 'cuda' if platform == 'gpu' else platform
    config_lib.check(
      platform in manifest['platforms'],
      f'runs on {", ".join(manifest["platforms"])}, not {platform}',
    )
    programs = {}
    for name, content in contents.items():
      config_lib.check(
        hashlib.sha256(content).hexdigest() == manifest['sha256'][name],
        f'{name}{ENDING} is damaged: its checksum is another',
      )
      programs[name] = jax.export.deserialize(bytearray(content))
  except OSError as error:
    raise config_lib.ConfigError(
      f'is no exported model: {error.filename}: {error.strerror}'
    ) from error
  except config_lib.ConfigError:
    raise
  except host.MALFORMED as error:
    raise config_lib.ConfigError(
      f'is damaged, or was written by a jax that is not {jax.__version__} and '
      f'cannot be read: {error}'
    ) from error
  return manifest, programs


def _check_sizes(
  manifest: dict[str, Any],
  tensors: Mapping[str, tensors_lib.Tensor],
  name: str,
  program: jax.export.Exported,
):
  """Sees that a program reads and writes what the other files say.

  Args:
    manifest: with the tokens of a piece that this program reads.
    tensors: of the parameters, by name.
    name: of the program.
    program: of prefill or decode.

  Raises:
    ConfigError: it has other sizes.
  """
  arguments, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
  params, cache, tokens_BT, counts_B, starts_B = arguments
  logits_BV, _ = jax.tree.unflatten(program.out_tree, program.out_avals)
  rows, piece = manifest['rows'], manifest['piece']
  shape, dtype = manifest['cache']['shape'], manifest['cache']['dtype']
  form = lambda aval: (list(aval.shape), str(aval.dtype))
  for what, said, found in (
    ('slots', manifest['slots'], cache['key'].shape[3]),
    *((f'cache of {key}s', (shape, dtype), form(cache[key])) for key in cache),
    ('tokens', ([rows, piece], 'int32'), form(tokens_BT)),
    ('counts', ([rows], 'int32'), form(counts_B)),
    ('starts', ([rows], 'int32'), form(starts_B)),
    ('logits', ([rows, manifest['vocab_size']], 'float32'), form(logits_BV)),
    ('parameters', sorted(tensors), sorted(params)),
    *(
      (key, (list(tensors[key].shape), tensors[key].dtype), form(params[key]))
      for key in params.keys() & tensors.keys()
    ),
  ):
    config_lib.check(
      repr(said) == repr(found),
      f'{name}{ENDING} does not fit the other files: {what} {said}, and '
      f'{found} in the program',
    )
