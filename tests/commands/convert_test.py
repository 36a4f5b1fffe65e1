"""Published models become workdirs, and runs become published models."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import byte_pair
import tiny
import tiny_published
import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import main
from gemini_jax import run as run_lib
from gemini_jax.commands import convert, convert_sources
from gemini_jax.data import tokenizer as tokenizer_lib
from gemini_jax.weights import (
  config_json,
  exported_program,
  gguf_file,
  published,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny_published.write(tmp_path_factory.mktemp('published') / 'llama')


@pytest.fixture(scope='module')
def workdir(folder):
  path = folder.parent / 'run'
  assert call(folder, path) == 0
  return path


def call(source, target, **flags):
  flags = {'source': source, 'target': target} | flags
  return convert.main(['convert', *(f'--{k}={v}' for k, v in flags.items())])


def parameters(workdir):
  """All parameters of a workdir, by path."""
  arrays = tiny.arrays(workdir)
  return {path: leaf for path, leaf in arrays.items() if 'params' in path}


def run(workdir, mode, *fields):
  flags = [f'--config.{field}' for field in fields]
  return main.main(['main', f'--workdir={workdir}', f'--mode={mode}', *flags])


def test_it_writes(workdir, capsys):
  fields = ['generate.prompt=the cat', 'generate.max_tokens=4']
  assert run(workdir, 'generate', *fields) == 0
  assert 'the cat' in capsys.readouterr().out
  assert len(tiny.generated(workdir)) == 1


def test_it_answers(workdir):
  fields = ['generate.prompt=Hi', 'generate.chat=prompt']
  assert run(workdir, 'generate', *fields, 'generate.max_tokens=4') == 0


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('again', {'format': 'huggingface'}),
    ('again.gguf', {'format': 'gguf', 'type': 'F32'}),
  ],
)
def test_there_and_back(name, flags, workdir, tmp_path):
  """To the last bit, and with the same tokens."""
  target = tmp_path / name
  assert call(workdir, target, **flags) == 0
  assert call(target, tmp_path / 'back') == 0
  jax.tree.map(
    np.testing.assert_array_equal,
    parameters(tmp_path / 'back'),
    parameters(workdir),
  )
  before, after = (
    tokenizer_lib.load(path / 'tokenizer')
    for path in (workdir, tmp_path / 'back')
  )
  for text in (*byte_pair.CORPUS[:2], 'Hi 12 <|im_end|> \U0001f600\n\n'):
    np.testing.assert_array_equal(before.encode(text), after.encode(text))
  assert before.chat_template == after.chat_template == byte_pair.TEMPLATE
  assert before.end_ids == after.end_ids


def test_a_gguf_file_names_every_row_of_the_table(tmp_path):
  """llama.cpp refuses a file with fewer tokens than rows."""
  source = tiny_published.write(tmp_path / 'llama', more_rows=7)
  target = tmp_path / 'model.gguf'
  assert call(source, target, format='gguf') == 0
  file = gguf_file.open_gguf(target)
  num_rows = file.tensors['token_embd.weight'].shape[0]
  assert len(file.metadata['tokenizer.ggml.tokens']) == num_rows


def test_nothing_else_in_the_folder_changes(workdir, tmp_path):
  """Neither what another conversion to the same target wrote so far."""
  other = tmp_path / 'model.gguf.unfinished'
  other.mkdir()
  (other / 'notes').write_text('mine')
  assert call(workdir, tmp_path / 'model.gguf', format='gguf') == 0
  assert (other / 'notes').read_text() == 'mine'
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'model.gguf',
    other.name,
  ]
  metadata = gguf_file.open_gguf(tmp_path / 'model.gguf').metadata
  assert metadata['general.name'] == 'model'


def test_a_tokenizer_with_an_added_token_more_than_rows(tmp_path):
  """As the folders of Gemma 3 1B."""
  source = tiny_published.write(tmp_path / 'llama', more_rows=-1)
  assert call(source, tmp_path / 'run') == 0
  words = tokenizer_lib.load(tmp_path / 'run/tokenizer')
  config = config_lib.read(tmp_path / 'run/config.json')
  assert config.model.vocab_size == words.vocab_size
  assert words.encode('<think>').size > 1


@pytest.mark.parametrize('method', ['full', 'lora'])
def test_a_training_starts_from_it(method, workdir, tmp_path):
  """With the answers of conversations, by the experiment for that."""
  turn = lambda i: [
    {'role': 'user', 'content': f'the cat {i}'},
    {'role': 'assistant', 'content': 'sat on the mat'},
  ]
  lines = [json.dumps({'messages': turn(i)}) + '\n' for i in range(40)]
  (tmp_path / 'chats.jsonl').write_text(''.join(lines))
  code = main.main(
    [
      'main',
      f'--workdir={tmp_path / "tuned"}',
      '--config=experiments/fine_tune.py:'
      f'base={workdir},method={method},data={tmp_path / "chats.jsonl"}',
      '--config.train.num_steps=8',
      '--config.train.log_every=1',
      '--config.optimizer.learning_rate=0.01',
      '--config.optimizer.warmup_steps=0',
      '--config.data.sequence_length=64',
      '--config.data.batch_size=8',
    ]
  )
  assert code == 0
  lines = tiny.metrics(tmp_path / 'tuned')
  losses = [line['train/loss'] for line in lines if 'train/loss' in line]
  assert losses[-1] < 0.9 * losses[0]
  fields = ['generate.chat=prompt', 'generate.prompt=Hi']
  assert run(tmp_path / 'tuned', 'generate', *fields) == 0


ALONE = """
import json, sys
from gemini_jax.weights import exported_program
model = exported_program.load(sys.argv[1])
print(json.dumps(model.generate(json.loads(sys.argv[2]), 6)))
assert not [m for m in sys.modules if m.startswith('gemini_jax.models')]
"""


def test_programs_run_without_the_model(workdir, tmp_path):
  """In a process of their own, with the words that the run writes."""
  target = tmp_path / 'programs'
  assert call(workdir, target, format='stablehlo', rows=2, slots=48) == 0
  rng = np.random.default_rng(0)
  # The second is longer than what is read at once.
  prompts = [rng.integers(3, 100, length).tolist() for length in (5, 41)]
  done = subprocess.run(
    [sys.executable, '-c', ALONE, str(target), json.dumps(prompts)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  run = run_lib.open_run(config_lib.read(workdir / 'config.json'), workdir)
  params = run.restore_params().params
  for prompt, written in zip(prompts, json.loads(done.stdout), strict=True):
    tokens_1T = np.array([prompt + written])
    sequence = batch_lib.plain_sequence(tokens_1T, np.array([tokens_1T.size]))
    batch = batch_lib.Batch(sequence, tokens_1T, np.ones(tokens_1T.shape))
    logits_BTV = np.asarray(toy.apply(run.model, params, batch)[0])
    likeliest = np.argmax(logits_BTV[0, len(prompt) - 1 : -1], axis=-1)
    assert likeliest.tolist() == written


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    ('decode.stablehlo', lambda old: old[:-9], 'is damaged: its checksum'),
    ('manifest.json', lambda old: b'{}', 'is not that of a model in'),
    ('manifest.json', lambda old: old[:-9], 'is damaged, or was written'),
    ('prefill.stablehlo', None, 'No such file'),
    (
      'manifest.json',
      lambda old: old.replace(b'"cpu"', b'"abacus"'),
      'runs on abacus, cuda, tpu, not cpu',
    ),
    *(
      (
        'manifest.json',
        lambda old, a=a, b=b: re.sub(a, b, old),
        f'prefill.stablehlo does not fit the other files: {what}',
      )
      for a, b, what in (
        (rb'"slots": 8', b'"slots": 1099511627776', 'slots 1099511627776'),
        (rb'"rows": 1', b'"rows": 65536', 'cache of keys|tokens .*65536'),
        (rb'"piece": 8', b'"piece": 1073741824', r'tokens .*\[1, 1073741824\]'),
        (rb'"vocab_size": ', b'"vocab_size": 9999', r'logits .*\[1, 9999'),
        (rb'"shape": \[\s*2', b'"shape": [1048576', r'cache of keys .*1048576'),
      )
    ),
    (
      'params.safetensors',
      lambda old: old.replace(b'token/embedding', b'token/embeddinf'),
      'prefill.stablehlo does not fit the other files: parameters',
    ),
  ],
)
def test_programs_that_are_refused(name, change, message, workdir, tmp_path):
  target = tmp_path / 'programs'
  assert call(workdir, target, format='stablehlo', slots=8) == 0
  if change is None:
    (target / name).unlink()
  else:
    (target / name).write_bytes(change((target / name).read_bytes()))
  with pytest.raises(config_lib.ConfigError, match=message):
    exported_program.load(target)


@pytest.mark.parametrize(('num_devices', 'num_parts'), [(3, 1), (6, 2)])
def test_any_number_of_devices_shares_the_parameters(
  num_devices, num_parts, folder, workdir, tmp_path, monkeypatch
):
  """A run made there, and one made elsewhere, are not bound to them."""
  devices = jax.devices()[:num_devices]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  loaded = convert_sources.open_published(folder, 'float32')
  for leaf in jax.tree.leaves(loaded.params):
    assert len(leaf.sharding.device_set) == num_devices
    (part,) = {part.data.size for part in leaf.addressable_shards}
    # Only norms are not split.
    assert part == leaf.size // (num_parts if leaf.size > 64 else 1)
  convert.write(loaded, tmp_path / 'run')
  config = config_lib.read(tmp_path / 'run/config.json')
  assert config.parallel == config_lib.Parallel()
  again = convert_sources.open_run(tmp_path / 'run', 'latest').params
  jax.tree.map(np.testing.assert_array_equal, again, loaded.params)
  monkeypatch.undo()
  whole = convert_sources.open_run(workdir, 'latest').params
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_norms_keep_their_precision(folder):
  """A scale of 0.05 is stored as -0.95, of which bfloat16 knows two digits."""
  source = published.open_source(folder)
  rounded, exact = (
    source.params(source.config(dtype), toy.make_mesh())
    for dtype in ('bfloat16', 'float32')
  )
  assert rounded['token']['embedding'].dtype == 'bfloat16'
  for name in ('attention_norm', 'feedforward_norm'):
    np.testing.assert_array_equal(
      rounded['decoder']['layers'][name]['scale'],
      exact['decoder']['layers'][name]['scale'],
    )


def test_a_run_is_written_in_another_dtype(workdir, tmp_path):
  """As if it had been imported in that."""
  target = tmp_path / 'folder'
  assert call(workdir, target, format='huggingface', dtype='bfloat16') == 0
  before, after = (
    published.open_source(path) for path in (workdir.parent / 'llama', target)
  )
  assert after.values['torch_dtype'] == 'bfloat16'
  wanted, found = (
    source.params(source.config('bfloat16'), toy.make_mesh())
    for source in (before, after)
  )
  jax.tree.map(np.testing.assert_array_equal, wanted, found)
  table = after.tensors['model.embed_tokens.weight']
  assert table.dtype == 'bfloat16'


def test_what_is_imported_is_not_trained_in_place(workdir, capsys):
  assert run(workdir, 'train') == 2
  error = capsys.readouterr().err
  assert f'--config.train.init_from={workdir}' in error


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'mamba'}, "model_type='mamba' is not supported; supported"),
    ({'hidden_size': 'x'}, "model.width='x'"),
    ({'hidden_size': 64}, 'model.layers.0.self_attn.k_proj.weight has the'),
    ({'num_hidden_layers': 3}, "9 tensors are missing: 'model.layers.2."),
    (
      {'num_hidden_layers': 1},
      "9 tensors have no place in this model: 'model.layers.1.",
    ),
    (
      {'mlp_bias': True, 'num_hidden_layers': 1},
      "3 tensors are missing: 'model.layers.0.mlp.down_proj.bias', "
      "'model.layers.0.mlp.gate_proj.bias', 'model.layers.0.mlp.up_proj.bias'",
    ),
    ({'attention_bias': True}, 'attention_bias=True is not supported'),
    ({'hidden_act': 'swish2'}, "hidden_act='swish2' is not supported"),
    ({'rope_scaling': {'rope_type': 'yarn'}}, "rope_type='yarn'"),
    ({'rope_scaling': 3}, 'rope_scaling must be an object'),
    (
      {'rope_parameters': {'full_attention': 3}},
      'full_attention must be an object',
    ),
    (
      {'rope_scaling': {'rope_type': 'linear', 'factor': 10**400}},
      'model.rope_scale=<1329 bits> must be at most',
    ),
    (
      {'query_pre_attn_scalar': 10**400},
      'model.query_scale=<1329 bits> must be at most',
    ),
    ({'quantization_config': {}}, 'quantised safetensors'),
    ({'vocab_size': None}, 'vocab_size is missing'),
    ({'num_hidden_layers': 10**9}, 'num_hidden_layers=1000000000'),
  ],
)
def test_a_folder_that_is_refused(change, message, folder, tmp_path, capsys):
  wrong = tmp_path / 'wrong'
  wrong.mkdir()
  for path in folder.iterdir():
    (wrong / path.name).symlink_to(path)
  values = json.loads((folder / 'config.json').read_text()) | change
  if 'rope_scaling' in change:
    del values['rope_parameters']
  (wrong / 'config.json').unlink()
  (wrong / 'config.json').write_text(json.dumps(values))
  assert call(wrong, tmp_path / 'target') == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert not list(tmp_path.glob('target*'))


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'format': 'onnx'}, '--format=onnx must be one of gemini_jax'),
    ({'dtype': 'int3'}, '--dtype=int3 must be one of float32, bfloat16'),
    ({'type': 'Q9'}, '--type=Q9 must be one of F32, F16, BF16, Q8_0'),
    ({'source': '/nowhere'}, '--source=/nowhere does not exist'),
    ({'checkpoint': 'best'}, '--checkpoint=best is of a workdir'),
    ({'checkpoint': 'latest'}, '--checkpoint=latest is of a workdir'),
    (
      {'type': 'F16'},
      '--type=F16 is of --format=gguf, not of --format=gem',
    ),
    ({'rows': 1, 'format': 'gguf'}, '--rows=1 is of --format=stablehlo, not'),
    ({'slots': 8}, '--slots=8 is of --format=stablehlo, not of'),
    ({'dtype': 'float32', 'format': 'peft'}, 'updates of low rank alone are'),
    ({'target': 'source'}, 'exists; give another one'),
  ],
)
def test_flags_that_are_refused(flags, message, folder, tmp_path, capsys):
  flags = {'source': folder, 'target': tmp_path / 'target'} | flags
  if flags['target'] == 'source':
    flags['target'] = folder
  assert call(**flags) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.glob('target*'))


def test_a_model_of_no_family(tmp_path):
  model = config_lib.Model(vocab_size=64, position='learned', width=32)
  with pytest.raises(config_lib.ConfigError, match="position='learned'"):
    config_json.from_model(model)
