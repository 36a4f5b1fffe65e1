"""The config is strict, says what is wrong, and explains every field."""

import ast
import dataclasses
import inspect
import json
import math
import pathlib
import typing

import ml_collections
import pytest

from gemini_jax import command
from gemini_jax import config as config_lib

SECTIONS = {
  field.name: field.default_factory
  for field in dataclasses.fields(config_lib.Config)
}


def convert(path=None, value=None):
  """The config with one field changed, `path` being section.field."""
  values = value if path is not None else {}
  for name in reversed(path.split('.') if path else ()):
    values = {name: values}
  return config_lib.from_config_dict(values)


def refused(path, value):
  with pytest.raises(config_lib.ConfigError) as error:
    convert(path, value)
  return str(error.value)


def test_unknown_fields_are_told_with_the_nearest_name():
  assert refused('model.num_headz', 3).startswith(
    'model.num_headz is not a field of model; did you mean num_heads'
  )
  assert refused('modle.width', 3) == (
    'modle is not a field of config; did you mean model?'
  )
  assert refused('loss_weights.qqq', 3) == (
    'loss_weights.qqq is not a field of loss_weights; accepted: '
    'chosen_nll, contrastive, detail, dpo, kl, media_kl, media_nll, min_kl, '
    'reconstruction, router_balance, router_z, z_loss'
  )


WRONG_TYPES = {
  'an int': ('model.width', '3', "model.width='3' must be int, not str"),
  'an int, not a bool': (
    'model.width',
    True,
    'model.width=True must be int, not bool',
  ),
  'an int, not a float': (
    'model.width',
    3.0,
    'model.width=3.0 must be int, not float',
  ),
  'a bool': ('model.remat', 1, 'model.remat=1 must be bool, not int'),
  'a float': (
    'model.dropout',
    '0.1',
    "model.dropout='0.1' must be float, not str",
  ),
  'a float, not a bool': (
    'model.dropout',
    False,
    'model.dropout=False must be float, not bool',
  ),
  'a string': ('data.text_field', 3, 'data.text_field=3 must be str, not int'),
  'not None': (
    'model.width',
    None,
    'model.width=None must be int, not NoneType',
  ),
  'an optional int': (
    'model.vocab_size',
    '3',
    "model.vocab_size='3' must be int, not str",
  ),
  'one of a few': (
    'model.norm',
    'post',
    "model.norm='post' must be one of pre, pre_post",
  ),
  'a tuple': (
    'data.train',
    'text:a.txt',
    "data.train='text:a.txt' must be a tuple",
  ),
  'elements': (
    'data.train',
    ('text:a.txt', 3),
    'data.train[1]=3 must be str, not int',
  ),
  'elements of a few': (
    'model.attention_pattern',
    ('global', 'locl'),
    "model.attention_pattern[1]='locl' must be one of global, local",
  ),
  'tensors to save': (
    'model.remat_save',
    ('atended',),
    "model.remat_save[0]='atended' must be one of query, key, value, "
    'attended, gate, up, residual',
  ),
  'tensors to offload': (
    'model.remat_offload',
    ('ups',),
    "model.remat_offload[0]='ups' must be one of query, key, value, "
    'attended, gate, up, residual',
  ),
  'as many elements': (
    'model.rope_llama3_factors',
    (8.0, 1.0),
    'model.rope_llama3_factors=(8.0, 1.0) must have 3 values',
  ),
}


@pytest.mark.parametrize('case', WRONG_TYPES)
def test_a_value_of_another_type_is_refused(case):
  path, value, message = WRONG_TYPES[case]
  assert refused(path, value) == message


def test_a_section_is_a_section():
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.from_config_dict({'model': 3})
  assert str(error.value) == 'model=3 must be a section of the config'


def test_ints_become_floats_and_lists_tuples():
  config = config_lib.from_config_dict(
    {
      'model': {'dropout': 0, 'rope_llama3_factors': [8, 1, 4]},
      'data': {'train': ['a:b'], 'mixture_weights': [1]},
    }
  )
  assert type(config.model.dropout) is float
  assert config.model.rope_llama3_factors == (8.0, 1.0, 4.0)
  assert all(type(x) is float for x in config.model.rope_llama3_factors)
  assert config.data.train == ('a:b',) and config.data.mixture_weights == (1.0,)


def test_optional_fields_take_none():
  config = convert('model.vocab_size', None)
  assert config.model.vocab_size is None
  assert convert('model.vocab_size', 7).model.vocab_size == 7


# One section's field out of range; the path names what is set.
RANGES = {
  'model.max_length': (0, 'model.max_length=0 must be at least 1'),
  'model.width': (0, 'model.width=0 must be at least 1'),
  'model.num_layers': (0, 'model.num_layers=0 must be at least 1'),
  'model.num_heads': (0, 'model.num_heads=0 must be at least 1'),
  'model.window': (0, 'model.window=0 must be at least 1'),
  'model.num_kv_heads': (
    3,
    'model.num_kv_heads=3 must divide model.num_heads=4',
  ),
  'model.head_dim': (
    7,
    'model.head_dim=7 must be even for rotary positions',
  ),
  'model.dropout': (
    1.0,
    'model.dropout=1.0 must be at least 0 and below 1',
  ),
  'model.attention_pattern': ((), 'model.attention_pattern is empty'),
  'model.num_experts': (-1, 'model.num_experts=-1 must be at least 0'),
  'model.expert_dim': (
    64,
    'model.expert_dim=64 needs model.num_experts above 0',
  ),
  'data.batch_size': (0, 'data.batch_size=0 must be at least 1'),
  'data.sequence_length': (0, 'data.sequence_length=0 must be at least 1'),
  'data.inputs_length': (0, 'data.inputs_length=0 must be at least 1'),
  'data.inputs_field': (
    'x',
    "data.inputs_field='x' and data.targets_field='' must be set together",
  ),
  'data.prefetch': (-1, 'data.prefetch=-1 must be at least 0'),
  'data.mixture_weights': (
    (1.0,),
    'data.mixture_weights has 1 values for 0 sources in data.train',
  ),
  'optimizer.learning_rate': (
    0.0,
    'optimizer.learning_rate=0.0 must be above 0',
  ),
  'optimizer.accumulation_steps': (
    0,
    'optimizer.accumulation_steps=0 must be at least 1',
  ),
  'optimizer.ema_decay': (
    1.0,
    'optimizer.ema_decay=1.0 must be at least 0 and below 1',
  ),
  'optimizer.no_decay': (
    '(',
    "optimizer.no_decay='(' is not a regular expression: missing ), "
    'unterminated subpattern at position 0',
  ),
  'optimizer.frozen': (
    '*',
    "optimizer.frozen='*' is not a regular expression: nothing to repeat at "
    'position 0',
  ),
  'compress.n_m': (
    '2of4',
    "compress.n_m='2of4' must be N:M, such as 2:4, or empty",
  ),
  'compress.pattern': (
    '(',
    "compress.pattern='(' is not a regular expression: missing ), unterminated "
    'subpattern at position 0',
  ),
  'tune.pattern': (
    '(',
    "tune.pattern='(' is not a regular expression: missing ), unterminated "
    'subpattern at position 0',
  ),
  'sparsity.sparsity': (
    1.0,
    'sparsity.sparsity=1.0 must be at least 0 and below 1',
  ),
  'sparsity.drop_fraction': (
    -0.1,
    'sparsity.drop_fraction=-0.1 must be at least 0 and below 1',
  ),
  'sparsity.pattern': (
    '[',
    "sparsity.pattern='[' is not a regular expression: unterminated character "
    'set at position 0',
  ),
  'sparsity.n_m': (
    '4:2',
    "sparsity.n_m='4:2' must be two numbers N:M with 0 < N < M, such as '2:4'",
  ),
  'sparsity.first': (
    'random',
    'sparsity.first=random is for methods static, set and rigl; none begins in '
    'its own way',
  ),
  'sparsity.begin': (
    0.75,
    'sparsity.begin=0.75 must be below sparsity.end=0.75',
  ),
  'parallel.tensor': (
    0,
    'parallel.tensor=0 must be at least 1, or -1 for the rest',
  ),
  'model.shared_expert_dim': (
    -1,
    'model.shared_expert_dim=-1 must be at least 0',
  ),
  'model.latent.dim': (-1, 'model.latent.dim=-1 must be at least 0'),
  'model.latent.memory': (-1, 'model.latent.memory=-1 must be at least 0'),
  'model.latent.num_components': (
    0,
    'model.latent.num_components=0 must be at least 1',
  ),
  'train.kl_annealing.cycles': (
    0,
    'train.kl_annealing.cycles=0 must be at least 1',
  ),
  'train.kl_annealing.free_bits': (
    -0.1,
    'train.kl_annealing.free_bits=-0.1 must be at least 0',
  ),
  'train.kl_annealing.min_kl': (
    -1.0,
    'train.kl_annealing.min_kl=-1.0 must be at least 0',
  ),
  'train.kl_annealing.zero_fraction': (
    1.0,
    'train.kl_annealing.zero_fraction=1.0 must be at least 0 and below 1',
  ),
  'train.kl_annealing.ramp_fraction': (
    1.5,
    'train.kl_annealing.ramp_fraction=1.5 must be at least 0 and below 1',
  ),
  'train.kl_annealing.pretrain_fraction': (
    -0.5,
    'train.kl_annealing.pretrain_fraction=-0.5 must be at least 0 and below 1',
  ),
  'train.kl_annealing.word_dropout': (
    1.0,
    'train.kl_annealing.word_dropout=1.0 must be at least 0 and below 1',
  ),
  'evaluate.likelihood.num_examples': (
    0,
    'evaluate.likelihood.num_examples=0 must be at least 1',
  ),
  'evaluate.likelihood.importance_samples': (
    0,
    'evaluate.likelihood.importance_samples=0 must be at least 1',
  ),
  'generate.num_labels': (1, 'generate.num_labels=1 must be at least 2'),
  'generate.latent_temperature': (
    -0.5,
    'generate.latent_temperature=-0.5 must be at least 0',
  ),
  'generate.steer_weight': (
    -1.0,
    'generate.steer_weight=-1.0 must be at least 0',
  ),
  'parallel.slices': (0, 'parallel.slices=0 must be at least 1'),
  'parallel.fsdp': (
    -1,
    "parallel: only one of ['data', 'fsdp'] can be -1",
  ),
  'parallel.microbatches': (
    0,
    'parallel.microbatches=0 must be at least 1',
  ),
  'parallel.pipeline_repeats': (
    0,
    'parallel.pipeline_repeats=0 must be at least 1',
  ),
  'train.num_steps': (0, 'train.num_steps=0 must be at least 1'),
  'train.log_every': (0, 'train.log_every=0 must be at least 1'),
  'train.eval_every': (0, 'train.eval_every=0 must be at least 1'),
  'train.save_every': (0, 'train.save_every=0 must be at least 1'),
  'train.keep_last': (0, 'train.keep_last=0 must be at least 1'),
  'evaluate.exact_match.num_examples': (
    0,
    'evaluate.exact_match.num_examples=0 must be at least 1',
  ),
  'generate.count': (0, 'generate.count=0 must be at least 1'),
  'generate.max_tokens': (0, 'generate.max_tokens=0 must be at least 1'),
  'generate.beam_size': (0, 'generate.beam_size=0 must be at least 1'),
  'generate.prefill_chunk': (0, 'generate.prefill_chunk=0 must be at least 1'),
  'generate.temperature': (
    -1.0,
    'generate.temperature=-1.0 must be at least 0',
  ),
  'generate.top_p': (
    0.0,
    'generate.top_p=0.0 must be above 0 and at most 1',
  ),
  'generate.min_p': (
    1.5,
    'generate.min_p=1.5 must be at least 0 and at most 1',
  ),
  'generate.top_k': (-1, 'generate.top_k=-1 must be at least 0'),
  'data.augment.crop_padding': (
    -1,
    'data.augment.crop_padding=-1 must be at least 0',
  ),
  'data.augment.randaugment_ops': (
    -1,
    'data.augment.randaugment_ops=-1 must be at least 0',
  ),
  'data.augment.mixup_alpha': (
    -0.5,
    'data.augment.mixup_alpha=-0.5 must be at least 0',
  ),
  'data.augment.cutmix_alpha': (
    -0.5,
    'data.augment.cutmix_alpha=-0.5 must be at least 0',
  ),
  'model.stochastic_depth': (
    1.0,
    'model.stochastic_depth=1.0 must be at least 0 and below 1',
  ),
  'optimizer.layer_decay': (
    0.0,
    'optimizer.layer_decay=0.0 must be above 0 and at most 1',
  ),
  'train.early_stopping.patience': (
    -1,
    'train.early_stopping.patience=-1 must be at least 0',
  ),
  'train.early_stopping.min_improvement': (
    -0.5,
    'train.early_stopping.min_improvement=-0.5 must be at least 0',
  ),
  'data.augment.time_masks': (
    -1,
    'data.augment.time_masks=-1 must be at least 0',
  ),
  'data.augment.time_mask_seconds': (
    -0.5,
    'data.augment.time_mask_seconds=-0.5 must be at least 0',
  ),
  'data.augment.frequency_masks': (
    -1,
    'data.augment.frequency_masks=-1 must be at least 0',
  ),
  'data.augment.gain_db': (
    -0.5,
    'data.augment.gain_db=-0.5 must be at least 0',
  ),
  'data.augment.time_shift_seconds': (
    -0.5,
    'data.augment.time_shift_seconds=-0.5 must be at least 0',
  ),
  'data.augment.randaugment_magnitude': (
    11.0,
    'data.augment.randaugment_magnitude=11.0 must be at least 0 and at most 10',
  ),
  'data.augment.frequency_mask_share': (
    1.5,
    'data.augment.frequency_mask_share=1.5 must be at least 0 and at most 1',
  ),
  'model.image.height': (-1, 'model.image.height=-1 must be at least 0'),
  'model.image.width': (-1, 'model.image.width=-1 must be at least 0'),
  'model.image.num_layers': (
    -1,
    'model.image.num_layers=-1 must be at least 0',
  ),
  'model.image.num_tokens': (
    -1,
    'model.image.num_tokens=-1 must be at least 0',
  ),
  'model.image.num_blocks': (
    -1,
    'model.image.num_blocks=-1 must be at least 0',
  ),
  'model.image.patch': (0, 'model.image.patch=0 must be at least 1'),
  'model.audio.sample_rate': (
    -1,
    'model.audio.sample_rate=-1 must be at least 0',
  ),
  'model.audio.f_min': (-1.0, 'model.audio.f_min=-1.0 must be at least 0'),
  'model.audio.num_layers': (
    -1,
    'model.audio.num_layers=-1 must be at least 0',
  ),
  'model.audio.num_tokens': (
    -1,
    'model.audio.num_tokens=-1 must be at least 0',
  ),
  'model.audio.num_mels': (0, 'model.audio.num_mels=0 must be at least 1'),
  'model.audio.patch': (0, 'model.audio.patch=0 must be at least 1'),
  'model.video.num_frames': (
    -1,
    'model.video.num_frames=-1 must be at least 0',
  ),
  'model.video.frame_tokens': (
    -1,
    'model.video.frame_tokens=-1 must be at least 0',
  ),
  'model.image.autoencoder.dim': (
    -1,
    'model.image.autoencoder.dim=-1 must be at least 0',
  ),
  'model.image.autoencoder.width': (
    0,
    'model.image.autoencoder.width=0 must be at least 1',
  ),
  'model.image.autoencoder.num_blocks': (
    0,
    'model.image.autoencoder.num_blocks=0 must be at least 1',
  ),
  'model.image.autoencoder.num_components': (
    0,
    'model.image.autoencoder.num_components=0 must be at least 1',
  ),
  'model.audio.seconds': (0.0, 'model.audio.seconds=0.0 must be above 0'),
  'model.audio.window': (0.0, 'model.audio.window=0.0 must be above 0'),
  'model.audio.hop': (0.0, 'model.audio.hop=0.0 must be above 0'),
  'data.media_dropout': (
    1.0,
    'data.media_dropout=1.0 must be at least 0 and below 1',
  ),
  'data.inputs_dropout': (
    1.0,
    'data.inputs_dropout=1.0 must be at least 0 and below 1',
  ),
  'data.audio_sample_rate': (0, 'data.audio_sample_rate=0 must be at least 1'),
  'evaluate.judged_media.guidance': (
    -1.0,
    'evaluate.judged_media.guidance=-1.0 must be at least 0',
  ),
  'evaluate.captions.num_examples': (
    -1,
    'evaluate.captions.num_examples=-1 must be at least 1',
  ),
  'evaluate.retrieval.num_examples': (
    -1,
    'evaluate.retrieval.num_examples=-1 must be at least 1',
  ),
  'model.contrast_dim': (-1, 'model.contrast_dim=-1 must be at least 0'),
  'generate.guidance': (
    -1.0,
    'generate.guidance=-1.0 must be at least 0',
  ),
  'data.augment.noise_db': (
    (9.0, 5.0),
    'data.augment.noise_db=(9.0, 5.0) must be empty or (low, high)',
  ),
  # None was once told by `or`, which took 0 for None.
  'model.mlp_dim': (0, 'model.mlp_dim=0 must be at least 1'),
  'model.vocab_size': (0, 'model.vocab_size=0 must be at least 1'),
  'model.query_scale': (0.0, 'model.query_scale=0.0 must be above 0'),
  'model.init_scale': (-1.0, 'model.init_scale=-1.0 must be above 0'),
  'model.attention_softcap': (
    -1.0,
    'model.attention_softcap=-1.0 must be at least 0',
  ),
  'model.rope_scale': (0.0, 'model.rope_scale=0.0 must be above 0'),
  'model.rope_base': (
    math.nan,
    'model.rope_base=nan must be a finite number, at least 1',
  ),
  'model.rope_base_local': (
    0.0,
    'model.rope_base_local=0.0 must be at least 1',
  ),
  'optimizer.clip_norm': (
    -1.0,
    'optimizer.clip_norm=-1.0 must be at least 0',
  ),
  'optimizer.eps': (
    -1.0,
    'optimizer.eps=-1.0 must be above 0',
  ),
  'optimizer.final_scale': (
    -1.0,
    'optimizer.final_scale=-1.0 must be at least 0 and at most 1',
  ),
  'optimizer.b1': (2.0, 'optimizer.b1=2.0 must be at least 0 and below 1'),
  'optimizer.weight_decay': (
    -50.0,
    'optimizer.weight_decay=-50.0 must be at least 0',
  ),
  'optimizer.warmup_steps': (
    -2000,
    'optimizer.warmup_steps=-2000 must be at least 0',
  ),
  'loss_weights.z_loss': (-1, 'loss_weights.z_loss=-1 must be at least 0'),
  'train.label_smoothing': (
    1.5,
    'train.label_smoothing=1.5 must be at least 0 and below 1',
  ),
  'train.seed': (
    99999999999999999999,
    'train.seed=99999999999999999999 must be at most 9,223,372,036,854,775,807',
  ),
  'tokenizer.vocab_size': (
    10**14,
    'tokenizer.vocab_size=100000000000000 must be at most 16,777,216',
  ),
  'evaluate.max_batches': (0, 'evaluate.max_batches=0 must be at least 1'),
  'evaluate.batch_size': (-4, 'evaluate.batch_size=-4 must be at least 1'),
  'generate.length_penalty': (
    math.nan,
    'generate.length_penalty=nan must be a finite number, at least -5 and at '
    'most 5',
  ),
  'generate.latent': (
    (0.0, math.inf),
    'generate.latent[1]=inf must be a finite number',
  ),
}

# What is larger than anything can hold, though its meaning sets no bound.
CAPS = {
  'model.num_experts': (
    2**63 - 1,
    'model.num_experts=9223372036854775807 must be at most 65,536',
  ),
  'model.image.height': (
    1_000_000,
    'model.image.height=1000000 must be at most 16,384',
  ),
  'train.num_steps': (
    2**31,
    'train.num_steps=2147483648 must be at most 2,147,483,646',
  ),
  'data.augment.gain_db': (
    1e300,
    'data.augment.gain_db=1e+300 must be at most 100',
  ),
  'optimizer.weight_decay': (
    50,
    'optimizer.weight_decay=50 must be at most 10',
  ),
  'model.max_length': (
    10**5000,
    'model.max_length=<16610 bits> must be at most 16,777,216',
  ),
  'generate.temperature': (
    1e-300,
    'generate.temperature=1e-300 is 0 for a float32; the smallest is 1.2e-38',
  ),
  'data.mixture_weights': (
    (math.inf,),
    'data.mixture_weights[0]=inf must be a finite number, above 0',
  ),
}


@pytest.mark.parametrize('path', RANGES)
def test_a_value_out_of_range_is_refused(path):
  value, message = RANGES[path]
  assert refused(path, value) == message


@pytest.mark.parametrize('path', CAPS)
def test_a_value_that_nothing_holds_is_refused(path):
  value, message = CAPS[path]
  assert refused(path, value) == message


def test_none_and_zero_are_told_apart():
  """What `or` would give a default is refused; None has the default."""
  model = config_lib.Model(width=32, num_heads=4)
  assert (model.kv_heads, model.head_width, model.mlp_width) == (4, 8, 128)
  for name in ('num_kv_heads', 'head_dim', 'mlp_dim', 'expert_dim'):
    with pytest.raises(config_lib.ConfigError, match=f'model.{name}=0 must be'):
      dataclasses.replace(model, **{name: 0})


# Values that are wrong together, as one dict of section.field.
GATED = {
  'sparsity.method': 'gated',
  'data.validation': ('text:x',),
  'data.batch_size': 8,
  'train.epoch_examples': 31,
  'train.epochs': 9,
  'train.eval_every': 2,
}
CONFLICTS = [
  (
    {'train.epochs': 3},
    'train.epochs=3 needs train.epoch_examples, the examples of an epoch',
  ),
  (
    {'optimizer.name': 'dadapt_adamw', 'optimizer.plateau_patience': 1},
    'optimizer.plateau_patience must be 0 with dadapt_adamw, whose estimate '
    'takes its steps to be made in full',
  ),
  (
    {'optimizer.adam_learning_rate': 0.001},
    'optimizer.adam_learning_rate=0.001 needs optimizer.name=muon, not adamw',
  ),
  (
    {'train.early_stopping': {'patience': 2}},
    'train.early_stopping.patience=2 needs data.validation',
  ),
  *(
    (
      {'optimizer.name': name, 'optimizer.layer_decay': 0.5},
      f'optimizer.layer_decay=0.5 must be 1 with {name}, which takes its steps '
      'to be made in full; use adamw, adafactor, muon or lion',
    )
    for name in (
      *('prodigy', 'schedule_free', 'momo_adam', 'dadapt_adamw', 'dog'),
    )
  ),
  (
    {'sparsity.method': 'gated'},
    'sparsity.method=gated needs train.epoch_examples, after which validation '
    'decides',
  ),
  (
    GATED | {'data.validation': ()},
    'sparsity.method=gated needs data.validation, by which it decides',
  ),
  (
    GATED | {'train.eval_every': 3},
    'train.eval_every=3 must divide the 4 steps of an epoch with '
    'sparsity.method=gated',
  ),
  (
    GATED | {'train.epochs': 4},
    'sparsity.method=gated prunes between the first 2 and the last 2 epochs of '
    'sparsity.gate, and the run has 4; train more than 4',
  ),
  (
    GATED | {'optimizer.ema_decay': 0.5},
    'optimizer.ema_decay=0.5 does not go with sparsity.method=gated, which '
    'goes back to earlier parameters; set it to 0',
  ),
  (
    {'sparsity.method': 'rigl', 'sparsity.distribution': 'global'},
    'sparsity.distribution=global is for single weights of '
    'sparsity.method=gradual, not rigl; choose erk',
  ),
  (
    {'compress.n_m': '2:4', 'compress.alpha': 0.25},
    "compress.n_m='2:4' must keep fewer than all, and prunes 0.5 of the "
    'weights; set compress.alpha=0.25 to 0',
  ),
  (
    {'compress.int8_inputs': True},
    'compress.int8_inputs=True needs compress.weights=int8, not float',
  ),
  (
    {
      'growth.at_step': 2,
      'growth.method': 'preserve',
      'growth.num_layers': 1,
      'model.num_layers': 2,
      'gates.method': 'l0',
      'gates.heads': 0.5,
    },
    "growth.at_step=2 does not go with gates.method='l0': grown units have no "
    'gates',
  ),
  (
    {'compress.block': 64},
    'compress.block=64 prunes the share compress.alpha of all blocks; set '
    'compress.alpha=0.0 above 0',
  ),
  (
    {'compress.block': 64, 'compress.alpha': 0.5, 'compress.n_m': '2:4'},
    "compress.block=64 prunes whole blocks; set compress.n_m='2:4' to ''",
  ),
  (
    {'optimizer.cycles': 3, 'optimizer.schedule': 'wsd'},
    'optimizer.cycles=3 needs optimizer.schedule=cosine, not wsd',
  ),
  (
    {
      'compress.block': 64,
      'compress.alpha': 0.5,
      'compress.method': 'sparsegpt',
    },
    "compress.block=64 does not go with compress.method='sparsegpt', which "
    'prunes single weights; use magnitude or wanda',
  ),
  (
    {'compress.method': 'gptq'},
    "compress.method='gptq' rounds to codes, and compress.weights='float' has "
    'none; set it to int8, int4 or float8',
  ),
  (
    {'compress.method': 'gptq', 'compress.weights': 'nf4'},
    "compress.method='gptq' does not round to compress.weights='nf4'; use "
    'method round, or weights int4',
  ),
  (
    {'tune.method': 'lora'},
    "tune.method='lora' needs train.init_from, the folder of the run whose "
    'parameters it tunes',
  ),
  (
    {
      'tune.method': 'adapter',
      'train.init_from': '/base',
      'optimizer.name': 'muon',
    },
    "tune.method='adapter' has no matrices that optimizer.name=muon is made "
    'for; use adamw',
  ),
  (
    {
      'tune.method': 'head',
      'train.init_from': '/base',
      'train.kl_annealing': {'pretrain_fraction': 0.5},
    },
    "tune.method='head' keeps the decoder, and "
    'train.kl_annealing.pretrain_fraction=0.5 starts it anew; set it to 0',
  ),
  (
    {'tune.method': 'head', 'tune.base': 'nf4'},
    "tune.base='nf4' needs tune.method lora or adalora, not head",
  ),
  (
    {'tune.method': 'adalora', 'tune.adalora': {'initial_rank': 4}},
    'tune.adalora.initial_rank=4 must be at least tune.rank=8',
  ),
  (
    {
      'tune.method': 'adalora',
      'train.init_from': '/base',
      'train.num_steps': 10,
      'tune.adalora': {'warmup_steps': 8},
    },
    'tune.adalora.warmup_steps=8 and final_steps=3 must together be less than '
    'train.num_steps=10',
  ),
  (
    {'sparsity.method': 'rigl', 'sparsity.pattern': ''},
    "sparsity.pattern='' chooses nothing for sparsity.method=rigl; name some "
    'matrices, such as @matrix$',
  ),
  (
    {'sparsity.n_m': '2:4', 'sparsity.block': 8},
    "sparsity.n_m='2:4' does not go with sparsity.block=8; set one of them",
  ),
  (
    {'sparsity.method': 'gated', 'sparsity.block': 8},
    'sparsity.method=gated prunes single weights; leave sparsity.n_m and '
    'sparsity.block off',
  ),
  (
    {
      'sparsity.method': 'static',
      'tune.method': 'lora',
      'train.init_from': '/base',
    },
    "sparsity.method=static does not go with tune.method='lora', whose update "
    'would fill what is pruned; use full',
  ),
  (
    {'sparsity.method': 'ste', 'optimizer.name': 'schedule_free'},
    'sparsity.method=ste trains what is pruned, and the average of '
    'optimizer.name=schedule_free would not be zero there; use another '
    'optimizer',
  ),
  (
    {'sparsity.method': 'static', 'sparsity.first': 'nonzero'},
    'sparsity.first=nonzero needs train.init_from, the folder of the run whose '
    'zeros are kept',
  ),
  (
    {
      'growth.method': 'preserve',
      'growth.at_step': 9,
      'growth.num_layers': 1,
      'sparsity.method': 'static',
    },
    "growth.at_step=9 does not go with sparsity.method='static': grown weights "
    'have no masks',
  ),
  (
    {
      'growth.method': 'copy',
      'tune.method': 'lora',
      'train.init_from': '/base',
    },
    "tune.method='lora' keeps the parameters of its base, and growth.method="
    "'copy' changes them; set it to none",
  ),
  (
    {'growth.at_step': 9, 'growth.num_layers': 1},
    'growth.at_step=9 needs growth.method preserve or copy',
  ),
  (
    {'growth.at_step': 9, 'growth.method': 'copy'},
    'growth.at_step=9 needs the sizes before it, such as growth.num_layers',
  ),
  (
    {'growth.num_layers': 1, 'growth.method': 'copy'},
    'growth.num_layers is a size before growth.at_step, which is 0',
  ),
  (
    {'gates.method': 'l0'},
    "gates.method='l0' goes with shares above 0 of gates.heads, kv_heads, "
    'channels or layers, and none with 0 of all',
  ),
  (
    {'gates.method': 'l0', 'gates.heads': 0.5, 'gates.begin': 0.8},
    'gates.begin=0.8 must be below gates.end=0.7',
  ),
  (
    {'train.accept_changes': ('data.batchsize',)},
    "train.accept_changes: 'data.batchsize' is not a field that it takes; did "
    'you mean data.batch_size or data.pack?',
  ),
  (
    {'model.vocab_size': 64, 'model.text_vocab_size': 65},
    'model.text_vocab_size=65 must be at least 1 and at most '
    'model.vocab_size=64',
  ),
  (
    {'model.contrast_dim': 8},
    "model.contrast_dim=8 needs model.architecture='encoder_decoder': the "
    'encoder reads both sides',
  ),
  (
    {
      'model.architecture': 'encoder_decoder',
      'data.objective': 'seq2seq',
      'model.contrast_dim': 8,
    },
    'model.contrast_dim=8 compares the examples of rows; set data.pack=False',
  ),
  (
    {'model.latent': {'dim': 3, 'memory': 0, 'embedding': False}},
    'model.latent.memory=0 needs model.latent.embedding=True: the decoder '
    'would not see z',
  ),
  (
    {'model.latent': {'dim': 3}},
    'model.latent.dim=3 is one z for each row; set data.pack=False',
  ),
  (
    {'train.kl_annealing': {'min_kl': 2.0}},
    'train.kl_annealing.min_kl=2.0 needs schedule constant: while the KL term '
    'is off nothing would hold its multiplier',
  ),
  (
    {'train.kl_annealing': {'zero_fraction': 0.75}},
    'train.kl_annealing.zero_fraction=0.75 and '
    'ramp_fraction=0.5 must together be at most 1',
  ),
  (
    {'generate.source': 'interpolate', 'generate.prompt': 'one'},
    "generate.prompt='one' must be 2 texts with '||' between them for "
    "generate.source='interpolate'",
  ),
  (
    {'generate.prompt': 'caf\udce9'},
    "generate.prompt='caf\\udce9' is not Unicode text in UTF-8",
  ),
  (
    {'evaluate.samples': {'prompts': ('a', '\ud800')}},
    "evaluate.samples.prompts[1]='\\ud800' is not Unicode text in UTF-8",
  ),
  (
    {'model.num_heads': 3},
    'model.num_heads=3 must divide model.width=256 unless model.head_dim is '
    'set',
  ),
  (
    {
      'data.deduplicate': True,
      'data.inputs_field': 'x',
      'data.targets_field': 'y',
    },
    'data.deduplicate=True is for plain text; data.inputs_field='
    "'x', data.tasks=() and data.chat_field='' are none",
  ),
  (
    {
      'data.chat_field': 'messages',
      'data.inputs_field': 'x',
      'data.targets_field': 'y',
    },
    "data.chat_field='messages' does not go with data.inputs_field='x' and "
    'data.tasks=()',
  ),
  (
    {'data.chat_field': 'messages', 'data.objective': 'prefix'},
    "data.chat_field='messages' needs data.objective=causal, not prefix",
  ),
  (
    {'data.chat_field': 'messages'},
    "data.chat_field='messages' needs a tokenizer with a chat template: "
    'tokenizer.kind=huggingface, not bytes',
  ),
  (
    {
      'generate.chat': 'talk.json',
      'generate.source': 'posterior',
    },
    "generate.chat='talk.json' does not go with generate.source='posterior'; "
    'use prompt or prior',
  ),
  (
    {
      'data.tasks': ('{a} -> {b}',),
      'data.inputs_field': 'x',
      'data.targets_field': 'y',
    },
    "data.tasks=('{a} -> {b}',) and data.inputs_field='x' must not both be set",
  ),
  (
    {'model.image': {'height': 16, 'width': 12, 'patch': 8}},
    'model.image.patch=8 must divide model.image.height=16 and '
    'model.image.width=12',
  ),
  (
    {'model.image': {'height': 16}},
    'model.image.height=16 and model.image.width=0 must be set together',
  ),
  (
    {'model.audio': {'sample_rate': 8000, 'f_max': 5000.0}},
    'model.audio.f_max=5000.0 must be above model.audio.f_min=20.0 and at most '
    'half of model.audio.sample_rate=8000',
  ),
  (
    {'model.audio': {'sample_rate': 10, 'f_min': 1.0}},
    'model.audio.hop=0.01 is less than a sample',
  ),
  (
    {'model.video': {'num_frames': 4}},
    'model.video.num_frames=4 needs model.image.height and '
    'model.image.width, of the frames',
  ),
  (
    {
      'model.image': {'height': 8, 'width': 8, 'num_tokens': 3},
      'model.video': {'num_frames': 4, 'frame_tokens': 2},
    },
    'model.video.frame_tokens=2 are rectangles of patches: of the tokens that '
    'model.image.num_tokens=3 leaves, use 0 or 1',
  ),
  (
    {'model.architecture': 'encoder_decoder', 'model.num_encoder_layers': 0},
    'model.num_encoder_layers=0 must be at least 1 where there is an encoder',
  ),
  (
    {
      'model.image': {
        'height': 8,
        'width': 8,
        'num_blocks': 1,
        'autoencoder': {'dim': 2},
      },
    },
    'model.image.num_blocks=1 has no effect with model.image.autoencoder.dim=2'
    ': the z of each patch is read',
  ),
  (
    {'model.audio': {'num_tokens': 3, 'autoencoder': {'dim': 2}}},
    'model.audio.num_tokens=3 has no effect with model.audio.autoencoder.dim=2'
    ': the z of each patch is read',
  ),
  (
    {
      'model.architecture': 'encoder_decoder',
      'model.position': 'learned',
      'data.objective': 'seq2seq',
      'data.inputs_length': 300,
    },
    'data.inputs_length=300 must be at most model.max_length=256 for '
    "model.position='learned'",
  ),
  (
    {'model.series': {'length': 4}},
    'model.series.patch=8 must be at most model.series.length=4',
  ),
  (
    {'data.normalization': {'fields': ('a',), 'means': (0.0,)}},
    'data.normalization: fields, means and deviations must be of one length, '
    'each field once; they have [1, 1, 0]',
  ),
  (
    {'model.head_dim': 6, 'model.image': {'num_layers': 1}},
    'model.head_dim=6 must be a multiple of 4 for '
    "model.image.position='rotary' in model.image.num_layers=1",
  ),
  (
    {
      'model.position': 'none',
      'model.head_dim': 7,
      'model.audio': {'num_layers': 1},
    },
    'model.head_dim=7 must be even for the rotary positions of '
    'model.audio.num_layers=1',
  ),
  (
    {'data.train': ('a:b',), 'data.mixture_weights': (0.0,)},
    'data.mixture_weights[0]=0.0 must be above 0',
  ),
  (
    {'optimizer.name': 'schedule_free', 'optimizer.ema_decay': 0.9},
    'optimizer.ema_decay must be 0 with schedule_free, which averages itself',
  ),
  (
    {'optimizer.name': 'schedule_free', 'optimizer.plateau_patience': 3},
    'optimizer.plateau_patience must be 0 with schedule_free, whose average '
    'would not see the scaled steps',
  ),
  (
    {'data.objective': 'seq2seq'},
    "data.objective='seq2seq' does not go with model.architecture='decoder'; "
    'encoder_decoder goes with seq2seq, decoder with causal or prefix',
  ),
  (
    {'model.architecture': 'encoder_decoder', 'data.objective': 'prefix'},
    "data.objective='prefix' does not go with model.architecture="
    "'encoder_decoder'; encoder_decoder goes with seq2seq, decoder with "
    'causal or prefix',
  ),
  (
    {'model.num_experts': 4, 'model.experts_per_token': 5},
    'model.experts_per_token=5 must be at least 1 and at most '
    'model.num_experts=4',
  ),
  (
    {'model.num_experts': 4, 'model.mlp_bias': True},
    'model.mlp_bias=True needs model.num_experts=0, not 4',
  ),
  (
    {
      'model.remat_save': ('query', 'up'),
      'model.remat_offload': ('up', 'gate'),
    },
    "model.remat_save=('query', 'up') and model.remat_offload=('up', 'gate') "
    'must not share names: up',
  ),
  (
    {'optimizer.name': 'schedule_free', 'optimizer.b1': 0.0},
    'optimizer.b1=0.0 must be above 0 with schedule_free, which divides by it',
  ),
  (
    {
      'model.rope_llama3_context': 8192,
      'model.rope_llama3_factors': (8.0, 4.0, 4.0),
    },
    'model.rope_llama3_factors=(8.0, 4.0, 4.0) must be (factor, low, high) '
    'with low below high',
  ),
  (
    {
      'model.audio': {'sample_rate': 1_000_000, 'num_mels': 1024, 'window': 1.0}
    },
    'model.audio.window=1.0 of 1,000,000 samples and model.audio.num_mels=1024 '
    'make a matrix of 1,024,000,000 numbers; it holds at most 268,435,456',
  ),
  (
    {
      'model.image': {'height': 8, 'width': 16},
      'data.augment': {'crop_padding': 9},
    },
    'data.augment.crop_padding=9 must be at most 8, the smaller of '
    'model.image.height and model.image.width',
  ),
  (
    {
      'model.max_length': 2**20,
      'data.sequence_length': 2**20,
      'data.batch_size': 2**10,
    },
    'data.batch_size=1024 rows of data.sequence_length=1048576 are '
    '1,073,741,824 tokens; a batch holds at most 268,435,456',
  ),
  (
    {
      'model.architecture': 'encoder_decoder',
      'data.objective': 'seq2seq',
      'data.inputs_length': 2**20,
      'evaluate.batch_size': 2**10,
    },
    'evaluate.batch_size=1024 rows of data.sequence_length=256 and '
    'data.inputs_length=1048576 are 1,074,003,968 tokens; a batch holds at '
    'most 268,435,456',
  ),
  (
    {'model.image': {'height': 16384, 'width': 16384}},
    'data.batch_size=16 rows with model.image.height=16384 x width=16384 '
    'pixels are 48 GiB; the images of a batch hold at most 32 GiB',
  ),
  (
    {'model.audio': {'sample_rate': 48_000, 'seconds': 100_000.0}},
    'data.batch_size=16 rows with model.audio.seconds=100000.0 '
    'at sample_rate=48000 are 286 GiB; the audios of a batch hold at most 32 '
    'GiB',
  ),
  (
    {
      'model.image': {'height': 512, 'width': 512},
      'model.video': {'num_frames': 1024},
      'plan.decode_batch_size': 64,
    },
    'data.batch_size=16 rows with model.video.num_frames=1024 of '
    'model.image.height=512 x width=512 pixels are 48 GiB; the videos of a '
    'batch hold at most 32 GiB',
  ),
  *(
    (
      {'generate.draft': 'runs/a', f'generate.{name}': value},
      f"generate.{name}={value!r} does not go with generate.draft='runs/a': "
      'tokens are drafted for sampled text alone',
    )
    for name, value in (('steer', 'a=b'), ('beam_size', 2), ('output', 'image'))
  ),
  *(
    (
      {f'generate.{other}': value, f'generate.{name}': asked},
      f'generate.{name}={asked!r} does not go with generate.{other}={value!r}, '
      'which are for sampled text alone',
    )
    for name, asked in (('steer', 'a=b'), ('output', 'image'))
    for other, value in (('adapters', ('runs/a',)), ('prompts', 'a.jsonl'))
  ),
  (
    {'generate.adapters': ('runs/a', 'runs/a')},
    "generate.adapters=('runs/a', 'runs/a') must be different folders",
  ),
  (
    {'tune.method': 'head', 'tune.dropout': 0.1},
    'tune.dropout=0.1 needs tune.method lora or adalora, not head',
  ),
  (
    {'model.image': {'tower': {'width': 8, 'num_heads': 3}}},
    'model.KIND.tower.num_heads=3 must divide model.KIND.tower.width=8',
  ),
  (
    {'evaluate.test_time_views': 2},
    'evaluate.test_time_views=2 are of pictures: set model.image.height and '
    'model.image.width, or 1',
  ),
  (
    {'model.image': {'tower': {'width': 12}}},
    'model.image.tower.width=12 needs model.image.num_layers above 0',
  ),
  (
    {'model.image': {'num_layers': 1, 'num_blocks': 1, 'tower': {'width': 12}}},
    'model.image.tower.width=12 needs model.image.num_blocks=0, not 1: a tower '
    'projects each patch by itself',
  ),
  (
    {'model.audio': {'tower': {'class_token': True}}},
    'model.audio.tower.class_token=True is of pictures',
  ),
  (
    {'model.audio': {'num_layers': 1, 'tower': {'width': 12}}},
    'model.audio.tower.width=12 needs model.audio.patch=2, not 4',
  ),
  (
    {'data.rejected_field': 'rejected'},
    "data.rejected_field='rejected' needs data.inputs_field, of the prompts, "
    'and data.targets_field, of what is preferred, or data.chat_field, of '
    'preferred conversations',
  ),
  *(
    (
      {
        'data.inputs_field': 'prompt',
        'data.targets_field': 'chosen',
        'data.rejected_field': 'rejected',
        'data.pack': False,
        field: value,
      },
      f"{name}={number} does not go with data.rejected_field='rejected'; set "
      'it to 0',
    )
    for field, value, name, number in (
      ('model.latent', {'dim': 3}, 'model.latent.dim', 3),
      ('train.label_smoothing', 0.1, 'train.label_smoothing', 0.1),
      ('loss_weights.z_loss', 0.001, 'loss_weights.z_loss', 0.001),
    )
  ),
  (
    {'data.sequence_length': 300},
    'data.sequence_length=300 must be at most model.max_length=256',
  ),
  (
    {'optimizer.accumulation_steps': 3},
    'optimizer.accumulation_steps=3 must divide data.batch_size=16',
  ),
]


@pytest.mark.parametrize(('values', 'message'), CONFLICTS)
def test_values_that_do_not_go_together_are_refused(values, message):
  nested = {}
  for path, value in values.items():
    section, field = path.split('.')
    nested.setdefault(section, {})[field] = value
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.from_config_dict(nested)
  assert str(error.value) == message


def test_every_check_is_tested_here():
  """A new `check` of a field needs its message in a table above."""
  checks = [
    node
    for path in sorted(pathlib.Path(config_lib.__file__).parent.glob('*.py'))
    for item in ast.parse(path.read_text()).body
    if isinstance(item, ast.ClassDef)
    for node in ast.walk(item)
    if isinstance(node, ast.Call)
    and ast.unparse(node.func) in ('check', 'schema.check')
  ]
  messages = [message for _, message in RANGES.values()]
  messages += [message for _, message in CONFLICTS]
  assert len(checks) > 15
  for call in checks:
    parts = [
      part.value
      for part in ast.walk(call.args[1])
      if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    found = [all(part in text for part in parts) for text in messages]
    assert any(found), ast.unparse(call)


def test_a_finished_run_has_no_course_any_more():
  config = config_lib.from_config_dict(
    {
      'sparsity': {'method': 'rigl', 'first': 'nonzero'},
      'train': {'init_from': 'base'},
      'evaluate': {'checkpoint': 'best'},
      'generate': {'checkpoint': 'best', 'temperature': 0.5},
    }
  )
  found = config.of_finished()
  # Without another run's zeros there would be no such sparsity.
  found = dataclasses.replace(
    found, train=dataclasses.replace(found.train, init_from='')
  )
  assert found.sparsity.method == 'none'
  assert found.evaluate.checkpoint == found.generate.checkpoint == 'latest'
  assert found.generate.temperature == 0.5
  grown = {'growth': {'at_step': 2, 'num_layers': 1, 'method': 'preserve'}}
  config = config_lib.from_config_dict(grown | {'model': {'num_layers': 2}})
  assert config.of_finished().growth.at_step == 0


def changed():
  """A config in which Optional fields and tuples are set."""
  return config_lib.from_config_dict(
    {
      'model': {
        'vocab_size': 99,
        'attention_pattern': ('local', 'global'),
        'rope_base_local': 100.0,
        'remat_save': ('up',),
        'remat_offload': ('gate', 'attended'),
      },
      'data': {'train': ('a:b', 'c:d'), 'mixture_weights': (1.0, 2.0)},
      'optimizer': {'learning_rate': 0.5},
    }
  )


@pytest.mark.parametrize('config', [config_lib.Config(), changed()])
def test_round_trips(config):
  assert config_lib.from_json(config_lib.to_json(config)) == config
  made = config_lib.to_config_dict(config)
  assert config_lib.from_config_dict(made) == config
  assert config_lib.from_config_dict(made.to_dict()) == config


# What a config.json could hold, however it came there.
DAMAGED = {
  '': 'the config is not JSON: Expecting value: line 1 column 1 (char 0)',
  '{"model": ': (
    'the config is not JSON: Expecting value: line 1 column 11 (char 10)'
  ),
  '[' * 100_000: 'the config is nested too deeply',
  '{"model": {"image": ' + '[' * 900 + ']' * 900 + '}}': (
    'model.image=[[[[[[[...]]]]]]] must be a section of the config'
  ),
  '[]': 'config=[] must be a section of the config',
  'null': 'config=None must be a section of the config',
  '5': 'config=5 must be a section of the config',
  '{"model": 5}': 'model=5 must be a section of the config',
  '{"model": []}': 'model=[] must be a section of the config',
  '{"model": null}': 'model=None must be a section of the config',
  '{"model": {"image": "x"}}': (
    "model.image='x' must be a section of the config"
  ),
  '{"model": {"image": {"autoencoder": true}}}': (
    'model.image.autoencoder=True must be a section of the config'
  ),
  '{"model": {}, "model": {}}': "'model' stands twice in one section",
  '{"model": {"width": 32, "width": 64}}': (
    "'width' stands twice in one section"
  ),
  '{"model": {"norm": ["pre"]}}': (
    "model.norm=['pre'] must be one of pre, pre_post"
  ),
  '{"model": {"norm": {}}}': 'model.norm={} must be one of pre, pre_post',
  '{"model": {"norm": null}}': 'model.norm=None must be one of pre, pre_post',
  '{"model": {"image": {"channels": true}}}': (
    'model.image.channels=True must be one of 1, 3'
  ),
  '{"model": {"image": {"channels": 1.0}}}': (
    'model.image.channels=1.0 must be one of 1, 3'
  ),
  '{"model": {"attention_pattern": "global"}}': (
    "model.attention_pattern='global' must be a tuple"
  ),
  '{"model": {"dropout": NaN}}': (
    'model.dropout=nan must be a finite number, at least 0 and below 1'
  ),
  '{"optimizer": {"clip_norm": Infinity}}': (
    'optimizer.clip_norm=inf must be a finite number, at least 0'
  ),
  '{"optimizer": {"clip_norm": 1' + '0' * 400 + '}}': (
    'optimizer.clip_norm=<1329 bits> must be at most 3.4e+38'
  ),
  '{"model": {"width": null}}': 'model.width=None must be int, not NoneType',
  '{"model": {"width\\nis": 3}}': (
    "model.'width\\nis' is not a field of model; did you mean width?"
  ),
}


@pytest.mark.parametrize('text', DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_json_is_told_in_one_line(text):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.from_json(text)
  assert str(error.value) == DAMAGED[text]


def test_an_int_of_too_many_digits_is_told_in_one_line():
  with pytest.raises(config_lib.ConfigError, match='the config is not JSON'):
    config_lib.from_json(f'{{"train": {{"seed": {"9" * 5000}}}}}')


def test_keys_are_strings():
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.from_config_dict({'model': {5: 3}})
  assert str(error.value).startswith('model.5 is not a field of model')


def test_ranges_do_not_reach_a_config_dict():
  """Fields that are None take what a plain number's field takes."""
  made = config_lib.to_config_dict()
  made.model.mlp_dim = 7
  made.model.init_scale = 0.5
  made.data.audio_sample_rate = 8000
  with pytest.raises(TypeError):
    made.model.vocab_size = 'many'
  config = config_lib.from_config_dict(made)
  assert (config.model.mlp_dim, config.model.init_scale) == (7, 0.5)
  written = json.loads(config_lib.to_json(config))
  assert config_lib.from_config_dict(written) == config


def test_a_config_dict_holds_every_field():
  made = config_lib.to_config_dict()
  assert isinstance(made, ml_collections.ConfigDict)
  assert set(made) == set(SECTIONS)
  for name, section in SECTIONS.items():
    fields = dataclasses.fields(section)
    assert set(made[name]) == {field.name for field in fields}


def test_the_frozen_config_is_frozen():
  config = config_lib.Config()
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.model.width = 3
  assert hash(config) == hash(config_lib.Config())


@pytest.mark.parametrize('section', SECTIONS)
def test_every_field_is_explained(section):
  """By a comment above it, or above its neighbour of the same type."""
  source = inspect.getsource(SECTIONS[section])
  lines = source.splitlines()
  fields = [
    node
    for node in ast.parse(source).body[0].body
    if isinstance(node, ast.AnnAssign)
  ]
  assert fields
  kinds = typing.get_type_hints(SECTIONS[section])

  def kind(node):
    hint = kinds[node.target.id]
    args = typing.get_args(hint)
    return args[0] if type(None) in args else hint

  for before, field in zip([None, *fields], fields, strict=False):
    commented = lines[field.lineno - 2].lstrip().startswith('#')
    shares = (
      before is not None
      and before.end_lineno == field.lineno - 1
      and kind(before) == kind(field)
    )
    assert commented or shares, f'{section}.{field.target.id}'


EXPERIMENT = """
from experiments import base


def get_config(arg=''):
  config = base.get_config()
  config.model.width = int(arg or 64)
  return config
"""


@pytest.fixture
def parse(tmp_path):
  """Parses a command line with these overrides."""
  file = tmp_path / 'experiment.py'
  file.write_text(EXPERIMENT)

  def run(*overrides, arg=''):
    argv = ['main', f'--config={file}{arg}', *overrides]
    return command.parse(argv, {'mode': 'train'}).config

  return run


# Flag: (field, value).
OVERRIDES = {
  '--config.model.width=32': ('model.width', 32),
  '--config.model.rope_base=100': ('model.rope_base', 100.0),
  '--config.model.remat': ('model.remat', True),
  '--noconfig.model.scan_layers': ('model.scan_layers', False),
  '--config.model.scan_layers=false': ('model.scan_layers', False),
  '--config.model.norm=pre_post': ('model.norm', 'pre_post'),
  # These are None until they are set.
  '--config.model.vocab_size=512': ('model.vocab_size', 512),
  '--config.model.rope_base_local=100': ('model.rope_base_local', 100.0),
  '--config.optimizer.learning_rate=1e-2': ('optimizer.learning_rate', 0.01),
  '--config.data.data_dir=/data': ('data.data_dir', '/data'),
  '--config.train.compilation_cache=': ('train.compilation_cache', ''),
  # Tuples: empty ones, longer ones, of strings and of numbers.
  "--config.model.attention_pattern=('local','global')": (
    'model.attention_pattern',
    ('local', 'global'),
  ),
  "--config.data.train=('a:b','c:d')": ('data.train', ('a:b', 'c:d')),
  "--config.evaluate.evaluators=('samples', 'captions')": (
    'evaluate.evaluators',
    ('samples', 'captions'),
  ),
  '--config.model.rope_llama3_factors=(4.0,1.0,2.0)': (
    'model.rope_llama3_factors',
    (4.0, 1.0, 2.0),
  ),
}


@pytest.mark.parametrize('flag', OVERRIDES)
def test_a_flag_overrides_a_field(flag, parse):
  path, expected = OVERRIDES[flag]
  section, field = path.split('.')
  assert getattr(getattr(parse(), section), field) != expected
  actual = getattr(getattr(parse(flag), section), field)
  assert actual == expected and type(actual) is type(expected)


WRONG_FLAGS = {
  '--config.optimizer.clip_norm=-1': (
    'optimizer.clip_norm=-1.0 must be at least 0'
  ),
  '--config.optimizer.clip_norm=inf': (
    'optimizer.clip_norm=inf must be a finite number, at least 0'
  ),
  '--config.generate.length_penalty=nan': RANGES['generate.length_penalty'][1],
  '--config.train.seed=99999999999999999999': RANGES['train.seed'][1],
  '--config.evaluate.max_batches=0': (
    'evaluate.max_batches=0 must be at least 1'
  ),
  '--config.model.mlp_dim=-1': 'model.mlp_dim=-1 must be at least 1',
  '--config.model.audio.autoencoder.width=0': (
    'model.audio.autoencoder.width=0 must be at least 1'
  ),
  '--config.model.image.height=1000000': CAPS['model.image.height'][1],
  '--config.data.mixture_weights=(1e999,)': CAPS['data.mixture_weights'][1],
}


@pytest.mark.parametrize('flag', WRONG_FLAGS)
def test_a_flag_out_of_range_is_refused(flag, parse):
  with pytest.raises(config_lib.ConfigError) as error:
    parse(flag)
  assert str(error.value) == WRONG_FLAGS[flag]


def test_the_argument_reaches_the_experiment(parse):
  assert parse().model.width == 64
  assert parse(arg=':32').model.width == 32
  assert parse('--config.model.width=16', arg=':32').model.width == 16
