"""Texts from prompts: what they must not depend on, and how they stream."""

import collections
import dataclasses
import io

import jax.numpy as jnp
import pytest
import sentencepiece

import toy
import toy_decoder
from gemini_jax import config as config_lib
from gemini_jax.data import sentencepiece_tokenizer
from gemini_jax.infer import decoding, generation, sampling, text_stream
from gemini_jax.infer import prompts as prompts_lib


def full_config(name='plain', **generate):
  decoder, params = toy_decoder.build(name)
  objective = {'encoder': 'seq2seq', 'prefix': 'prefix'}.get(name, 'causal')
  config = config_lib.Config(
    model=decoder.model.config,
    data=config_lib.Data(
      objective=objective, sequence_length=toy_decoder.LENGTH, inputs_length=9
    ),
    generate=config_lib.Generate(prefill_chunk=toy_decoder.CHUNK, **generate),
  )
  return config, decoder.model, params, toy_decoder.Toy()


@pytest.mark.parametrize('name', ['plain', 'encoder'])
def test_samples_do_not_depend_on_the_batch(name):
  setup = full_config(name, count=2, max_tokens=10, temperature=1.0, seed=7)
  prompts = ['ABC', 'HELLO', '', 'QWERTY', 'E']
  together = generation.generate(*setup, prompts)
  assert [sample.prompt for sample in together[::2]] == prompts
  backwards = generation.generate(*setup, prompts[::-1])
  tokens = lambda samples: [sample.tokens for sample in samples]
  assert tokens(together) == tokens(generation.generate(*setup, prompts))
  if name == 'plain':
    alone = generation.generate(*setup, ['HELLO'])
    assert tokens(together)[2:4] == tokens(alone)
  assert tokens(together)[2:4] == tokens(backwards)[6:8]
  assert len(set(tokens(together))) > 5, 'samples must differ'
  assert {toy_decoder.PAD, toy_decoder.BOS}.isdisjoint(
    set().union(*tokens(together))
  )
  other = full_config(name, count=2, max_tokens=10, temperature=1.0, seed=8)
  assert tokens(together) != tokens(generation.generate(*other, prompts))


def test_nothing_compiles_twice():
  setup = full_config('encoder', max_tokens=5)
  functions = (
    decoding.Decoder.encode,
    decoding.Decoder.prefill,
    decoding.Decoder.decode_loop,
  )
  generation.generate(*setup, ['AB', 'C'] * 3)
  before = [function._cache_size() for function in functions]
  for generate in (
    {'temperature': 0.0, 'max_tokens': 9},
    {'top_k': 3, 'seed': 4},
    {'top_p': 0.5, 'min_p': 0.1, 'max_tokens': 1},
  ):
    prompts = ['HELLO', 'A', 'XY', '', 'B']
    generation.generate(*full_config('encoder', **generate), prompts)
  assert [function._cache_size() for function in functions] == before

  decoder, params = toy_decoder.build('plain')
  sizes = set()
  for lengths in ((1, 2, 3), (19, 5), (11,)):
    state = decoder.start(
      params, toy_decoder.random_rows(lengths), max_tokens=9
    )
    for num_tokens in (1, 3, toy_decoder.LENGTH):
      state = decoder.decode(params, state, sampling.Sampler(), num_tokens)
      sizes.add(tuple(function._cache_size() for function in functions))
  assert len(sizes) == 1


@pytest.mark.parametrize('name', ['plain', 'encoder', 'prefix'])
def test_streamed_pieces_make_the_text(name):
  setup = full_config(name, count=3, max_tokens=17, temperature=1.0)
  pieces = {}

  def on_text(index, piece):
    assert piece
    pieces.setdefault(index, []).append(piece)

  prompts = ['AB', 'C']
  streamed = generation.generate(*setup, prompts, on_text)
  assert streamed == generation.generate(*setup, prompts)
  for i, sample in enumerate(streamed):
    assert ''.join(pieces.get(i, [])) == sample.text
    assert len(sample.logprobs) == len(sample.tokens)
  assert max(map(len, pieces.values())) > 1


def test_a_decoder_knows_what_ends_a_text():
  """All of it may be generated, the id of padding too."""
  config, model, _, words = full_config()
  words.end_ids = (toy_decoder.EOS, 7, toy_decoder.PAD)
  decoder = generation.build_decoder(config, model, words, 3)
  assert decoder.forbidden == (toy_decoder.BOS,)
  tokens_B = jnp.array([7, 8, toy_decoder.EOS, toy_decoder.PAD])
  assert decoder.ends(tokens_B).tolist() == [True, False, True, True]


@pytest.mark.parametrize('beam_size', [1, 2])
def test_any_of_the_ids_that_end_a_text_ends_it(beam_size):
  options = {'max_tokens': 8, 'temperature': 1.0, 'seed': 3}
  setup = full_config('plain', beam_size=beam_size, count=2, **options)
  toy_tokenizer = setup[-1]
  prompts = ['AB', 'HELLO', 'QWERTY', 'E', 'ZZ', 'TOY']
  without = generation.generate(*setup, prompts)
  counts = collections.Counter(i for s in without for i in s.tokens[:-1])
  letters = [i for i, _ in counts.most_common(2)]
  toy_tokenizer.end_ids = (toy_decoder.EOS, *letters)
  ended = generation.generate(*setup, prompts)
  ends = set(toy_tokenizer.end_ids)
  assert set(letters) & {sample.tokens[-1] for sample in ended}
  for sample in ended:
    assert not ends & set(sample.tokens[:-1])
    assert sample.tokens[-1] in ends or len(sample.tokens) == 8


def test_half_a_character_is_not_streamed():
  setup = full_config('plain', max_tokens=17, temperature=0.0)
  config, model, params, toy = setup
  # Every other token is half of a character.
  written = generation.generate(*setup, ['A'] * 5)[0].tokens
  toy.pieces = list(toy.pieces)
  for i in range(3, toy_decoder.VOCAB_SIZE):
    toy.pieces[i] = b'\xc3\xa9' if i != written[7] else b'\xc3'
  toy.pieces[3] = b'A'
  pieces = []
  sample = generation.generate(
    config,
    model,
    params,
    toy,
    ['A'] * 5,
    lambda index, piece: None if index else pieces.append(piece),
  )[0]
  assert ''.join(pieces) == sample.text
  assert '\ufffd' not in pieces[0]


def test_a_prompt_that_is_too_long_is_refused():
  setup = full_config('plain', max_tokens=4)
  with pytest.raises(
    config_lib.ConfigError,
    match=r'generate.prompt has 20 tokens; with model.max_length=20 at most 19',
  ):
    generation.generate(*setup, ['B', 'A' * 19])
  # One that just fits leaves room for one token.
  assert len(generation.generate(*setup, ['A' * 18] * 5)[0].tokens) == 1
  with pytest.raises(
    config_lib.ConfigError,
    match=r'has 10 tokens; with data.inputs_length=9 at most 9 fit',
  ):
    generation.generate(*full_config('encoder'), ['A' * 9])


class Counted(toy_decoder.Toy):
  """Counts what it is asked for."""

  def __init__(self):
    super().__init__()
    self.pieces_read = self.texts_read = 0

  def piece(self, token):
    self.pieces_read += 1
    return super().piece(token)

  def decode(self, ids):
    self.texts_read += 1
    return super().decode(ids)


def test_streaming_decodes_each_token_once():
  config, model, params, _ = full_config('plain', count=2, max_tokens=17)
  prompts = ['AB', 'C', 'EFG']
  counts = []
  for on_text in (None, lambda index, text: None):
    counted = Counted()
    samples = generation.generate(
      config, model, params, counted, prompts, on_text
    )
    # Prompts are decoded to know whether the output continues a text.
    counted.pieces_read -= sum(len(prompt) for prompt in prompts)
    assert counted.texts_read == len(prompts)
    assert counted.pieces_read == sum(len(s.tokens) for s in samples)
    counts.append(counted.pieces_read)
  assert counts[0] == counts[1] > 2 * generation._STREAM_TOKENS


def test_samples_do_not_depend_on_the_rows_of_a_batch():
  tokens = []
  for size in (None, 1, 4):
    setup = full_config('plain', count=3, max_tokens=9, batch_size=size)
    samples = generation.generate(*setup, ['ABC', 'Q'])
    tokens.append([sample.tokens for sample in samples])
  assert tokens[0] == tokens[1] == tokens[2]


def test_the_cache_is_as_long_as_prompt_and_output_need():
  config, _, _, toy_tokenizer = full_config('plain', max_tokens=30)
  model = toy.model(vocab_size=toy_decoder.VOCAB_SIZE, max_length=1024)

  def slots(prompt, max_tokens):
    options = dataclasses.replace(config.generate, max_tokens=max_tokens)
    own = dataclasses.replace(config, generate=options)
    read = prompts_lib.read_prompt(own, model, toy_tokenizer, prompt)
    return generation._decoder(
      own, model, toy_tokenizer, [read], 1, None
    ).length

  assert slots('A', 30) == slots('A' * 33, 30) == 64
  assert slots('A' * 34, 30) == slots('A' * 34, 93) == 128
  assert slots('A', 5000) == 1024


def test_steering_needs_a_controller():
  setup = full_config('plain', steer='tone=good')
  with pytest.raises(
    config_lib.ConfigError, match=r"generate.steer='tone=good' needs a contr"
  ):
    generation.generate(*setup, ['A'])


@pytest.mark.parametrize('prefix', ['', 'the '])
def test_a_text_begins_or_continues(prefix, tmp_path):
  """A tokenizer that puts a space before a text, as Llama's does."""
  corpus = ['the cat sat on the mat, the bat ate that é ']
  trained = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus * 20),
    model_writer=trained,
    model_type='bpe',
    vocab_size=290,
    byte_fallback=True,
    minloglevel=2,
  )
  made = sentencepiece_tokenizer.SentencePiece(trained.getvalue())
  assert made.adds_space
  prompt_ids = made.encode(prefix)
  prompt = prompts_lib.Prompt(prefix, prompt_ids, None, made.decode(prompt_ids))
  for text in ('cat', 'cat é', 'é漢'):
    ids = made.encode(text)
    stream = text_stream.TextStream(made, prompt)
    pieces = [stream.push([token]) for token in ids] + [stream.finish()]
    whole = made.decode([*prompt_ids, *ids])
    assert ''.join(pieces) == stream.text == whole[len(prompt.prefix) :]
    # The space that encoding adds is no part of a text that begins.
    assert stream.text.startswith(' ') == bool(prefix)
