"""Prompts as a model reads them: laid out as its training data are."""

import dataclasses
from typing import Any

import numpy as np

from gemini_jax import config as config_lib
from gemini_jax.data import chat, transforms
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.infer import request as request_lib
from gemini_jax.models import gemini

# A text, a task's inputs, or the messages of a conversation.
Asked = str | request_lib.Request | chat.Messages

# `generate.chat` where the prompt is the only message.
_PROMPT = 'prompt'


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt as the model reads it."""

  text: str
  # What the decoder starts from, and what the encoder reads.
  tokens: np.ndarray
  inputs: np.ndarray | None
  # Text of the tokens that the output continues; '' where it answers them.
  prefix: str
  # Where it is the inputs of a task.
  request: request_lib.Request | None = None
  # Characters of it that the tokenizer does not know.
  unknown: str = ''


def read_prompt(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  prompt: Asked,
) -> Prompt:
  """The tokens of a prompt, laid out as the training data are.

  Where those are tasks, a text fills in the one that reads text.

  Raises:
    ConfigError: no task, or more than one, reads text and writes it.
  """
  config_lib.check(
    not config.model.num_classes,
    'this run has an output of its own and writes no text; use --mode=predict',
  )
  if not isinstance(prompt, str | request_lib.Request):
    return _conversation(config, model, tokenizer, prompt, 'messages')
  if config.generate.chat:
    return _of_chat(config, model, tokenizer, prompt)
  if isinstance(prompt, str) and config.data.tasks:
    options = dataclasses.replace(config.generate, prompt=prompt)
    filled = dataclasses.replace(config, generate=options)
    prompt = request_lib.from_options(filled, tokenizer)
  if isinstance(prompt, request_lib.Request):
    question = transforms.question(prompt.tokens, config.data, tokenizer)
    return Prompt(prompt.text, *question, '', prompt, prompt.unknown)
  ids = np.asarray(tokenizer.encode(prompt), np.int32)
  texts = dataclasses.replace(config.generate, prompt=prompt).texts
  unknown = request_lib.unknown_characters(tokenizer, texts)
  continues = not (config.data.pairs or model.config.cross)
  if continues and config.generate.source not in ('prompt', 'prior'):
    # The text is in z; the decoder begins from nothing.
    ids = ids[:0]
  question = transforms.question(ids, config.data, tokenizer)
  prefix = tokenizer.decode(ids) if continues else ''
  return Prompt(prompt, *question, prefix, unknown=unknown)


def _of_chat(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  prompt: str | request_lib.Request,
) -> Prompt:
  """The conversation of `generate.chat`, with a prompt as its last message.

  Raises:
    ConfigError: it is no conversation, or see `_conversation`.
  """
  field = f'generate.chat={config.generate.chat!r}'
  config_lib.check(
    isinstance(prompt, str),
    f'{field} needs a decoder of plain text or of conversations',
  )
  messages: list[Any] = []
  try:
    if config.generate.chat != _PROMPT:
      messages += chat.read_file(config.generate.chat)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{field}: {error}') from error
  if prompt or not messages:
    messages.append({'role': 'user', 'content': prompt})
  return _conversation(config, model, tokenizer, messages, field)


def _conversation(
  config: config_lib.Config,
  model: gemini.Gemini,
  tokenizer: tokenizer_lib.Tokenizer,
  messages: chat.Messages,
  field: str,
) -> Prompt:
  """A conversation that the model is to answer.

  Args:
    config: of the run.
    model: what answers.
    tokenizer: of the model.
    messages: of the conversation.
    field: where they come from, for messages of errors.

  Raises:
    ConfigError: the model or its data have no conversations, or the tokenizer
      has no chat template.
  """
  config_lib.check(
    not (model.config.cross or config.data.pairs),
    f'{field} needs a decoder of plain text or of conversations',
  )
  config_lib.check(
    bool(tokenizer.chat_template),
    f'{field} needs a chat template, and the tokenizer of this run has none',
  )
  try:
    tokens = chat.prompt(tokenizer, messages)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'{field}: {error}') from error
  config_lib.check(len(tokens) > 0, f'{field}: its template writes nothing')
  texts = [str(message['content']) for message in messages]
  unknown = request_lib.unknown_characters(tokenizer, texts)
  return Prompt(texts[-1], tokens, None, '', unknown=unknown)
