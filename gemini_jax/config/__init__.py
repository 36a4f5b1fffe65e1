"""The one config: every field, its type, its default and what it means.

An experiment edits a ConfigDict made by `to_config_dict`; `from_config_dict`
turns it into the frozen dataclasses of this package, a section a file,
strictly. Nothing else in the package sees a ConfigDict, and no field has a
second default anywhere.
"""

from gemini_jax.config.compress import Compress
from gemini_jax.config.config import (
  FILE,
  Config,
  from_config_dict,
  from_json,
  parse_json,
  read,
  to_config_dict,
  to_json,
)
from gemini_jax.config.data import (
  BATCH_FIELDS,
  TASK_FIELDS,
  Augment,
  Data,
  Normalization,
  Tokenizer,
)
from gemini_jax.config.evaluate import Evaluate
from gemini_jax.config.gates import Gates
from gemini_jax.config.generate import SEPARATOR, Generate
from gemini_jax.config.growth import Growth
from gemini_jax.config.media import (
  KINDS,
  MEDIA,
  NUMERIC,
  Audio,
  Autoencoder,
  Image,
  Series,
  Tower,
  Video,
)
from gemini_jax.config.model import Latent, Model
from gemini_jax.config.optimizer import LEARNING_RATES, Optimizer
from gemini_jax.config.parallel import AXES, Parallel
from gemini_jax.config.plan import Plan
from gemini_jax.config.predict import Predict
from gemini_jax.config.schema import (
  ConfigError,
  check,
  nearest,
  optional,
  reading,
)
from gemini_jax.config.sparsity import Sparsity
from gemini_jax.config.train import (
  DPO,
  EarlyStopping,
  KLAnnealing,
  LossWeights,
  Train,
)
from gemini_jax.config.tune import AdaLoRA, Tune

__all__ = [
  'AXES',
  'BATCH_FIELDS',
  'DPO',
  'FILE',
  'KINDS',
  'LEARNING_RATES',
  'MEDIA',
  'NUMERIC',
  'SEPARATOR',
  'TASK_FIELDS',
  'AdaLoRA',
  'Audio',
  'Augment',
  'Autoencoder',
  'Compress',
  'Config',
  'ConfigError',
  'Data',
  'EarlyStopping',
  'Evaluate',
  'Gates',
  'Generate',
  'Growth',
  'Image',
  'KLAnnealing',
  'Latent',
  'LossWeights',
  'Model',
  'Normalization',
  'Optimizer',
  'Parallel',
  'Plan',
  'Predict',
  'Series',
  'Sparsity',
  'Tokenizer',
  'Tower',
  'Train',
  'Tune',
  'Video',
  'check',
  'from_config_dict',
  'from_json',
  'nearest',
  'optional',
  'parse_json',
  'read',
  'reading',
  'to_config_dict',
  'to_json',
]
