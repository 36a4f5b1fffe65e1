"""How GGUF files say that text is cut before BPE: `tokenizer.ggml.pre`.

The names are those of llama.cpp (src/llama-vocab.cpp), and so are the patterns,
apart from a few where it approximates the model's own, which stand here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gemini_jax import config as config_lib
from gemini_jax.data import library_tokenizer, tokenizer_json

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'
_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
)
_LLAMA3 = (
  rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|'
  rf' ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}'
)
_QWEN2 = _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_QWEN35 = (
  rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|'
  rf' ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}'
)
_UPPER, _LOWER = (
  r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]',
  r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]',
)
_CASED = (
  rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+ENDING|'
  rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*ENDING|'
  rf'\p{{N}}DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}'
)
_TEKKEN = _CASED.replace('ENDING', '').replace('DIGITS', '')
_GPT4O = _CASED.replace('ENDING', f'{_CONTRACTIONS}?').replace(
  'DIGITS', '{1,3}'
)
_ASCII_PUNCTUATION = r'[!"#$%&' + r"'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3 = (
  rf'{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|'
  rf' ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}'
)
_HAN_KANA = '[一-龥\u3040-\u309f\u30a0-\u30ff]+'
_BAILING = (
  r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+'
)
_SEED_CODER = (
  rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|'
  rf' ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}'
)


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
  """How text is cut, and what goes with it.

  Attributes:
    patterns: each cuts the pieces of the one before into matches and the rest.
    ignore_merges: a piece that is a token is not put together by merges.
    adds_bos: whether a text begins with bos where the file does not say.
    is_byte_level: whether tokens are in GPT-2's characters for bytes; else
      spaces are written as a symbol, and unknown characters as bytes.
  """

  patterns: tuple[str, ...]
  ignore_merges: bool = False
  adds_bos: bool = False
  is_byte_level: bool = True


_OF_GPT2 = PreTokenizer((_GPT2,))
_OF_STARCODER = PreTokenizer((r'\p{N}', _GPT2))
_OF_LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)
_OF_QWEN2 = PreTokenizer((_QWEN2,))
_OF_GPT4O = PreTokenizer((_GPT4O,))
_OF_DEEPSEEK3 = PreTokenizer((r'\p{N}{1,3}', _HAN_KANA, _DEEPSEEK3))
_OF_BAILING = PreTokenizer((_BAILING,))

# By name; where several cut a text alike, the first is written to new files.
BY_NAME = {
  'gpt-2': _OF_GPT2,
  'smollm': _OF_STARCODER,
  'llama-bpe': _OF_LLAMA3,
  'qwen2': _OF_QWEN2,
  'tekken': PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
  'gpt-4o': _OF_GPT4O,
  'default': PreTokenizer(
    (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', '[0-9][0-9][0-9]')
  ),
  'dbrx': PreTokenizer((_LLAMA3,)),
  'smaug-bpe': PreTokenizer((_LLAMA3,)),
  'glm4': PreTokenizer((_LLAMA3,)),
  'chatglm-bpe': PreTokenizer((_LLAMA3,)),
  'qwen35': PreTokenizer((_QWEN35,)),
  'deepseek-v3': _OF_DEEPSEEK3,
  'hunyuan-dense': _OF_DEEPSEEK3,
  'joyai-llm': _OF_DEEPSEEK3,
  'deepseek-coder': PreTokenizer(
    (
      r'[\r\n]',
      r'\s?\p{L}+',
      r'\s?\p{P}+',
      '[一-龥\u0800-一\uac00-\ud7ff]+',
      r'\p{N}',
    )
  ),
  'falcon': PreTokenizer((r'[\p{P}\$\+<=>\^~\|`]+', _GPT2, '[0-9][0-9][0-9]')),
  'seed-coder': PreTokenizer((_SEED_CODER,)),
  'gemma4': PreTokenizer(('[^\n]+|[\n]+',), adds_bos=True, is_byte_level=False),
  **dict.fromkeys(
    (
      'llama3',
      'llama-v3',
      'falcon3',
      'falcon-h1',
      'pixtral',
      'midm-2.0',
      'lfm2',
    ),
    _OF_LLAMA3,
  ),
  **dict.fromkeys(
    (
      *('starcoder', 'refact', 'command-r', 'codeshell', 'exaone'),
      *('minerva-7b', 'mellum2'),
    ),
    _OF_STARCODER,
  ),
  **dict.fromkeys(
    (
      *('phi-2', 'jina-es', 'jina-de', 'gigachat', 'a.x-4.0', 'mellum'),
      *('modern-bert', 'mpt', 'olmo', 'jais', 'trillion', 'granite-docling'),
      'exaone4',
    ),
    _OF_GPT2,
  ),
  **dict.fromkeys(
    (
      *('deepseek-r1-qwen', 'kormo', 'f2llmv2', 'megrez', 'stablelm2'),
      *('hunyuan', 'solar-open', 'grok-2'),
    ),
    _OF_QWEN2,
  ),
  **dict.fromkeys(('llama4', 'kanana2', 'talkie', 'minimax-m2'), _OF_GPT4O),
  **dict.fromkeys(('bailingmoe', 'bailingmoe2', 'llada-moe'), _OF_BAILING),
}

# Cut in the same way only by the same rules.
_PROBE = (
  "I'm you're HE'S they'LL  it's 1 12 123 1234 12345 ²½ a1b2 camelCase HTTPX"
  '\n\n\n  indented\n\tif x != 3:\r\n    return [a["b"], c.d]  \n'
  ' ...!? --> <=> $5.99 ~^|` a_b #1 漢字かな交じり文。한국어 Привет e\u0301a '
  'हिन्दी ﷺ 😀👍🏽 \u00a0\u2003x  \t '
)


def sections(rules: PreTokenizer) -> dict[str, Any]:
  """Normalizer, pre-tokenizer and decoder of a `tokenizer.json`, by name."""
  cuts: list[dict[str, Any]] = [
    {
      'type': 'Split',
      'pattern': {'Regex': pattern},
      'behavior': 'Isolated',
      'invert': False,
    }
    for pattern in rules.patterns
  ]
  replace = lambda pattern, content: {
    'type': 'Replace',
    'pattern': {'String': pattern},
    'content': content,
  }
  space = '▁'
  if rules.is_byte_level:
    byte_level = {
      'type': 'ByteLevel',
      'add_prefix_space': False,
      'trim_offsets': False,
      'use_regex': False,
    }
    cuts.append(byte_level)
    normalizer, decoder = None, byte_level
  else:
    normalizer = replace(' ', space)
    decoders = [replace(space, ' '), {'type': 'ByteFallback'}, {'type': 'Fuse'}]
    decoder = {'type': 'Sequence', 'decoders': decoders}
  return {
    'normalizer': normalizer,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': cuts},
    'decoder': decoder,
  }


def name_of(content: Mapping[str, Any]) -> str:
  """The name of the rules that cut text as a `tokenizer.json` does.

  Raises:
    ConfigError: none does.
  """
  if not content['model']['merges']:
    return next(iter(BY_NAME))
  ignores = bool(content['model'].get('ignore_merges'))
  wanted = _pieces(content)
  names = sorted(
    BY_NAME,
    key=lambda name: BY_NAME[name].ignore_merges != ignores,
  )
  for name in names:
    rules = BY_NAME[name]
    if rules.is_byte_level and _pieces(sections(rules)) == wanted:
      return name
  raise config_lib.ConfigError(
    'no pre-tokenizer of GGUF cuts text as this tokenizer.json does: '
    f'{content.get("pre_tokenizer")!r:.200}'
  )


def _pieces(content: Mapping[str, Any]) -> list[str]:
  """How a pre-tokenizer cuts a text that tells many of them apart."""
  bare = tokenizer_json.new_content(
    {'type': 'BPE', 'vocab': {}, 'merges': []},
    (),
    None,
    pre_tokenizer=content['pre_tokenizer'],
  )
  with library_tokenizer.library_errors('a pre-tokenizer that cuts no text'):
    library = library_tokenizer.load_library(bare)
    pieces = library.pre_tokenizer.pre_tokenize_str(_PROBE)
  return [piece for piece, _ in pieces]
