"""Which ids of a tokenizer from outside have a role, and its chat template."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

from gemini_jax import config as config_lib

# The roles that have a token of their own.
NAMES = ('bos', 'eos', 'pad', 'unk')
# Published chat templates have at most some ten thousand characters.
MAX_TEMPLATE = 1 << 20
# Ids that end what a model writes; published models have at most five.
_MAX_ENDS = 1000


@dataclasses.dataclass(frozen=True)
class Roles:
  """Ids with a role, as `Tokenizer` describes them.

  Raises:
    ConfigError: a field has a wrong type.
  """

  bos_id: int
  eos_id: int
  pad_id: int
  unk_id: int | None = None
  end_ids: tuple[int, ...] = ()
  adds_bos: bool = True
  chat_template: str = ''

  def __post_init__(self):
    ends = tuple(dict.fromkeys((self.eos_id, *self.end_ids)))
    object.__setattr__(self, 'end_ids', ends)
    config_lib.check(
      len(ends) <= _MAX_ENDS,
      f'a tokenizer with {len(ends)} ids that end texts',
    )
    config_lib.check(
      type(self.chat_template) is str
      and len(self.chat_template) <= MAX_TEMPLATE,
      f'a chat template that is no text of at most {MAX_TEMPLATE:,} characters',
    )
    config_lib.check(
      type(self.adds_bos) is bool, 'a tokenizer whose adds_bos is not a boolean'
    )

  def check(self, size: int):
    """ConfigError unless all ids are below `size`."""
    named = {
      'bos': self.bos_id,
      'eos': self.eos_id,
      'pad': self.pad_id,
      'unk': 0 if self.unk_id is None else self.unk_id,
    } | {f'end {i}': value for i, value in enumerate(self.end_ids)}
    for name, value in named.items():
      config_lib.check(
        type(value) is int and 0 <= value < size,
        f'a tokenizer whose {name} id {value!r:.80} is not below {size:,}, the '
        'size of its vocabulary',
      )

  def to_json(self) -> dict[str, Any]:
    """The fields as JSON values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Self:
    """What `to_json` wrote.

    Raises:
      ConfigError: a field is missing or has a wrong type.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    config_lib.check(
      isinstance(values, dict)
      and set(values) == set(names)
      and isinstance(values['end_ids'], list)
      and all(type(value) is int for value in values['end_ids']),
      f'a tokenizer whose roles are not {", ".join(names)}',
    )
    return cls(**{**values, 'end_ids': tuple(values['end_ids'])})


def from_files(
  named: Mapping[str, Any],
  models: tuple[Mapping[str, Any], ...],
  id_of: Callable[[str], int | None],
  template: str,
) -> Roles:
  """Ids with a role, as the files of a folder name them.

  Args:
    named: names of tokens, as `bos_token`.
    models: `generation_config.json` and `config.json`, which give ids.
    id_of: the id of a token, or None.
    template: of a chat.

  Raises:
    ConfigError: no token ends a text.
  """
  ids: dict[str, int | None] = {}
  for role in NAMES:
    token = named.get(f'{role}_token')
    token = token.get('content') if isinstance(token, dict) else token
    ids[role] = id_of(token) if isinstance(token, str) else None
    for model in models:
      if ids[role] is None:
        given = _integers(model.get(f'{role}_token_id'))
        ids[role] = given[0] if given else None
  eos = ids['eos']
  config_lib.check(
    eos is not None,
    'no token ends a text: neither eos_token in tokenizer_config.json nor '
    'eos_token_id in generation_config.json',
  )
  assert eos is not None
  ends = [i for model in models for i in _integers(model.get('eos_token_id'))]
  return Roles(
    bos_id=eos if ids['bos'] is None else ids['bos'],
    eos_id=eos,
    pad_id=eos if ids['pad'] is None else ids['pad'],
    unk_id=ids['unk'],
    end_ids=tuple(ends),
    adds_bos=named.get('add_bos_token') is not False,
    chat_template=template,
  )


def _integers(value: Any) -> list[int]:
  """The ids in an id, a list of ids, or anything else."""
  values = value if isinstance(value, list) else [value]
  return [item for item in values if type(item) is int]
