r"""Tunes a published model, or any run, on texts or conversations.

  python -m gemini_jax.commands.convert --source=FOLDER|FILE.gguf \
      --target=runs/base
  python -m gemini_jax.main --workdir=runs/tuned \
      --config=experiments/fine_tune.py:base=runs/base,method=lora

`base` is the workdir with the parameters to start from; its model and its
tokenizer are used. `method` is full, head, adapter, lora or adalora, see the
section `tune`; with all but full a checkpoint holds what was trained alone, and
`base` must stay where it is. Of SmolLM2-135M, LoRA of rank 8 for all seven
matrices has 27 MB a checkpoint (10 MB as a folder of PEFT), for query and value
alone (tune.pattern) 5.2 MB (1.9 MB).

Without `data` the texts are tiny_shakespeare. `data=FILE.jsonl` takes
conversations, one in a line: {"messages": [{"role": "user", "content": ...},
{"role": "assistant", "content": ...}]}; what the assistant says is learned.
Every tenth line is for validation.
"""

import pathlib

from experiments import base as base_lib
from gemini_jax import config as config_lib

METHODS = ('full', 'head', 'adapter', 'lora', 'adalora')
_OPTIONS = ('base', 'method', 'data')


def get_config(arg=''):
  """The config; `arg` is `base=WORKDIR,method=NAME,data=FILE.jsonl`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  folder, method = options.get('base', ''), options.get('method', 'lora')
  if not folder or method not in METHODS or set(options) - set(_OPTIONS):
    raise ValueError(
      f'--config=...:{arg} must be base=WORKDIR,method=NAME,data=FILE.jsonl '
      f'with NAME one of {", ".join(METHODS)}'
    )
  config = base_lib.get_config()
  set_base(config, folder, method)
  if options.get('data'):
    source = f'jsonl:{options["data"]}'
    config.data.train = (f'{source}#[!9::10]',)
    config.data.validation = (f'{source}#[9::10]',)
    config.data.chat_field = 'messages'
  else:
    config.data.train = ('tfds:tiny_shakespeare#train',)
    config.data.validation = ('tfds:tiny_shakespeare#validation',)
  config.data.sequence_length = min(256, config.model.max_length)
  config.train.num_steps = 200
  config.train.eval_every = 50
  config.train.save_every = 50
  config.train.log_every = 5
  config.evaluate.max_batches = 20
  return config


def set_base(config, folder, method):
  """Model, tokenizer and parameters of a workdir, tuned by one of METHODS."""
  path = pathlib.Path(folder).expanduser() / config_lib.FILE
  start = config_lib.to_config_dict(config_lib.read(path))
  config.model, config.tokenizer = start.model, start.tokenizer
  config.train.init_from = folder
  config.tune.method = method
  config.data.batch_size = 4
  config.optimizer.learning_rate = 2e-5 if method == 'full' else 5e-4
  config.optimizer.warmup_steps = 10
  config.optimizer.weight_decay = 0.0
