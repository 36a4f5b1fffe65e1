"""FLOPs against hand counts and the compiler; where numbers are written."""

import errno
import json
import math
import os
import subprocess
import sys
import types

import flax.linen as nn
import jax
import pytest

import tiny
import toy
from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax.kernels import dot_product_attention
from gemini_jax.models import gemini
from gemini_jax.objectives import losses
from gemini_jax.train import metrics

LENGTH, MEMORY = 128, 96

MODELS = {
  'decoder': {},
  'grouped queries': {'num_kv_heads': 1},
  'gated': {'gated': True},
  'wide heads': {'head_dim': 24, 'mlp_dim': 100},
  'local': {
    'attention_pattern': ('local', 'global'),
    'window': 8,
    'num_layers': 3,
  },
  'encoder-decoder': {
    'architecture': 'encoder_decoder',
    'num_encoder_layers': 3,
  },
  'local encoder-decoder': {
    'architecture': 'encoder_decoder',
    'num_kv_heads': 2,
    'attention_pattern': ('local',),
    'window': 16,
  },
}
EXPERTS = {
  'architecture': 'encoder_decoder',
  'num_experts': 8,
  'experts_per_token': 3,
  'expert_dim': 40,
  'shared_expert_dim': 24,
  'gated': True,
}


def make(name):
  return config_lib.Model(
    **{
      'vocab_size': 320,
      'max_length': LENGTH,
      'width': 64,
      'num_layers': 2,
      'num_heads': 4,
      'gated': False,
      'scan_layers': False,
    }
    | (EXPERTS if name == 'experts' else MODELS[name])
  )


def pairs_by_hand(length, window, causal):
  """Query-key pairs within reach, counted one by one."""
  return sum(
    (abs(q - k) < window) and (k <= q or not causal)
    for q in range(length)
    for k in range(length)
  )


def by_hand(config, length, memory):
  """2 FLOPs for each multiplication, from the shapes of the parameters."""
  boxed = jax.eval_shape(
    lambda: gemini.init_params(gemini.Gemini(config), jax.random.key(0))
  )
  flat, _ = jax.tree_util.tree_flatten_with_path(boxed)
  total = 2 * length * config.width * config.vocab_size
  for path, leaf in flat:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if 'kernel' in name:
      share = 1
      if '/expert_' in name:
        share = config.experts_per_token / config.num_experts
      reads_memory = name.startswith('encoder') or (
        'cross_attention/key' in name or 'cross_attention/value' in name
      )
      total += 2 * leaf.size * share * (memory if reads_memory else length)

  def stack(num_layers, length, causal):
    pattern = config.attention_pattern
    kinds = [pattern[i % len(pattern)] for i in range(num_layers)]
    windows = [config.window if k == 'local' else length for k in kinds]
    return sum(pairs_by_hand(length, window, causal) for window in windows)

  pairs = stack(config.num_layers, length, True)
  pairs += stack(config.encoder_layers, memory, False)
  if config.encoder_layers:
    pairs += config.num_layers * length * memory
  return total + 4 * config.num_heads * config.head_width * pairs


# What the compiler counts of experts depends on the backend.
@pytest.mark.parametrize('name', [*MODELS, 'experts'])
def test_forward_flops_equal_a_count_by_hand(name):
  config = make(name)
  memory = MEMORY if config.encoder_layers else 0
  assert metrics.forward_flops(config, LENGTH, memory) == by_hand(
    config, LENGTH, memory
  )


@pytest.mark.parametrize('name', MODELS)
def test_forward_flops_agree_with_the_compiler(monkeypatch, name):
  """In one band XLA computes every pair, those outside of the mask too."""
  monkeypatch.setattr(dot_product_attention, '_BANDS', 1)
  config = make(name)
  memory = MEMORY if config.encoder_layers else 0
  network = gemini.Gemini(config)
  params = toy.model_params(network)
  encoder = toy.sequence(1, MEMORY) if memory else None
  batch = toy.batch(rows=1, length=LENGTH, encoder=encoder)
  forward = jax.jit(lambda p, b: network.apply({'params': p}, b)[0])
  cost = forward.lower(params, batch).cost_analysis()['flops']
  pattern = config.attention_pattern
  masked = 0
  for layers, length, causal in (
    (config.num_layers, LENGTH, True),
    (config.encoder_layers, memory, False),
  ):
    for i in range(layers):
      local = pattern[i % len(pattern)] == 'local'
      window = config.window if local else length
      masked += length**2 - pairs_by_hand(length, window, causal)
  masked *= 4 * config.num_heads * config.head_width
  expected = metrics.forward_flops(config, LENGTH, memory) + masked
  # Norms, softmax and activations are what is left.
  assert 1 <= cost / expected < 1.1


# Small in attention, and of everything that is beside the two stacks.
EXTRA = {
  'decoder': {},
  'experts': EXPERTS,
  'encoder-decoder': MODELS['encoder-decoder'],
  'latent decoder': {
    'latent': {'dim': 8, 'memory': 3},
    'num_encoder_layers': 3,
  },
  'latent encoder-decoder': {
    'architecture': 'encoder_decoder',
    'latent': {'dim': 8},
  },
  'contrast': {
    'architecture': 'encoder_decoder',
    'contrast_dim': 16,
    'num_encoder_layers': 3,
  },
  'images': {'image': {'height': 32, 'width': 32, 'num_layers': 2}},
  'convolutions': {'image': {'height': 32, 'width': 32, 'num_blocks': 2}},
  'resampler': {'image': {'height': 32, 'width': 32, 'num_tokens': 4}},
  'sounds': {'audio': {'sample_rate': 1000, 'num_mels': 8, 'num_layers': 1}},
  'videos': {
    'image': {'height': 16, 'width': 16, 'num_layers': 1},
    'video': {'num_frames': 3, 'frame_tokens': 1},
  },
  'autoencoders': {
    'architecture': 'encoder_decoder',
    'image': {'height': 32, 'width': 32, 'autoencoder': {'dim': 4}},
    'audio': {'sample_rate': 1000, 'num_mels': 8, 'autoencoder': {'dim': 4}},
  },
}


@pytest.mark.parametrize('name', EXTRA)
def test_forward_flops_agree_with_what_is_traced(monkeypatch, name):
  """Of the whole forward pass, on every pair of tokens."""
  monkeypatch.setattr(dot_product_attention, '_BANDS', 1)
  fields = {
    'vocab_size': 320,
    'max_length': LENGTH,
    'width': 64,
    'num_layers': 2,
    'num_heads': 4,
  }
  cross = EXTRA[name].get('architecture') == 'encoder_decoder'
  objective = 'seq2seq' if cross else 'causal'
  model = tiny.config(
    model=fields | EXTRA[name], data={'pack': False, 'objective': objective}
  ).model
  network = gemini.Gemini(model)
  media = {
    kind: batch_lib.blank_media(kind, model, 1, 2) for kind in model.kinds
  }
  memory = LENGTH if model.encodes else 0
  encoder = None
  if model.cross:
    memory = MEMORY
    encoder = toy.sequence(1, MEMORY).replace(media=media)
  batch = toy.batch(rows=1, length=LENGTH, encoder=encoder)
  batch = batch.replace(decoder=batch.decoder.replace(media=media))
  params = jax.eval_shape(
    lambda: nn.unbox(gemini.init_params(network, jax.random.key(0)))
  )
  traced = jax.make_jaxpr(
    lambda params: losses.model_sums(network, params, batch)
  )(params)
  masked = LENGTH**2 - pairs_by_hand(LENGTH, LENGTH, True)
  masked *= 4 * model.num_layers * model.num_heads * model.head_width
  counts = dict.fromkeys(model.kinds, 4 if model.cross else 2)
  count = metrics.forward_flops(model, LENGTH, memory, counts)
  assert count + masked == pytest.approx(
    metrics.product_flops(traced.jaxpr), rel=5e-3
  )


def test_products_are_counted_where_they_are_repeated():
  """In loops, and of branches the least."""

  def function(x, kernel):
    x, _ = jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=3)
    return jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ kernel)

  traced = jax.make_jaxpr(function)(toy.normal((2, 4)), toy.normal((4, 4)))
  assert metrics.product_flops(traced.jaxpr) == 3 * 2 * 2 * 4 * 4


def test_flops_of_a_step():
  config = tiny.config(data={'batch_size': 6})
  assert metrics.step_flops(config) == 18 * metrics.forward_flops(
    config.model, 12
  )
  config = tiny.config(
    model={'architecture': 'encoder_decoder'},
    data={'objective': 'seq2seq', 'inputs_length': 7},
  )
  assert metrics.step_flops(config) == 6 * metrics.forward_flops(
    config.model, 12, 7
  )
  # Nothing but the own tokens, which the encoder reads too.
  config = tiny.config(model={'latent': {'dim': 3}}, data={'pack': False})
  assert metrics.step_flops(config) == 6 * metrics.forward_flops(
    config.model, 12, 12
  )
  image = {'height': 4, 'width': 4, 'patch': 2, 'num_layers': 1}
  config = tiny.config(
    model={'image': image},
    data={'tasks': ('{image:a} {image:b} -> {c}',), 'pack': False},
  )
  assert metrics.step_flops(config) == 6 * metrics.forward_flops(
    config.model, 12, media={'image': 2}
  )


@pytest.mark.parametrize(
  ('kind', 'dtype', 'peak'),
  [
    ('TPU v5 lite', 'bfloat16', 197e12),
    ('TPU v5', 'bfloat16', 459e12),
    ('TPU v5p', 'bfloat16', 459e12),
    ('NVIDIA H100 PCIe', 'bfloat16', 756e12),
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989e12),
    ('TPU v5', 'float32', None),
    ('NVIDIA GeForce RTX 4090', 'bfloat16', None),
    ('cpu', 'bfloat16', None),
  ],
)
def test_a_peak_is_known_or_none(kind, dtype, peak):
  device = types.SimpleNamespace(device_kind=kind)
  assert metrics.peak_flops(device, dtype) == peak


def test_a_writer_goes_on_where_the_checkpoint_was(tmp_path):
  writer = metrics.Writer(tmp_path, tiny.config(), 0, 0)
  writer.write(1, {'train/loss': 2.5, 'train/mfu': None})
  size = writer.size()
  writer.write(2, {'train/loss': 2.0})
  writer.close()
  assert (tmp_path / metrics.FILE).stat().st_size > size
  writer = metrics.Writer(tmp_path, tiny.config(), 1, size)
  writer.write(2, {'train/loss': math.nan, 'x': math.inf, 'y': -math.inf})
  assert writer.size() == (tmp_path / metrics.FILE).stat().st_size
  writer.close()
  text = (tmp_path / metrics.FILE).read_text()
  assert 'NaN' not in text
  assert 'Infinity' not in text
  assert [json.loads(line) for line in text.splitlines()] == [
    {'step': 1, 'train/loss': 2.5, 'train/mfu': None},
    {'step': 2, 'train/loss': None, 'x': None, 'y': None},
  ]
  assert list((tmp_path / 'tensorboard').iterdir())


@pytest.mark.parametrize(
  ('how', 'problem'),
  [
    ('missing', 'is missing'),
    ('shorter', 'has 12 bytes'),
    ('changed', 'has no line that ends at byte'),
    ('fifo', 'not a regular file'),
    ('device', 'not a regular file'),
  ],
)
def test_a_record_that_lost_its_lines(how, problem, tmp_path):
  """It is not filled up with zeros."""
  writer = metrics.Writer(tmp_path, tiny.config(), 0, 0)
  writer.write(1, {'train/loss': 2.5})
  size = writer.size()
  writer.write(2, {'train/loss': 2.5})
  writer.close()
  path = tmp_path / metrics.FILE
  content = path.read_bytes()
  path.unlink()
  if how == 'shorter':
    path.write_bytes(content[:12])
  elif how == 'changed':
    path.write_bytes(content.replace(b'2.5', b'2.25'))
  elif how == 'fifo':
    os.mkfifo(path)
  elif how == 'device':
    path.symlink_to('/dev/zero')
  before = path.is_file() and path.read_bytes()
  with pytest.raises(config_lib.ConfigError, match=problem):
    metrics.Writer(tmp_path, tiny.config(), 1, size)
  assert (path.is_file() and path.read_bytes()) == before


def test_an_empty_record_stands_for_what_is_not_wanted(tmp_path):
  (tmp_path / metrics.FILE).write_text('')
  writer = metrics.Writer(tmp_path, tiny.config(), 7, 1234)
  writer.write(8, {'train/loss': 2.5})
  assert writer.size() == (tmp_path / metrics.FILE).stat().st_size
  writer.close()
  assert tiny.metrics(tmp_path) == [{'step': 8, 'train/loss': 2.5}]


@pytest.mark.parametrize(
  ('content', 'step'),
  [
    (None, 0),
    (b'', 0),
    (b'{"step": 3}\n{"step": 40}\n', 40),
    (b'{"step": 3}\n{"step": 4', 3),
    (b'{"step": 3}\n[]\n{"step": "x"}\n' + b'[' * 100_000, 3),
    (bytes(1000), 0),
  ],
)
def test_the_last_step_of_a_record(content, step, tmp_path):
  if content is not None:
    (tmp_path / metrics.FILE).write_bytes(content)
  assert metrics.last_step(tmp_path) == step


def test_a_full_disk_ends_the_run(tmp_path, monkeypatch):
  """It does not wait for ever for a thread of TensorBoard's that has ended."""
  writer = metrics.Writer(tmp_path, tiny.config(), 0, 0)

  def fail(events, event):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(
      'tensorboardX.event_file_writer.EventsWriter.write_event', fail
    )
    with pytest.raises(OSError) as error:
      writer.write(1, {'train/loss': 2.5})
  assert error.value.errno == errno.ENOSPC
  writer.close()


def test_a_run_does_not_wait_for_torch(tmp_path):
  """TensorBoard's writer would import it; ours has no need of it."""
  (tmp_path / 'torch.py').write_text("raise RuntimeError('was imported')")
  program = (
    'import importlib, pathlib, sys, tiny\n'
    'from gemini_jax.train import metrics\n'
    'path = pathlib.Path(sys.argv[1])\n'
    'metrics.Writer(path, tiny.config(), 0, 0).close()\n'
    "assert 'torch' not in sys.modules\n"
    "assert importlib.util.find_spec('torch').origin.startswith(sys.argv[1])\n"
  )
  folders = tmp_path, tiny.ROOT, tiny.ROOT / 'tests'
  path = os.pathsep.join(map(str, folders))
  subprocess.run(
    [sys.executable, '-c', program, str(tmp_path)],
    env=os.environ | {'PYTHONPATH': path},
    check=True,
  )


def test_weights_and_biases_are_an_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = tiny.config(train={'wandb_project': 'p'})
  with pytest.raises(
    config_lib.ConfigError, match=r"pip install 'gemini_jax\[wandb\]'"
  ):
    metrics.Writer(tmp_path, config, 0, 0)


def test_a_folder_is_one_run_on_weights_and_biases(tmp_path, monkeypatch):
  """Not that of another folder of the same name, and still it when resumed."""
  calls = []
  wandb = types.ModuleType('wandb')
  wandb.Error = type('Error', (Exception,), {})
  wandb.init = lambda **kwargs: (
    calls.append(kwargs)
    or types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)
  )
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  config = tiny.config(train={'wandb_project': 'p'})
  for parent in 'a', 'b', 'a':
    workdir = tmp_path / parent / 'vae'
    workdir.mkdir(parents=True, exist_ok=True)
    metrics.Writer(workdir, config, 0, 0).close()
  assert [call['name'] for call in calls] == ['vae'] * 3
  assert [call['dir'] for call in calls] == [
    str(tmp_path / parent / 'vae') for parent in 'aba'
  ]
  first, second, third = (call['id'] for call in calls)
  assert first == third != second
  assert calls[0]['resume'] == 'allow'

  def refuse(**kwargs):
    raise wandb.Error('no API key\nconfigured')

  wandb.init = refuse
  with pytest.raises(config_lib.ConfigError, match='no API key configured; '):
    metrics.Writer(workdir, config, 0, 0)


def test_a_stopwatch_stands_still_while_it_is_paused():
  now = 100.0
  stopwatch = metrics.Stopwatch(lambda: now)
  now += 3
  stopwatch.pause()
  now += 1000
  stopwatch.resume()
  now += 2
  assert stopwatch.lap() == 5
  now += 4
  assert stopwatch.lap() == 4


def test_a_log_gets_plain_lines(capsys):
  progress = metrics.Progress(10, 1000)
  progress.update(
    510,
    {
      'train/loss': 1.25,
      'train/tokens_per_second': 12345.6,
      'train/mfu': None,
      'train/grad_norm': 3.0,
    },
  )
  progress.note('step 510  validation/loss 1.5')
  progress.close()
  out = capsys.readouterr().out
  assert '\r' not in out
  assert out.splitlines() == [
    'step 510/1,000  loss 1.2500  12,346 tokens/s  0:00 left',
    'step 510  validation/loss 1.5',
  ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
  monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
  progress = metrics.Progress(10, 1000)
  progress.update(510, {'train/loss': 1.25, 'train/mfu': 0.5})
  progress.close()
  err = capsys.readouterr().err
  assert 'loss 1.2500' in err
  assert 'MFU 50.0%' in err
  assert '510/1000' in err


@pytest.mark.parametrize('how', ['cut', 'removed'])
def test_a_record_that_goes_during_the_run(how, tmp_path, caplog):
  """It is said; lines go on, and the checkpoint counts on what is there."""
  writer = metrics.Writer(tmp_path, tiny.config(), 0, 0)
  path = tmp_path / 'metrics.jsonl'
  writer.write(1, {'a': 1.0})
  writer.size()
  path.write_text('') if how == 'cut' else path.unlink()
  writer.write(2, {'a': 2.0})
  size = writer.size()
  assert ('has lost lines' if how == 'cut' else 'was removed') in caplog.text
  writer.write(3, {'a': 3.0})
  writer.close()
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line['step'] for line in lines] == ([2, 3] if how == 'cut' else [3])
  assert size == (len('{"step": 2, "a": 2.0}\n') if how == 'cut' else 0)
