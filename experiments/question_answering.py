r"""Questions about pictures, answered in words.

  python -m gemini_jax.main --workdir=runs/questions \
      --config=experiments/question_answering.py:jsonl=FILE

FILE has a record a question, {"image": "0.png", "question": "what colour is the
circle?", "answer": "red"}, and paths are relative to its folder. The last tenth
of the records is `test`, the twentieth before it validation. An encoder reads
picture and question together, a decoder writes the answer. The run writes
`test/accuracy`, the share of answers that are right as a whole. `,blind` behind
FILE leaves the pictures out.

Measured on tests/visual_questions.py (seed 0, 2 cores): test/accuracy 0.9925 in
15 minutes; blind 0.3675, as much as the questions alone tell (0.3695).
"""

import ml_collections

from experiments import base


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is `jsonl=FILE`, and `,blind` leaves the picture out."""
  file, _, blind = arg.partition(',')
  name, _, path = file.partition('=')
  if name != 'jsonl' or not path or blind not in ('', 'blind'):
    raise ValueError(f'--config=...:{arg} must be jsonl=FILE[,blind]')
  config = base.get_config()
  picture = '' if blind else '{image:image} '
  config.data.tasks = (f'{picture}{{question}} -> {{answer}}',)
  config.data.train = (f'jsonl:{path}#[:85%]',)
  config.data.validation = (f'jsonl:{path}#[85%:90%]',)
  config.data.test = (f'jsonl:{path}#[90%:]',)
  config.data.objective = 'seq2seq'
  config.data.batch_size = 64
  config.data.inputs_length = 96
  config.data.sequence_length = 8
  config.data.pack = False
  config.tokenizer.kind = 'sentencepiece'
  config.tokenizer.vocab_size = 512
  config.model.architecture = 'encoder_decoder'
  config.model.max_length = 96
  config.model.width = 96
  config.model.num_heads = 4
  config.model.num_encoder_layers = 2
  config.model.num_layers = 1
  config.model.mlp_dim = 192
  config.model.scan_layers = False
  config.model.image.height = 64
  config.model.image.width = 64
  config.model.image.patch = 8
  config.model.image.num_blocks = 1
  # At 6e-3 neither AdamW nor Muon learns what pictures show (LOG.md).
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 100
  config.train.num_steps = 4000
  config.train.log_every = 100
  config.train.eval_every = 1000
  config.train.save_every = 1000
  config.evaluate.batch_size = 500
  return config
