"""Numbers, series and labels of records: measured, normalised, refused."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from gemini_jax import config as config_lib
from gemini_jax.data import (
  classes,
  loader,
  normalization,
  numbers,
  tokenizer,
  unusable,
)
from gemini_jax.data import task as task_lib
from gemini_jax.models import build

TASK = '{number:age}{number:size}{series:trace} -> {number:price}'
LABELS = '{text} -> {labels:topics}'
MODEL = config_lib.Model(
  series=config_lib.Series(length=12, channels=2, patch=4)
)


def records_of(count=30, seed=0):
  """Records of which some lack `size`, and whose prices are far from 0."""
  rng = np.random.default_rng(seed)
  records = []
  for i in range(count):
    record = {
      'age': float(rng.normal(50, 10)),
      'price': float(1.7e9 + rng.normal(0, 3)),
      'trace': rng.normal([3, -100], [2, 0.1], (4 + i % 12, 2)).tolist(),
    }
    if i % 3:
      record['size'] = int(rng.integers(0, 1000))
    records.append(record)
  return records


def write(path, records):
  """JSON lines or, by the name, a table whose cells are JSON."""
  if path.suffix == '.jsonl':
    path.write_text(''.join(f'{json.dumps(r)}\n' for r in records))
    return f'jsonl:{path}'
  with path.open('w', newline='') as file:
    table = csv.DictWriter(file, {k: 0 for r in records for k in r})
    table.writeheader()
    for record in records:
      table.writerow(
        {
          key: value if isinstance(value, str) else json.dumps(value)
          for key, value in record.items()
        }
      )
  return f'csv:{path}'


def make(path, records, *tasks, model=MODEL, saved=None, **fields):
  """A resolved config of records."""
  data = config_lib.Data(
    **{
      'train': (write(path, records),),
      'tasks': tasks or (TASK,),
      'objective': 'prefix',
      'sequence_length': 24,
      'batch_size': 30,
      'pack': False,
      'shuffle': False,
      'cache_dir': str(path.parent / 'cache'),
      'prefetch': 0,
    }
    | fields
  )
  config = config_lib.Config(data=data, model=model)
  config = normalization.resolve(classes.resolve(config, saved), saved)
  return build.with_vocab(config, tokenizer.Bytes().vocab_size)


def load(config):
  return loader.Loader(
    config.data, tokenizer.Bytes(), 'train', model=config.model
  )


@pytest.mark.parametrize('objective', ['prefix', 'seq2seq'])
@pytest.mark.parametrize('ending', ['jsonl', 'csv'])
def test_rows_hold_the_normalised_numbers_of_their_record(
  tmp_path, ending, objective
):
  records = records_of()
  model = MODEL
  if objective == 'seq2seq':
    model = dataclasses.replace(MODEL, architecture='encoder_decoder')
  config = make(
    tmp_path / f'records.{ending}', records, model=model, objective=objective
  )
  assert config.model.num_numbers == 2
  assert (config.model.output, config.model.num_classes) == ('numbers', 1)
  batch = load(config)[0]
  sequence = batch.encoder or batch.decoder
  # The target is not among what is read.
  assert sequence.media['number'].values.shape == (30, 2, 1)
  price = np.array([r['price'] for r in records])
  np.testing.assert_allclose(
    batch.values[:, 0, 0], (price - price.mean()) / price.std(), atol=1e-5
  )
  of = lambda name: np.array([r.get(name, np.nan) for r in records], float)
  for place, name in enumerate(('age', 'size')):
    values, found = of(name), sequence.media['number'].values[:, place, 0]
    expected = (values - np.nanmean(values)) / np.nanstd(values)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (sequence.media['number'].sizes[:, place] == place + 1).all()
  traces = [np.array(r['trace'])[:12] for r in records]
  steps = np.concatenate(traces)
  series = sequence.media['series']
  for row, trace in enumerate(traces):
    expected = (trace - steps.mean(0)) / steps.std(0)
    found = series.values[row, 0, : len(trace)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert series.sizes[row, 0, 0] == len(trace)
    count = (sequence.tokens[row] == config.model.placeholder('series')).sum()
    assert count == -(-len(trace) // 4)
  is_number = sequence.tokens == config.model.placeholder('number')
  assert (is_number.sum(axis=1) == 2).all()
  assert (np.count_nonzero(batch.weights, axis=1) == 1).all()
  assert (batch.targets == 0).all() or objective == 'seq2seq'


def test_a_run_that_goes_on_keeps_its_units(tmp_path):
  config = make(tmp_path / 'records.jsonl', records_of())
  again = make(tmp_path / 'others.jsonl', records_of(seed=1), saved=config)
  assert again.data.normalization == config.data.normalization
  fresh = make(tmp_path / 'others.jsonl', records_of(seed=1))
  assert fresh.data.normalization != config.data.normalization
  # In the file of a config as well, to the last bit.
  read = config_lib.from_json(config_lib.to_json(config))
  assert read.data.normalization == config.data.normalization
  price = task_lib.Piece('number', 'price')
  for record in records_of(seed=2):
    values = numbers.normalised(record, price, read.data, read.model)
    (back,) = numbers.restored(values[0], price, read.data)
    assert back == pytest.approx(record['price'], abs=1e-6)


def changed(**fields):
  """Records of which one, or all where it is a function, has other fields."""
  records = records_of()
  for i, record in enumerate(records):
    for name, value in fields.items():
      if callable(value):
        record[name] = value(i)
      elif i == 7:
        record[name] = value
  return records


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'age': lambda i: 0.1}, "'age' is 0.1 in all records"),
    ({'price': lambda i: 3}, "'price' is 3 in all records"),
    ({'trace': lambda i: [[i, 0.1]] * 8}, "'trace.1' is 0.1 in all"),
    ({'age': lambda i: i * 1e200}, "'age' has numbers from 0 to 2.9e.201"),
    ({'age': lambda i: i * 1e-200}, "'age' has numbers from 0 to 2.9e-199"),
    ({'age': lambda i: 'old'}, "nothing that {number:age} .*'age' is not a n"),
    ({'age': lambda i: None}, "{number:age} .*no field 'age'"),
    ({'price': 'much'}, "'price' is not a number"),
    ({'age': 'NaN'}, "'age' holds NaN"),
    ({'age': float('nan')}, "'age' holds NaN"),
    ({'age': [1]}, "'age' is not a number"),
    ({'price': None}, "no field 'price'"),
    ({'trace': None}, "no field 'trace'"),
    ({'trace': [[1, 2]] * 3}, 'has 3 steps, less than the .*patch=4'),
    ({'trace': [[1, 2, 3]] * 9}, '9 x 3 numbers, and .*channels=2'),
    ({'trace': [1.0] * 9}, '9 x 1 numbers'),
    ({'trace': [[1, 2], [3]] * 9}, "'trace' is not a series"),
    ({'trace': [[1, None]] * 9}, "'trace' holds NaN"),
    ({'trace': '[' * 9999}, "'trace' is not a series"),
    ({'age': 10**400}, "'age' is not a number"),
  ],
)
def test_what_is_no_number_is_refused(tmp_path, fields, message):
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    load(make(tmp_path / 'records.jsonl', changed(**fields)))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('age', [1e300, -1e9, '1e12'])
def test_a_number_far_from_the_training_data_is_refused(tmp_path, age):
  """A model would make infinity or NaN of it."""
  config = make(tmp_path / 'records.jsonl', records_of())
  args = task_lib.Piece('number', 'age'), config.data, config.model
  with pytest.raises(unusable.UnusableError, match='too far from the training'):
    numbers.normalised({'age': age}, *args)
  assert numbers.normalised({'age': 1e6}, *args).shape == (1, 1)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'pack': True}, r'need data\.pack=False'),
    ({'class_weights': 'balanced'}, 'class_weights'),
    ({'model': config_lib.Model()}, r'set model\.series\.length'),
    ({'model': dataclasses.replace(MODEL, num_numbers=3)}, 'read 2 fields'),
    (
      {'normalization': config_lib.Normalization(('age',), (0.0,), (1.0,))},
      "lacks 'size'",
    ),
  ],
)
def test_configs_that_cannot_be(tmp_path, fields, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    make(tmp_path / 'records.jsonl', records_of(), **fields)


def test_deviations_are_above_zero():
  with pytest.raises(config_lib.ConfigError, match='deviations'):
    config_lib.Normalization(('a',), (0.0,), (0.0,))
  with pytest.raises(config_lib.ConfigError, match='one length'):
    config_lib.Normalization(('a', 'a'), (0.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize('ending', ['jsonl', 'csv'])
def test_rows_hold_the_labels_of_their_record(tmp_path, ending):
  rng = np.random.default_rng(0)
  names = np.array(['b', 'a', 'd', 'c'])
  sets = [names[rng.random(4) < 0.4].tolist() for _ in range(30)]
  records = [{'text': f'text {i}', 'topics': s} for i, s in enumerate(sets)]
  path = tmp_path / f'records.{ending}'
  config = make(path, records, LABELS)
  assert config.data.label_names == ('a', 'b', 'c', 'd')
  assert (config.model.output, config.model.num_classes) == ('labels', 4)
  values = load(config)[0].values
  found = [
    {name for name, one in zip('abcd', row[0], strict=True) if one}
    for row in values
  ]
  assert found == [set(s) for s in sets]
  assert [] in sets
  given = make(path, records, LABELS, label_names=('a', 'b', 'c'))
  with pytest.raises(config_lib.ConfigError, match='none of the 3 classes'):
    load(given)
  records[3]['topics'] = 'a'
  with pytest.raises(config_lib.ConfigError, match='not a list of labels'):
    load(make(path, records, LABELS))


def test_placeholders_of_earlier_models_stay_where_they_are():
  """The last three rows are media's, and no other row is taken."""
  media = {
    'image': config_lib.Image(height=8, width=8),
    'audio': config_lib.Audio(sample_rate=8000),
  }
  for size in (61, 62, 125):
    plain = build.with_vocab(
      config_lib.Config(model=config_lib.Model(**media)), size
    ).model
    assert plain.vocab_size == -(-(size + 3) // 64) * 64
    places = [plain.placeholder(kind) for kind in ('image', 'audio', 'video')]
    assert places == [plain.vocab_size - 3 + i for i in range(3)]
    both = build.with_vocab(
      config_lib.Config(model=dataclasses.replace(MODEL, **media)), size
    ).model
    ids = [both.placeholder(kind) for kind in config_lib.KINDS]
    assert len(set(ids)) == 5 and min(ids) >= size
    assert ids[2:] == [both.vocab_size - 3 + i for i in range(3)]
