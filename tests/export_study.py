r"""A tuned model where it goes: transformers, llama.cpp, compiled programs.

  python tests/export_study.py WORKDIR

WORKDIR is a run that `experiments/fine_tune.py` made of a published decoder.
Exports it to Hugging Face's format, GGUF (Q8_0) and StableHLO, and lets each
continue three prompts greedily, the last in a process that never imports our
models. Exits with 1 unless transformers and the programs write the tokens of
our own generation. llama.cpp's text stands beside them: it computes with other
numbers, weights and activations of 8 bits.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import published_study
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.commands import convert
from gemini_jax.infer import generation
from gemini_jax.parallel import sharding

NUM_TOKENS = 24
PROMPTS = (
  'First Citizen:\n',
  'ROMEO:\nBut soft, what light',
  'The king said to his son that',
)
ALONE = """
import json, sys
from gemini_jax.weights import exported_program
model = exported_program.load(sys.argv[1])
rows = [model.generate([row], int(sys.argv[3]))[0]
        for row in json.loads(sys.argv[2])]
assert not [m for m in sys.modules if m.startswith('gemini_jax.models')]
print(json.dumps(rows))
"""


def main(workdir: str) -> int:
  """Prints the texts; returns the exit code."""
  config = config_lib.read(pathlib.Path(workdir) / run_lib.CONFIG_FILE)
  greedy = dataclasses.replace(
    config.generate, temperature=0.0, max_tokens=NUM_TOKENS
  )
  config = dataclasses.replace(config, generate=greedy)
  run = run_lib.open_run(config, workdir)
  with sharding.use(run.mesh):
    params = run.restore_params().params
    samples = generation.generate(
      config, run.model, params, run.tokenizer, list(PROMPTS)
    )
  words = run.tokenizer
  prompts = [
    [words.bos_id] * words.adds_bos + list(words.encode(p)) for p in PROMPTS
  ]
  ours = [list(sample.tokens) for sample in samples]
  with tempfile.TemporaryDirectory(prefix='export_study_') as name:
    folder = pathlib.Path(name)
    for target, options in (
      ('huggingface', {}),
      ('model.gguf', {'format': 'gguf', 'type': 'Q8_0'}),
      ('stablehlo', {'slots': '64'}),
    ):
      options = {'format': target} | options
      convert.convert(workdir, str(folder / target), **options)
    theirs = transformers_greedy(folder / 'huggingface', prompts)
    done = subprocess.run(
      [
        *(sys.executable, '-c', ALONE, str(folder / 'stablehlo')),
        *(
          json.dumps([list(map(int, row)) for row in prompts]),
          f'{NUM_TOKENS}',
        ),
      ],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    )
    programs = json.loads(done.stdout)
    server = published_study.Server(str(folder / 'model.gguf'))
    llama = [
      [token for token, _ in server.greedy(text, False)] for text in PROMPTS
    ]
  for texts in zip(PROMPTS, ours, theirs, programs, llama, strict=True):
    print(repr(texts[0]))
    names = ('ours', 'transformers', 'programs', 'llama.cpp')
    for label, tokens in zip(names, texts[1:], strict=True):
      print(f'  {label:12} {words.decode(tokens)!r}')
  same = {
    'transformers': sum(map(list.__eq__, ours, theirs)),
    'programs': sum(map(list.__eq__, ours, programs)),
    'llama.cpp': sum(
      row[: len(other)] == other for row, other in zip(ours, llama, strict=True)
    ),
  }
  print(f'the same tokens as ours, of {len(PROMPTS)} texts: {same}')
  return int(min(same['transformers'], same['programs']) < len(PROMPTS))


def transformers_greedy(path, prompts) -> list[list[int]]:
  """What transformers writes with torch in float32, token by token."""
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float32
  )
  rows = []
  for prompt in prompts:
    output = model.generate(
      torch.tensor([prompt]),
      max_new_tokens=NUM_TOKENS,
      do_sample=False,
    )
    rows.append(output[0, len(prompt) :].tolist())
  return rows


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
