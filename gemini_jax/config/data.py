"""Where examples come from, and how they become tokens and batches."""

import dataclasses
from typing import Annotated, Literal

from gemini_jax.config import schema

# Fields of `data` that decide what a batch holds, besides the sources and the
# tokenizer; the second group matters only with `data.tasks`.
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
  """Random changes of training examples, on the host: data/augmentation.py."""

  # Pictures (all frames of a video get the same change): a random shift by at
  # most this many pixels along each dim; 0: off.
  crop_padding: Annotated[int, schema.Range(0, cap=2**14)] = 0
  # Mirrored left to right with probability 1/2.
  flip: bool = False
  # RandAugment: the number of random operations (0: off) and their magnitude.
  randaugment_ops: Annotated[int, schema.Range(0, cap=100)] = 0
  randaugment_magnitude: Annotated[float, schema.Range(0, 10)] = 5.0
  # MixUp of pictures and sounds that an encoder reads with those of another
  # example; the other's share is drawn from Beta(alpha, alpha) and at most 1/2;
  # 0: off.
  mixup_alpha: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # CutMix: likewise, but the other's share is a box of a picture, of all frames
  # of a video, or a span of a sound; 0: off. With both, each medium takes one
  # of them with probability 1/2. Of either, a draw above 1/2 changes nothing.
  cutmix_alpha: Annotated[float, schema.Range(0, cap=1000)] = 0.0
  # Sounds: the number of spans that are silenced, and their longest duration.
  time_masks: Annotated[int, schema.Range(0, cap=1000)] = 0
  time_mask_seconds: Annotated[float, schema.Range(0, cap=1_000_000)] = 0.1
  # Number of frequency bands that are removed, and the widest one as a share of
  # the mel scale.
  frequency_masks: Annotated[int, schema.Range(0, cap=1000)] = 0
  frequency_mask_share: schema.Share = 0.15
  # White noise at a signal-to-noise ratio drawn between these two, in dB;
  # (): off.
  noise_db: tuple[Annotated[float, schema.Range(cap=200)], ...] = ()
  # Random gain of at most this many dB, up or down.
  gain_db: Annotated[float, schema.Range(0, cap=100)] = 0.0
  # Random shift in time by at most this many seconds, earlier or later.
  time_shift_seconds: Annotated[float, schema.Range(0, cap=1_000_000)] = 0.0

  def __post_init__(self):
    schema.check(
      not self.noise_db
      or (len(self.noise_db) == 2 and self.noise_db[0] <= self.noise_db[1]),
      f'data.augment.noise_db={self.noise_db} must be empty or (low, high)',
    )


@schema.section('data.normalization')
class Normalization:
  """What numbers and series of tasks are divided by: data/numbers.py.

  A run that begins measures them in data.train and keeps them in its config.
  """

  # Fields of {number:FIELD}, and FIELD.0, FIELD.1 and so on for the channels
  # of {series:FIELD}; (): to be measured.
  fields: tuple[str, ...] = ()
  # Their means and standard deviations, in the units of the data.
  means: tuple[Annotated[float, schema.Range()], ...] = ()
  deviations: tuple[schema.Positive, ...] = ()

  def __post_init__(self):
    counts = [len(self.fields), len(self.means), len(self.deviations)]
    schema.check(
      counts == [len(set(self.fields))] * 3,
      'data.normalization: fields, means and deviations must be of one length, '
      f'each field once; they have {counts}',
    )


@schema.section('data')
class Data:
  """Where examples come from and how they become batches.

  A source is `KIND:WHERE#SLICE`: `tfds:tiny_shakespeare#validation+test`,
  `text:book.txt`, `text:corpus/*.txt#[:90%]`, `jsonl:pairs.jsonl`,
  `csv:table.csv`, `parallel:talk.en+talk.de` (line i of each file; their
  endings are the fields), `python:pydoc_data.topics#[9::10]` and its complement
  `#[!9::10]`, `reverse:20000`, `wordnet:`, `digits:train`, `moving:test` (see
  data/sources.py). Fold i of k is `#[i::k]`, and `#[!i::k]` all the others.
  """

  # Sources of each split; several training sources make a mixture.
  train: tuple[str, ...] = ()
  validation: tuple[str, ...] = ()
  test: tuple[str, ...] = ()
  # Mixture weights of the training sources: their shares of the tokens;
  # (): in proportion to their sizes.
  mixture_weights: tuple[schema.Positive, ...] = ()
  # Folder of prepared TFDS data sets; None: TFDS downloads to its own folder.
  data_dir: str | None = None
  # The field of a record that holds its text.
  text_field: str = 'text'
  # The fields that hold inputs and targets; both empty: plain text.
  inputs_field: str = ''
  targets_field: str = ''
  # The field that holds a conversation, [{"role": ..., "content": ...}, ...],
  # whose answers (role assistant) are learned, by the chat template of the
  # tokenizer; '': none.
  chat_field: str = ''
  # The field that holds worse targets for the same inputs, or a worse
  # conversation; those of the fields above are then preferred to them
  # (train.dpo); '': none.
  rejected_field: str = ''
  # Tasks, written '{image:photo} in {language} -> {caption}'; each record gives
  # one example of each task; see data/task.py.
  tasks: tuple[str, ...] = ()
  # Names of the classes, in the order of their numbers; (): those of TFDS, or
  # of {class:FIELD}, {tags:FIELD} and {labels:FIELD} all that data.train has.
  label_names: tuple[str, ...] = ()
  # Means and standard deviations of {number:FIELD} and {series:FIELD}.
  normalization: Normalization = dataclasses.field(
    default_factory=Normalization
  )
  # What a training example of a class counts: all the same, or one over the
  # frequency of its class.
  class_weights: Literal['none', 'balanced'] = 'none'
  # Sample rate (Hz) of sounds that do not state one;
  # None: model.audio.sample_rate.
  audio_sample_rate: Annotated[int, schema.Range(1, cap=1_000_000)] | None = (
    None
  )
  # Modality dropout: the probability that one kind of media is dropped from the
  # inputs of a training example that has several kinds.
  media_dropout: schema.PartialShare = 0.0
  # Probability that all inputs of a training example are dropped, as
  # classifier-free guidance (generate.guidance) needs.
  inputs_dropout: schema.PartialShare = 0.0
  # Kinds of media that are dropped from the inputs of every example, to measure
  # what they contribute.
  drop_kinds: tuple[
    Literal['image', 'audio', 'video', 'series', 'number'], ...
  ] = ()
  # Fields whose values are shuffled among the training records of tasks: a
  # negative control, from which nothing can be learned.
  shuffled_fields: tuple[str, ...] = ()
  # causal: predict every token. prefix: attention within the inputs is
  # bidirectional. seq2seq: the encoder reads the inputs, the decoder predicts
  # the targets.
  objective: Literal['causal', 'prefix', 'seq2seq'] = 'causal'
  # Sequences in one global batch, and tokens in one (decoder) sequence.
  batch_size: schema.Size = 16
  sequence_length: schema.Length = 256
  # Tokens in one encoder sequence (seq2seq).
  inputs_length: schema.Length = 256
  # Pack several records into a row; segment ids keep them apart.
  pack: bool = True
  # Shuffle anew every epoch; False: keep the order of the sources.
  shuffle: bool = True
  # Largest share of a source's examples that may be unusable; more is an error.
  # Not counted: pairs longer than a row, empty fields, and fields that a record
  # lacks for one task while it has those of another.
  max_unusable: schema.Share = 0.01
  # Most pixels of a picture or a frame. Height and width may each be at most
  # 1/2,048 of this number (65,536), all frames of a video together may have 64
  # times this number.
  max_media_pixels: schema.Count = 1 << 27
  # Drop paragraphs that repeat within or across sources, then cut the rest into
  # passages of about 2,000 characters; slices then count passages.
  deduplicate: bool = False
  # Random changes of training examples.
  augment: Augment = dataclasses.field(default_factory=Augment)
  # Folder of the token cache; None: ~/.cache/gemini_jax/tokens.
  cache_dir: str | None = None
  # Batches that are prepared ahead, in the background; 0: none.
  prefetch: Annotated[int, schema.Range(0, cap=1000)] = 4

  def __post_init__(self):
    schema.check(
      bool(self.inputs_field) == bool(self.targets_field),
      f'data.inputs_field={self.inputs_field!r} and data.targets_field='
      f'{self.targets_field!r} must be set together',
    )
    schema.check(
      not self.rejected_field or bool(self.inputs_field or self.chat_field),
      f'data.rejected_field={self.rejected_field!r} needs data.inputs_field, '
      'of the prompts, and data.targets_field, of what is preferred, or '
      'data.chat_field, of preferred conversations',
    )
    schema.check(
      not (self.tasks and self.inputs_field),
      f'data.tasks={self.tasks} and data.inputs_field={self.inputs_field!r} '
      'must not both be set',
    )
    schema.check(
      not (self.chat_field and self.pairs),
      f'data.chat_field={self.chat_field!r} does not go with '
      f'data.inputs_field={self.inputs_field!r} and data.tasks={self.tasks}',
    )
    schema.check(
      not self.chat_field or self.objective == 'causal',
      f'data.chat_field={self.chat_field!r} needs data.objective=causal, not '
      f'{self.objective}',
    )
    schema.check(
      not (self.deduplicate and self.keeps_documents),
      'data.deduplicate=True is for plain text; data.inputs_field='
      f'{self.inputs_field!r}, data.tasks={self.tasks} and data.chat_field='
      f'{self.chat_field!r} are none',
    )
    schema.check(
      not self.mixture_weights or len(self.mixture_weights) == len(self.train),
      f'data.mixture_weights has {len(self.mixture_weights)} values for '
      f'{len(self.train)} sources in data.train',
    )

  @property
  def pairs(self) -> bool:
    """Whether examples have inputs and targets; False: plain text."""
    return bool(self.inputs_field or self.tasks)

  @property
  def keeps_documents(self) -> bool:
    """Whether a row holds whole documents; False: texts are cut to fit."""
    return self.pairs or bool(self.chat_field)


@schema.section('tokenizer')
class Tokenizer:
  """Text to token ids and back."""

  # Units of text: learned SentencePiece pieces, UTF-8 bytes, the characters of
  # the training split, or what a pretrained tokenizer has.
  kind: Literal['sentencepiece', 'bytes', 'characters', 'huggingface'] = 'bytes'
  # sentencepiece: file of a model; None: train one on the training split.
  # huggingface: folder with tokenizer.json or tokenizer.model, or the file
  # `tokenizer` of a workdir; None: that of train.init_from.
  path: str | None = None
  # Largest vocabulary of a SentencePiece model that is trained here.
  vocab_size: schema.Length = 2048
