r"""One backbone, and other domains by adapters of under 3 % of its parameters.

  python -m gemini_jax.main --config=experiments/domain_transfer.py \
      --workdir=runs/backbone --config.data.data_dir=DIR
  python -m gemini_jax.main --workdir=runs/clothes \
      --config=experiments/domain_transfer.py:domain=clothes,base=BASE \
      --config.data.data_dir=DIR

DIR is the folder of TFDS data sets, BASE the workdir of the backbone, which
names photographs (CIFAR-10). Its other domains are clothes (Fashion-MNIST),
handwriting (scikit-learn's digits, under noise) and spoken digits, of which the
backbone has heard nothing. With `base` a domain is learned by `method` lora
(unless it is given), adapter or full; without it from nothing. All domains have
ten classes, by numbers, so that each run can be evaluated on the data of
another; tests/domain_study.py trains and evaluates all.

Measured by it (seed 0, 15 minutes on 2 cores): the backbone 57.5 %, before and
after; clothes, handwriting and words by LoRA 80.5, 66.3 and 95.7 %, and from
nothing 84.7, 76.1 and 98.7 %.
"""

import ml_collections

from experiments import base as base_lib

_PICTURE = '{image:image} -> {class:label}'
_SOUND = '{audio:audio} -> {class:label}'
# Task, and sources of training and test; the first is that of the backbone.
DOMAINS = {
  'photographs': (_PICTURE, 'tfds:cifar10#train', 'tfds:cifar10#test[:2000]'),
  'clothes': (
    _PICTURE,
    'tfds:fashion_mnist#train[:10000]',
    'tfds:fashion_mnist#test[:2000]',
  ),
  'handwriting': (_PICTURE, 'digits:train', 'digits:test'),
  'words': (_SOUND, 'tfds:spoken_digit#train', 'tfds:spoken_digit#test'),
}
METHODS = ('lora', 'adapter', 'full')
_RATES = {'lora': 3e-3, 'adapter': 3e-3, 'full': 1e-3}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is `domain=NAME,base=WORKDIR,method=NAME`."""
  options = dict(part.partition('=')[::2] for part in arg.split(',') if part)
  domain = options.pop('domain', 'photographs')
  base = options.pop('base', '')
  method = options.pop('method', 'lora' if base else 'full')
  if (
    domain not in DOMAINS
    or method not in (METHODS if base else ('full',))
    or options
  ):
    raise ValueError(
      f'--config=...:{arg} must be domain={"|".join(DOMAINS)},base=WORKDIR,'
      f'method={"|".join(METHODS)}; methods need a base'
    )
  config = base_lib.get_config()
  task, train, test = DOMAINS[domain]
  config.data.tasks, config.data.train = (task,), (train,)
  config.data.test = (test,)
  config.data.label_names = tuple('0123456789')
  config.data.objective = 'prefix'
  config.data.batch_size = 64
  config.data.sequence_length = 32
  config.data.pack = False
  config.model.max_length = 32
  config.model.width = 96
  config.model.num_layers = 3
  config.model.num_heads = 4
  config.model.mlp_dim = 192
  config.model.scan_layers = False
  config.model.image.height = 32
  config.model.image.width = 32
  config.model.image.channels = 3
  config.model.image.patch = 8
  config.model.image.num_blocks = 1
  config.model.audio.sample_rate = 8000
  config.model.audio.seconds = 1.0
  config.model.audio.num_mels = 40
  config.model.audio.patch = 4
  config.train.init_from = base
  config.tune.method = method
  config.tune.rank = 2
  config.tune.width = 8
  config.optimizer.learning_rate = _RATES[method]
  config.optimizer.warmup_steps = 50
  config.optimizer.final_scale = 0.0
  config.train.num_steps = 1500 if domain == 'photographs' else 400
  config.train.eval_every = config.train.num_steps
  config.train.save_every = config.train.num_steps
  config.train.log_every = 50
  config.train.label_smoothing = 0.1
  config.evaluate.batch_size = 200
  config.evaluate.evaluators = ('classification',)
  return config
