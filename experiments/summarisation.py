r"""Summaries of texts: from nothing, or by a published model with LoRA.

  python -m gemini_jax.main --workdir=runs/summaries \
      --config=experiments/summarisation.py:jsonl=FILE
  python -m gemini_jax.main --workdir=runs/summaries_lora \
      --config=experiments/summarisation.py:jsonl=FILE,base=WORKDIR

Each line of FILE is {"text": ..., "summary": ...}. Nine of ten records are for
training; half of the others are for validation, half give `test/rouge1`,
`test/rouge2` and `test/rougeL`. Without `base` an encoder-decoder learns from
nothing, which takes some ten thousand records. With `base`, the workdir of a
decoder-only model, LoRA tunes it to go on after the text and `Summary:`.
"""

import ml_collections

from experiments import base as base_lib
from experiments import fine_tune


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is `jsonl=FILE`, and `base=WORKDIR` to tune a model."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  file, folder = options.pop('jsonl', ''), options.pop('base', '')
  if not file or options:
    raise ValueError(f'--config=...:{arg} must be jsonl=FILE[,base=WORKDIR]')
  config = base_lib.get_config()
  config.data.train = (f'jsonl:{file}#[!9::10]',)
  config.data.validation = (f'jsonl:{file}#[9::20]',)
  config.data.test = (f'jsonl:{file}#[19::20]',)
  config.evaluate.evaluators = ('texts',)
  config.evaluate.texts.metrics = ('rouge1', 'rouge2', 'rougeL')
  config.evaluate.texts.num_examples = 500
  if folder:
    fine_tune.set_base(config, folder, 'lora')
    config.data.tasks = ('{text} Summary: -> {summary}',)
    config.data.sequence_length = min(512, config.model.max_length)
    config.train.num_steps = 200
    config.train.log_every = 5
    config.train.eval_every = 100
    config.train.save_every = 100
    config.evaluate.max_batches = 20
    return config
  config.data.tasks = ('{text} -> {summary}',)
  config.data.objective = 'seq2seq'
  config.data.batch_size = 32
  config.data.inputs_length = 256
  config.data.sequence_length = 64
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 8192
  config.model.architecture = 'encoder_decoder'
  config.model.max_length = 256
  config.model.width = 192
  config.model.num_encoder_layers = 3
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.mlp_dim = 384
  config.model.dropout = 0.1
  config.model.scan_layers = False
  config.optimizer.name = 'muon'
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.final_scale = 0.0
  config.train.label_smoothing = 0.1
  config.train.num_steps = 1000
  config.train.log_every = 50
  config.train.eval_every = 250
  config.train.save_every = 250
  config.evaluate.texts.beam_size = 4
  config.generate.beam_size = 4
  return config
