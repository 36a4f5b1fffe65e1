"""Models as others publish them: a Hugging Face folder or a GGUF file."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from gemini_jax import config as config_lib
from gemini_jax.models import build
from gemini_jax.weights import (
  config_json,
  families,
  gguf_file,
  gguf_model,
  importing,
  safetensors_files,
  translation,
)
from gemini_jax.weights import tensors as tensors_lib

# Tensors that a file may hold and that no model needs: rotary frequencies,
# which follow from the config, and other parts of a multimodal model.
_UNUSED = {
  'huggingface': r'.*\.rotary_emb\.inv_freq|vision_tower\..*|'
  r'multi_modal_projector\..*',
  'gguf': r'rope_freqs\.weight',
}
# What begins the names of the text model's tensors in a multimodal one.
_TEXT_MODEL = ('language_model.', 'model.language_model.')


@dataclasses.dataclass(frozen=True)
class Published:
  """A published model that is open.

  Attributes:
    path: of the folder or file.
    values: what its config.json says, or would say.
    metadata: of a GGUF file; {} of a folder.
    tensors: by name.
  """

  path: pathlib.Path
  values: dict[str, Any]
  metadata: dict[str, Any]
  tensors: Mapping[str, tensors_lib.Tensor]

  @property
  def format(self) -> translation.Format:
    """Whose names the tensors bear."""
    return 'gguf' if self.metadata else 'huggingface'

  def config(self, dtype: str) -> config_lib.Config:
    """A config with our model that computes the same.

    Args:
      dtype: of the parameters and of the computation.

    Raises:
      ConfigError: there is no such model.
    """
    with config_lib.reading(self.path):
      model = families.to_model(self.values, dtype)
    data = config_lib.Data()
    length = min(data.sequence_length, model.max_length)
    return config_lib.Config(
      model=model, data=dataclasses.replace(data, sequence_length=length)
    )

  def params(
    self,
    config: config_lib.Config,
    mesh: Mesh,
    on_tensor: Callable[[str], Any] = lambda name: None,
  ) -> Any:
    """The parameters of a config with this model, on a mesh.

    Raises:
      ConfigError: a tensor is missing, unknown or of a wrong shape, or an axis
        of the mesh does not divide a parameter.
    """
    abstract = build.abstract_params(build.make_model(config, mesh), mesh)
    family = families.family_of(self.values)
    is_gguf = self.format == 'gguf'
    entries = translation.translations(
      config.model,
      abstract,
      self.format,
      norm_offset=gguf_model.NORM_OFFSET if is_gguf else family.norm_offset,
      permutes=is_gguf and gguf_model.permutes(self.values['model_type']),
    )
    ignored = _UNUSED[self.format]
    if config.model.tie_embeddings:
      ignored += r'|lm_head\.weight'
    translation.check_names(
      entries,
      {name: tensor.shape for name, tensor in self.tensors.items()},
      ignored,
      str(self.path),
    )
    return importing.load(entries, self.tensors, abstract, on_tensor)


def open_source(path: pathlib.Path) -> Published:
  """Opens a Hugging Face folder or a GGUF file.

  Raises:
    ConfigError: it is neither, or is damaged.
  """
  if path.is_dir():
    values = families.read(path)
    tensors = safetensors_files.open_folder(path)
    return Published(path, values, {}, _of_text_model(tensors))
  config_lib.check(
    path.is_file(), f'{path} is neither a folder nor a file that can be read'
  )
  file = gguf_file.open_gguf(path)
  try:
    values = gguf_model.config_values(file.metadata, file.tensors)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{path}: {error}') from error
  return Published(path, values, file.metadata, file.tensors)


def _of_text_model(
  tensors: Mapping[str, tensors_lib.Tensor],
) -> dict[str, tensors_lib.Tensor]:
  """The tensors under the names that a model of text alone gives them."""
  renamed = {}
  for name, tensor in tensors.items():
    for prefix in _TEXT_MODEL:
      if name.startswith(prefix):
        rest = name.removeprefix(prefix)
        name = (
          rest if rest.startswith(('model.', 'lm_head.')) else f'model.{rest}'
        )
        break
    config_lib.check(name not in renamed, f'there are two tensors {name}')
    renamed[name] = tensor
  return renamed


def export_entries(
  values: Mapping[str, Any],
  model: config_lib.Model,
  params: Any,
  format: translation.Format,
) -> dict[str, translation.Translation]:
  """Where each of our parameters goes in a published model.

  Args:
    values: of `config_json.from_model`.
    model: ours.
    params: its parameters.
    format: of the published model.
  """
  is_gguf = format == 'gguf'
  family = families.family_of(values)
  return translation.translations(
    model,
    jax.eval_shape(lambda: params),
    format,
    norm_offset=gguf_model.NORM_OFFSET if is_gguf else family.norm_offset,
    permutes=is_gguf and values['model_type'] in ('llama', 'mistral'),
  )


def huggingface_entries(
  model: config_lib.Model, params: Any
) -> dict[str, translation.Translation]:
  """Where each of our parameters is in a folder of Hugging Face.

  Raises:
    ConfigError: no supported family has such models.
  """
  values = config_json.from_model(model)
  return export_entries(values, model, params, 'huggingface')
