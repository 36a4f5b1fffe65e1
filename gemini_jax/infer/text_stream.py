"""The text of a sample, as its tokens come."""

from collections.abc import Sequence

import numpy as np

from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.infer import prompts as prompts_lib


class TextStream:
  """The text of one sample, of which each token is decoded once."""

  def __init__(
    self, tokenizer: tokenizer_lib.Tokenizer, prompt: prompts_lib.Prompt
  ):
    self._pieces: list[str] = []
    # Ids after a prompt continue its text; an answer begins one.
    self._decoder = tokenizer_lib.StreamDecoder(
      tokenizer, continues=bool(prompt.prefix)
    )

  @property
  def text(self) -> str:
    """The text so far."""
    return ''.join(self._pieces)

  def push(self, tokens: Sequence[int] | np.ndarray) -> str:
    """The characters that more tokens complete."""
    piece = ''.join(self._decoder.push(int(token)) for token in tokens)
    self._pieces.append(piece)
    return piece

  def finish(self) -> str:
    """What is left at the end of a sample; further calls give nothing."""
    piece = self._decoder.flush()
    self._pieces.append(piece)
    return piece
