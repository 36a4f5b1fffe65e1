"""Worker process that times another library's decoding for commands/bench.

Reads a number from each line of its input and answers with the seconds that so
many times TOKENS tokens of each row take, after a prompt of a few tokens.
"""

import functools
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

TOKENS = 16


def llama_cpp(path: str, num_rows: int, threads: int) -> Callable[[], float]:
  """llama.cpp by xllamacpp: greedy, each row a request of its own."""
  xllamacpp: Any = importlib.import_module('xllamacpp')
  params = xllamacpp.CommonParams()
  params.model.path = path
  params.n_ctx, params.n_parallel = 512 * num_rows, num_rows
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
  params.verbosity = -1
  server = xllamacpp.Server(params)
  request = {'n_predict': TOKENS, 'ignore_eos': True, 'temperature': 0.0}
  request['cache_prompt'] = False

  def run() -> float:
    seconds = []

    def row(index: int):
      answer = server.handle_completions(
        request | {'prompt': f'Number {index}: the'}
      )
      timings = answer['timings']
      seconds.append(timings['predicted_per_token_ms'] / 1e3 * TOKENS)

    rows = [threading.Thread(target=row, args=(i,)) for i in range(num_rows)]
    for thread in rows:
      thread.start()
    for thread in rows:
      thread.join()
    return max(seconds)

  return run


def transformers(
  path: str, num_rows: int, threads: int, dtype: str
) -> Callable[[], float]:
  """Transformers with torch: greedy, one batch with a cache."""
  import torch
  import transformers as library

  torch.set_num_threads(threads)
  model = library.AutoModelForCausalLM.from_pretrained(
    path, dtype=getattr(torch, dtype)
  )

  @torch.inference_mode()
  def run() -> float:
    output = model(torch.ones((num_rows, 4), dtype=torch.long), use_cache=True)
    begin = time.perf_counter()
    for _ in range(TOKENS):
      tokens = output.logits[:, -1:].argmax(-1)
      cache = output.past_key_values
      output = model(tokens, past_key_values=cache, use_cache=True)
    return time.perf_counter() - begin

  return run


LIBRARIES = {
  'llama.cpp': llama_cpp,
  'transformers float32': functools.partial(transformers, dtype='float32'),
  'transformers bfloat16': functools.partial(transformers, dtype='bfloat16'),
}


def main():
  """Serves timings until the input ends."""
  library, path, num_rows, threads = sys.argv[1:]
  run = LIBRARIES[library](path, int(num_rows), int(threads))
  for line in sys.stdin:
    seconds = [run() for _ in range(int(line))]
    print('TIMES ' + json.dumps(seconds), flush=True)


if __name__ == '__main__':
  main()
