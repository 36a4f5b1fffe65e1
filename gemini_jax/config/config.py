"""Everything that defines a run, and the file in which it is kept."""

import dataclasses
import json
import pathlib
from typing import Any

import ml_collections

from gemini_jax import host
from gemini_jax.config import compress as compress_lib
from gemini_jax.config import data as data_lib
from gemini_jax.config import evaluate as evaluate_lib
from gemini_jax.config import gates as gates_lib
from gemini_jax.config import generate as generate_lib
from gemini_jax.config import growth as growth_lib
from gemini_jax.config import legacy, schema
from gemini_jax.config import model as model_lib
from gemini_jax.config import optimizer as optimizer_lib
from gemini_jax.config import parallel as parallel_lib
from gemini_jax.config import plan as plan_lib
from gemini_jax.config import predict as predict_lib
from gemini_jax.config import sparsity as sparsity_lib
from gemini_jax.config import train as train_lib
from gemini_jax.config import tune as tune_lib

# A global batch of all processes holds no more than this, or it could not even
# be prepared: tokens of all its sequences, and bytes of one kind of media.
MAX_BATCH_TOKENS = 2**28
MAX_BATCH_BYTES = 2**35

# Where a run keeps its config, in its folder.
FILE = 'config.json'


@schema.section()
class Config:
  """Everything that defines a run."""

  model: model_lib.Model = dataclasses.field(default_factory=model_lib.Model)
  data: data_lib.Data = dataclasses.field(default_factory=data_lib.Data)
  tokenizer: data_lib.Tokenizer = dataclasses.field(
    default_factory=data_lib.Tokenizer
  )
  optimizer: optimizer_lib.Optimizer = dataclasses.field(
    default_factory=optimizer_lib.Optimizer
  )
  parallel: parallel_lib.Parallel = dataclasses.field(
    default_factory=parallel_lib.Parallel
  )
  train: train_lib.Train = dataclasses.field(default_factory=train_lib.Train)
  tune: tune_lib.Tune = dataclasses.field(default_factory=tune_lib.Tune)
  gates: gates_lib.Gates = dataclasses.field(default_factory=gates_lib.Gates)
  growth: growth_lib.Growth = dataclasses.field(
    default_factory=growth_lib.Growth
  )
  sparsity: sparsity_lib.Sparsity = dataclasses.field(
    default_factory=sparsity_lib.Sparsity
  )
  compress: compress_lib.Compress = dataclasses.field(
    default_factory=compress_lib.Compress
  )
  evaluate: evaluate_lib.Evaluate = dataclasses.field(
    default_factory=evaluate_lib.Evaluate
  )
  generate: generate_lib.Generate = dataclasses.field(
    default_factory=generate_lib.Generate
  )
  plan: plan_lib.Plan = dataclasses.field(default_factory=plan_lib.Plan)
  predict: predict_lib.Predict = dataclasses.field(
    default_factory=predict_lib.Predict
  )
  loss_weights: train_lib.LossWeights = dataclasses.field(
    default_factory=train_lib.LossWeights
  )

  def __post_init__(self):
    if self.train.epochs:
      epoch = self.train.epoch_steps(self.data.batch_size)
      steps = self.train.epochs * epoch
      train = dataclasses.replace(self.train, num_steps=steps)
      object.__setattr__(self, 'train', train)
    seq2seq = self.data.objective == 'seq2seq'
    schema.check(
      seq2seq == self.model.cross,
      f'data.objective={self.data.objective!r} does not go with '
      f'model.architecture={self.model.architecture!r}; encoder_decoder goes '
      'with seq2seq, decoder with causal or prefix',
    )
    schema.check(
      not self.data.chat_field or self.tokenizer.kind == 'huggingface',
      f'data.chat_field={self.data.chat_field!r} needs a tokenizer with a chat '
      f'template: tokenizer.kind=huggingface, not {self.tokenizer.kind}',
    )
    schema.check(
      not (self.model.latent.dim and self.data.pack),
      f'model.latent.dim={self.model.latent.dim} is one z for each row; set '
      'data.pack=False',
    )
    schema.check(
      not (self.model.contrast_dim and self.data.pack),
      f'model.contrast_dim={self.model.contrast_dim} compares the examples of '
      'rows; set data.pack=False',
    )
    schema.check(
      self.data.sequence_length <= self.model.max_length,
      f'data.sequence_length={self.data.sequence_length} must be at most '
      f'model.max_length={self.model.max_length}',
    )
    schema.check(
      not self.model.cross
      or self.model.position != 'learned'
      or self.data.inputs_length <= self.model.max_length,
      f'data.inputs_length={self.data.inputs_length} must be at most '
      f"model.max_length={self.model.max_length} for model.position='learned'",
    )
    schema.check(
      self.data.batch_size % self.optimizer.accumulation_steps == 0,
      f'optimizer.accumulation_steps={self.optimizer.accumulation_steps} must '
      f'divide data.batch_size={self.data.batch_size}',
    )
    schema.check(
      not self.train.early_stopping.patience or bool(self.data.validation),
      'train.early_stopping.patience='
      f'{self.train.early_stopping.patience} needs data.validation',
    )
    self._check_preferences()
    self._check_tune()
    gates_lib.check(self.gates, self.model, self.tune.method)
    schema.check(
      not self.growth.at_step or self.sparsity.method == 'none',
      f'growth.at_step={self.growth.at_step} does not go with sparsity.method='
      f'{self.sparsity.method!r}: grown weights have no masks',
    )
    schema.check(
      not self.growth.at_step or self.gates.method == 'none',
      f'growth.at_step={self.growth.at_step} does not go with gates.method='
      f'{self.gates.method!r}: grown units have no gates',
    )
    growth_lib.check(
      self.growth, self.model, self.train.num_steps, self.optimizer.name
    )
    self._check_sparsity()
    canvas = min(self.model.image.height, self.model.image.width)
    schema.check(
      self.evaluate.test_time_views == 1 or canvas > 0,
      f'evaluate.test_time_views={self.evaluate.test_time_views} are of '
      'pictures: set model.image.height and model.image.width, or 1',
    )
    padding = self.data.augment.crop_padding
    schema.check(
      not canvas or padding <= canvas,
      f'data.augment.crop_padding={padding} must be at most {canvas}, the '
      'smaller of model.image.height and model.image.width',
    )
    for field, rows in (
      ('data.batch_size', self.data.batch_size),
      ('evaluate.batch_size', self.evaluate.batch_size),
      ('plan.decode_batch_size', self.plan.decode_batch_size),
    ):
      self._check_batch(field, rows or 0)

  def of_finished(self) -> 'Config':
    """For a workdir that has the parameters of this run, and not its course."""
    return dataclasses.replace(
      self,
      growth=growth_lib.Growth(),
      sparsity=sparsity_lib.Sparsity(),
      gates=gates_lib.Gates(),
      evaluate=dataclasses.replace(self.evaluate, checkpoint='latest'),
      generate=dataclasses.replace(self.generate, checkpoint='latest'),
    )

  def _check_preferences(self):
    given = f'data.rejected_field={self.data.rejected_field!r}'
    for field, value in (
      ('model.latent.dim', self.model.latent.dim),
      ('model.contrast_dim', self.model.contrast_dim),
      ('train.label_smoothing', self.train.label_smoothing),
      ('loss_weights.z_loss', self.loss_weights.z_loss),
    ):
      schema.check(
        not (self.data.rejected_field and value),
        f'{field}={value} does not go with {given}; set it to 0',
      )

  def _check_tune(self):
    """Sees that what is tuned has a base, and goes with the training."""
    method = self.tune.method
    if method == 'full':
      return
    name = f'tune.method={method!r}'
    schema.check(
      bool(self.train.init_from),
      f'{name} needs train.init_from, the folder of the run whose parameters '
      'it tunes',
    )
    schema.check(
      self.growth.method == 'none',
      f'{name} keeps the parameters of its base, and growth.method='
      f'{self.growth.method!r} changes them; set it to none',
    )
    schema.check(
      method == 'head' or self.optimizer.name != 'muon',
      f'{name} has no matrices that optimizer.name=muon is made for; use adamw',
    )
    schema.check(
      not self.train.kl_annealing.pretrain_fraction,
      f'{name} keeps the decoder, and train.kl_annealing.pretrain_fraction='
      f'{self.train.kl_annealing.pretrain_fraction} starts it anew; set it to '
      '0',
    )
    first, last, _ = self.tune.adalora.course(self.train.num_steps)
    schema.check(
      method != 'adalora' or first < last,
      f'tune.adalora.warmup_steps={first} and final_steps='
      f'{self.train.num_steps - last} must together be less than '
      f'train.num_steps={self.train.num_steps}',
    )

  def _check_sparsity(self):
    """Sees that what is pruned goes with the training."""
    method, tune = self.sparsity.method, self.tune.method
    if method == 'none':
      return
    name = f'sparsity.method={method}'
    schema.check(
      tune == 'full',
      f'{name} does not go with tune.method={tune!r}, whose update would fill '
      'what is pruned; use full',
    )
    schema.check(
      method not in ('movement', 'ste')
      or self.optimizer.name != 'schedule_free',
      f'{name} trains what is pruned, and the average of optimizer.name='
      'schedule_free would not be zero there; use another optimizer',
    )
    schema.check(
      self.sparsity.first != 'nonzero' or bool(self.train.init_from),
      'sparsity.first=nonzero needs train.init_from, the folder of the run '
      'whose zeros are kept',
    )

    if method == 'gated':
      self._check_gate()

  def _check_gate(self):
    """Sees that there are epochs, and a validation at the end of each."""
    name, train, gate = 'sparsity.method=gated', self.train, self.sparsity.gate
    schema.check(
      bool(train.epoch_examples),
      f'{name} needs train.epoch_examples, after which validation decides',
    )
    schema.check(
      bool(self.data.validation),
      f'{name} needs data.validation, by which it decides',
    )
    epoch = train.epoch_steps(self.data.batch_size)
    schema.check(
      epoch % train.eval_every == 0,
      f'train.eval_every={train.eval_every} must divide the {epoch} steps of '
      f'an epoch with {name}',
    )
    total, rest = train.num_steps // epoch, gate.first_epochs + gate.last_epochs
    schema.check(
      total > rest,
      f'{name} prunes between the first {gate.first_epochs} and the last '
      f'{gate.last_epochs} epochs of sparsity.gate, and the run has {total}; '
      f'train more than {rest}',
    )
    for field in ('ema_decay', 'plateau_patience'):
      value = getattr(self.optimizer, field)
      schema.check(
        not value,
        f'optimizer.{field}={value} does not go with {name}, which goes back '
        'to earlier parameters; set it to 0',
      )

  def _check_batch(self, field: str, num_rows: int):
    """Estimates a batch of so many rows before anything is allocated."""
    data, model = self.data, self.model
    lengths = f'data.sequence_length={data.sequence_length}'
    length = data.sequence_length
    if model.cross:
      lengths += f' and data.inputs_length={data.inputs_length}'
      length += data.inputs_length
    schema.check(
      num_rows * length <= MAX_BATCH_TOKENS,
      f'{field}={num_rows} rows of {lengths} are {num_rows * length:,} '
      f'tokens; a batch holds at most {MAX_BATCH_TOKENS:,}',
    )
    image, audio, video = model.image, model.audio, model.video
    canvas = f'model.image.height={image.height} x width={image.width} pixels'
    sizes = {
      'number': f'model.num_numbers={model.num_numbers}',
      'series': f'model.series.length={model.series.length} steps of '
      f'channels={model.series.channels}',
      'image': canvas,
      'audio': f'model.audio.seconds={audio.seconds} '
      f'at sample_rate={audio.sample_rate}',
      'video': f'model.video.num_frames={video.num_frames} of {canvas}',
    }
    limit = MAX_BATCH_BYTES // 2**30
    for kind, num_bytes in model.media_bytes().items():
      total = round(num_rows * num_bytes / 2**30)
      schema.check(
        num_rows * num_bytes <= MAX_BATCH_BYTES,
        f'{field}={num_rows} rows with {sizes[kind]} are {total} GiB; the '
        f'{kind}s of a batch hold at most {limit} GiB',
      )


def from_config_dict(values) -> Config:
  """The frozen config of a ConfigDict or of a nested dict.

  Raises:
    ConfigError: a field is unknown, has the wrong type or a value outside
      what is accepted.
  """
  return schema.convert(values, Config)


def to_config_dict(config: Config | None = None) -> ml_collections.ConfigDict:
  """A ConfigDict that holds every field, to be edited by an experiment."""
  return schema.to_config_dict(Config() if config is None else config, Config)


def to_json(config: Config) -> str:
  """The resolved config as readable JSON."""
  return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def parse_json(text: str | bytes, what: str) -> Any:
  """The values of a JSON text, in which no name may stand twice in an object.

  Args:
    text: the text.
    what: it is, for messages.

  Raises:
    ConfigError: it is not JSON, or names a field twice.
  """

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    names = [name for name, _ in pairs]
    for name in values:
      schema.check(
        names.count(name) == 1, f'{name!r} stands twice in one section'
      )
    return values

  try:
    return json.loads(text, object_pairs_hook=once)
  except schema.ConfigError:
    raise
  except RecursionError as error:
    raise schema.ConfigError(f'{what} is nested too deeply') from error
  except ValueError as error:
    raise schema.ConfigError(f'{what} is not JSON: {error}') from error


def from_json(text: str | bytes) -> Config:
  """The config that `to_json` wrote.

  Raises:
    ConfigError: the text is not JSON, names a field twice, or holds no config.
  """
  values = parse_json(text, 'the config')
  return from_config_dict(
    legacy.upgrade(values) if isinstance(values, dict) else values
  )


def read(path: pathlib.Path) -> Config:
  """The config in a file that this version or an earlier one wrote.

  What an earlier version did not know yet has its default.

  Raises:
    ConfigError: it cannot be read, or is no config of this version.
  """
  try:
    return from_json(host.read_file(path))
  except OSError as error:
    raise schema.ConfigError(
      f'{path} cannot be read: {error.strerror}'
    ) from error
  except ValueError as error:
    raise schema.ConfigError(f'{path}: {error}') from error
