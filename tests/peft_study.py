"""Updates of low rank beside PEFT's own reading and writing of them: a table.

  pip install peft
  PYTHONPATH=. python -P tests/peft_study.py

A tiny random Llama. Differences are the largest of the logits, beside the
largest change that the updates make.
"""

import functools
import pathlib
import tempfile

import jax
import numpy as np
import peft
import torch
import transformers

import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.models import build, gemini, parameter_groups
from gemini_jax.weights import families, peft_files, published, tuning

torch.manual_seed(0)
folder = pathlib.Path(tempfile.mkdtemp(prefix='peft_study_'))
theirs = transformers.LlamaForCausalLM(
  transformers.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    initializer_range=0.3,
  )
).eval()
theirs.save_pretrained(folder / 'base')
source = published.open_source(folder / 'base')
config = source.config('float32')
mesh = toy.make_mesh()
base = source.params(config, mesh)
model = gemini.Gemini(config.model)
tokens = np.random.default_rng(0).integers(3, 64, (2, 20)).astype(np.int32)
entries = published.export_entries(
  families.read(folder / 'base'), config.model, base, 'huggingface'
)


def ours(params):
  sequence = batch_lib.plain_sequence(tokens, np.full(2, 20))
  batch = batch_lib.Batch(sequence, tokens, np.ones((2, 20), np.float32))
  return np.asarray(jax.jit(model.apply)({'params': params}, batch)[0])


def logits(module):
  with torch.no_grad():
    return module(torch.from_numpy(tokens).long()).logits.numpy()


def tell(name, ours_BTV, theirs_BTV, plain):
  change = np.abs(theirs_BTV - plain).max()
  error = np.abs(ours_BTV - theirs_BTV).max()
  print(f'{name:40} difference {error:.1e}, change {change:.1f}')


plain = logits(theirs)
tell('base', ours(base), plain, 0)
for name, fields in {
  'lora': {'method': 'lora'},
  'rslora': {'method': 'lora', 'rank_stabilized': True},
  'adalora, two thirds cut': {'method': 'adalora', 'rank': 4},
}.items():
  tune = config_lib.Tune(**{'rank': 6, 'alpha': 2.0} | fields)
  params = tuning.wrapped(tune, base)
  own = parameter_groups.own(tune, params)
  drawn = toy.random_tree(jax.eval_shape(lambda own=own: own), 3)
  params = parameter_groups.merged(drawn, params)
  if tune.method == 'adalora':
    cut = lambda leaf: leaf.replace(
      gains=leaf.gains * (np.abs(leaf.gains) > 0.2)
    )
    params = jax.tree.map(
      lambda leaf, cut=cut: cut(leaf) if tuning.is_weight(leaf) else leaf,
      params,
      is_leaf=tuning.is_weight,
    )
  run = config_lib.Config(
    tune=tune, train=config_lib.Train(init_from=str(folder / 'base'))
  )
  peft_files.write(
    folder / name, run, params, entries, 'a base', str(folder / 'base')
  )
  written = peft.AutoPeftModelForCausalLM.from_pretrained(folder / name).eval()
  tell(f'{name}, written by us', ours(params), logits(written), plain)

for name, fields in {
  'lora': {'r': 4, 'lora_alpha': 8},
  'several ranks, rslora': {
    'r': 4,
    'lora_alpha': 3,
    'use_rslora': True,
    'rank_pattern': {'model.layers.1.self_attn.q_proj': 6, 'o_proj': 2},
    'alpha_pattern': {'o_proj': 5},
  },
}.items():
  adapter = peft.get_peft_model(
    transformers.LlamaForCausalLM.from_pretrained(folder / 'base'),
    peft.LoraConfig(
      task_type='CAUSAL_LM',
      target_modules=['q_proj', 'o_proj', 'down_proj'],
      **fields,
    ),
  ).eval()
  with torch.no_grad():
    for parameter_name, parameter in adapter.named_parameters():
      if 'lora_' in parameter_name:
        parameter.copy_(0.2 * torch.randn(parameter.shape))
  adapter.save_pretrained(folder / f'{name} theirs')
  found = peft_files.read(folder / f'{name} theirs', base, entries)
  wrap = functools.partial(tuning.wrapped, found.tune)
  abstract = build.abstract_params(model, mesh, wrap)
  params = tuning.attached(found.tune, found.own, base, abstract)
  tell(f'{name}, written by PEFT', ours(params), logits(adapter), plain)
