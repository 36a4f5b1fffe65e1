"""Where examples come from, and how they become tokens and batches."""

import dataclasses
from typing import Annotated, Literal

from gemini_jax.config import schema

# Of the section `data`: what a batch depends on beside the sources and the
# tokenizer, and what else where there are tasks.
BATCH_FIELDS = (
  *(
    'mixture_weights',
    'objective',
    'batch_size',
    'sequence_length',
    'inputs_length',
  ),
  *('pack', 'shuffle'),
)
TASK_FIELDS = (
  *('tasks', 'label_names', 'audio_sample_rate', 'augment'),
  *('media_dropout', 'inputs_dropout', 'drop_kinds', 'shuffled_fields'),
)


@schema.section('data.augment')
class Augment:
  """How training examples are varied, on the host: data/augmentation.py."""

  # Pictures, and all frames of a video alike. Moved by so many pixels at most
  # in each direction.
  crop_padding: Annotated[int, schema.Range(0, cap=2**14)] = 0
  # Every other one is mirrored, left to right.
  flip: bool = False
  # So many random operations of RandAugment; 0: off; and how strong they are,
  # from 0 to 10.
  randaugment_ops: Annotated[int, schema.Range(0, cap=100)] = 0
  randaugment_magnitude: Annotated[float, schema.Range(0, 10)] = 5.0
  # Pictures and sounds that an encoder reads are mixed with those of another
  # row, by a share below a half of Beta(alpha, alpha); 0: off.
  mixup_alpha: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # Sounds. So many spans of silence, each of up to so many seconds.
  time_masks: Annotated[int, schema.Range(0, cap=1000)] = 0
  time_mask_seconds: Annotated[float, schema.Range(0, cap=1_000_000)] = 0.1
  # So many bands taken out, each of up to this share of the mel scale.
  frequency_masks: Annotated[int, schema.Range(0, cap=1000)] = 0
  frequency_mask_share: schema.Share = 0.15
  # White noise this far below the sound, in dB from the first number to the
  # second; (): off.
  noise_db: tuple[Annotated[float, schema.Range(cap=200)], ...] = ()
  # Louder or softer by so many dB at most.
  gain_db: Annotated[float, schema.Range(0, cap=100)] = 0.0
  # Earlier or later by so many seconds at most.
  time_shift_seconds: Annotated[float, schema.Range(0, cap=1_000_000)] = 0.0

  def __post_init__(self):
    schema.check(
      not self.noise_db
      or (len(self.noise_db) == 2 and self.noise_db[0] <= self.noise_db[1]),
      f'data.augment.noise_db={self.noise_db} must be empty or (low, high)',
    )


@schema.section('data')
class Data:
  """Where examples come from and how they become batches.

  A source is `KIND:WHERE#SLICE`: `tfds:tiny_shakespeare#validation+test`,
  `text:book.txt`, `text:corpus/*.txt#[:90%]`, `jsonl:pairs.jsonl`,
  `python:pydoc_data.topics#[9::10]` and its complement `#[!9::10]`,
  `reverse:20000`, `wordnet:`, `digits:train`, `moving:test` (see
  data/sources.py).
  """

  # Sources of each split; several training sources make a mixture.
  train: tuple[str, ...] = ()
  validation: tuple[str, ...] = ()
  test: tuple[str, ...] = ()
  # Shares of the training sources in tokens; (): by their size.
  mixture_weights: tuple[schema.Positive, ...] = ()
  # Folder of prepared TFDS data sets; None: TFDS's own, downloaded.
  data_dir: str | None = None
  # The field of a record that is read as text.
  text_field: str = 'text'
  # Fields of a pair (input to output); both empty: plain text.
  inputs_field: str = ''
  targets_field: str = ''
  # Pairs of any kind, '{image:photo} in {language} -> {caption}': a record
  # gives an example of each; see data/task.py.
  tasks: tuple[str, ...] = ()
  # Words for the classes of a label that is a number; (): those of TFDS.
  label_names: tuple[str, ...] = ()
  # Samples a second of sounds that do not tell; None: model.audio.sample_rate.
  audio_sample_rate: Annotated[int, schema.Range(1, cap=1_000_000)] | None = (
    None
  )
  # Chance that a kind of media among a row's inputs is left out of it, of
  # those that have several kinds (modality dropout).
  media_dropout: schema.PartialShare = 0.0
  # Chance that all inputs of a row are left out of it, which the guidance of
  # written media needs.
  inputs_dropout: schema.PartialShare = 0.0
  # Kinds of media that are left out of all inputs, to see what is lost.
  drop_kinds: tuple[Literal['image', 'audio', 'video'], ...] = ()
  # Fields of training records of tasks that take the values of other records,
  # at random: a negative control, from which nothing is to be learned.
  shuffled_fields: tuple[str, ...] = ()
  # causal: predict every token. prefix: inputs are seen in both directions.
  # seq2seq: the encoder reads the inputs, the decoder writes the targets.
  objective: Literal['causal', 'prefix', 'seq2seq'] = 'causal'
  # Sequences in one global batch, and tokens in one (decoder) sequence.
  batch_size: schema.Size = 16
  sequence_length: schema.Length = 256
  # Tokens in one encoder sequence (seq2seq).
  inputs_length: schema.Length = 256
  # Fill rows with several records kept apart by segment ids.
  pack: bool = True
  # A new order every epoch; False keeps the sources' order.
  shuffle: bool = True
  # Share of a source's examples that may be unusable; more are an error. What
  # does not count: a pair that is longer than a row, and a field that a record
  # lacks for one task if it has what another task asks for.
  max_unusable: schema.Share = 0.01
  # Pixels of a picture or of a frame, at most. A side may be 1/2,048 of it long
  # (65,536), all frames of a video together may have 64 times as many.
  max_media_pixels: schema.Count = 1 << 27
  # Drop repeated paragraphs of all sources, then cut what is left into
  # passages of about 2,000 characters, which slices then count.
  deduplicate: bool = False
  # How training examples are varied.
  augment: Augment = dataclasses.field(default_factory=Augment)
  # Where tokenized sources are kept; None: ~/.cache/gemini_jax/tokens.
  cache_dir: str | None = None
  # Batches prepared ahead in the background.
  prefetch: Annotated[int, schema.Range(0, cap=1000)] = 4

  def __post_init__(self):
    schema.check(
      bool(self.inputs_field) == bool(self.targets_field),
      f'data.inputs_field={self.inputs_field!r} and data.targets_field='
      f'{self.targets_field!r} must be set together',
    )
    schema.check(
      not (self.tasks and self.inputs_field),
      f'data.tasks={self.tasks} and data.inputs_field={self.inputs_field!r} '
      'must not both be set',
    )
    schema.check(
      not (self.deduplicate and self.pairs),
      'data.deduplicate=True is for plain text; data.inputs_field='
      f'{self.inputs_field!r} and data.tasks={self.tasks} make pairs',
    )
    schema.check(
      not self.mixture_weights or len(self.mixture_weights) == len(self.train),
      f'data.mixture_weights has {len(self.mixture_weights)} values for '
      f'{len(self.train)} sources in data.train',
    )

  @property
  def pairs(self) -> bool:
    """Whether a record is inputs and targets, not plain text."""
    return bool(self.inputs_field or self.tasks)


@schema.section('tokenizer')
class Tokenizer:
  """Text to token ids and back."""

  # How text is cut: learned pieces, UTF-8 bytes, or the characters seen.
  kind: Literal['sentencepiece', 'bytes', 'characters'] = 'bytes'
  # A SentencePiece model to load; None: train one on the training split.
  path: str | None = None
  # Pieces of a SentencePiece model that is trained here, at most.
  vocab_size: schema.Length = 2048
