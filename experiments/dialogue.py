r"""Chat tuning: a published model learns what the assistant says.

  python -m gemini_jax.commands.convert --source=FOLDER|FILE.gguf \
      --target=runs/base
  python -m gemini_jax.main --workdir=runs/dialogue \
      --config=experiments/dialogue.py:jsonl=FILE,base=runs/base
  python -m gemini_jax.main --workdir=runs/dialogue --mode=generate \
      --config.generate.prompt='What news?'

Each line of FILE is {"messages": [{"role": "user", "content": ...}, {"role":
"assistant", "content": ...}, ...]}, of any number of turns. They are written by
the chat template of the model, and what the assistant says is learned, by LoRA,
as in fine_tune.py. Nine of ten conversations are for training; half of the
others give `validation/loss`, half `test/loss`, in nats a token of what the
assistant says, over 80 rows at most.
"""

import ml_collections

from experiments import fine_tune


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is `jsonl=FILE,base=WORKDIR`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  file, folder = options.pop('jsonl', ''), options.pop('base', '')
  if not file or not folder or options:
    raise ValueError(f'--config=...:{arg} must be jsonl=FILE,base=WORKDIR')
  config = fine_tune.get_config(f'base={folder},data={file}')
  config.data.validation = (f'jsonl:{file}#[9::20]',)
  config.data.test = (f'jsonl:{file}#[19::20]',)
  config.data.sequence_length = min(512, config.model.max_length)
  config.train.eval_every = 100
  config.train.save_every = 100
  config.generate.chat = 'prompt'
  return config
