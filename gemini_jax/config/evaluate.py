"""Which evaluators run, and with what options."""

import dataclasses
from typing import Annotated, Literal

from gemini_jax.config import schema


@schema.section('evaluate.exact_match')
class ExactMatch:
  """Whole outputs that equal the targets (data.inputs_field)."""

  # Pairs of each held-out split, the first ones.
  num_examples: schema.Count = 500


@schema.section('evaluate.captions')
class Captions:
  """BLEU and CIDEr-D of text that tasks write, and a page of it."""

  # Records of each task that writes text alone, at even distances.
  num_examples: schema.Count = 100


@schema.section('evaluate.texts')
class Texts:
  """BLEU, chrF and ROUGE of texts that answer inputs, as of translations."""

  # Records of each task that writes text alone, at even distances; None: all.
  num_examples: schema.Count | None = 1000
  # Scores from 0 to 100, with 95 % intervals: of sacrebleu (texts as they are,
  # case counts), and of rouge-score, which is made for English.
  metrics: tuple[Literal['bleu', 'chrf', 'rouge1', 'rouge2', 'rougeL'], ...] = (
    'bleu',
    'chrf',
  )
  # Number of beams; 1: greedy.
  beam_size: Annotated[int, schema.Range(1, cap=2**12)] = 1
  # Exponent of the length normalisation of beams, as in `generate`.
  length_penalty: Annotated[float, schema.Range(-5, 5)] = 0.6


@schema.section('evaluate.judged_media')
class JudgedMedia:
  """Written pictures and sounds, judged by an independent classifier.

  It is trained on real media alone, and only where there are at most 100
  different texts; a page shows what was written in any case.
  """

  # Held-out texts whose media are written, at even distances.
  num_examples: schema.Count = 300
  # Of the deviations of z; 0: the likeliest normal's mean.
  temperature: schema.NonNegative = 1.0
  # How much likelier the inputs must make the medium (classifier-free
  # guidance, data.inputs_dropout); 0: off.
  guidance: Annotated[float, schema.Range(0, cap=1000)] = 0.0


@schema.section('evaluate.retrieval')
class Retrieval:
  """Inputs and targets that find each other by their vectors."""

  # Examples of each task (model.contrast_dim).
  num_examples: schema.Count = 100


@schema.section('evaluate.likelihood')
class Likelihood:
  """Nats of test sequences; of a latent also mi and active_units."""

  # Test sequences, each a row of its own (data.pack=False).
  num_examples: schema.Count = 1000
  # Draws of z for each sequence.
  importance_samples: schema.Size = 500


@schema.section('evaluate.samples')
class Samples:
  """Prompts that are continued, to be read by a person."""

  # Prompts, or inputs where the data are pairs.
  prompts: tuple[str, ...] = ()
  # New tokens in each at most.
  max_tokens: schema.Length = 200
  # 0: greedy. Otherwise logits are divided by it.
  temperature: schema.NonNegative = 0.8
  # The task of data.tasks that reads the prompts, by its name; '': the only
  # one that reads text and writes it.
  task: str = ''


@schema.section('evaluate')
class Evaluate:
  """Evaluation on the held-out splits, data.validation and data.test."""

  # Sequences in one batch; None: data.batch_size.
  batch_size: schema.Size | None = None
  # Batches of a split at most for its loss; None: the whole split.
  max_batches: schema.Count | None = None
  # Evaluators that run after training and with --mode=eval, in this order,
  # beside the loss: exact_match, classification, regression, texts, captions,
  # judged_media, retrieval, likelihood, samples.
  evaluators: tuple[str, ...] = ()
  # Which checkpoint --mode=eval takes: the newest, or the best by validation
  # loss; see train.keep_best.
  checkpoint: Literal['latest', 'best'] = 'latest'
  # Views of pictures and videos over which the probabilities of classes are
  # averaged (classification, --mode=predict): 1, as they are; 2, mirrored left
  # to right as well; 6, both also shifted by a pixel either way.
  test_time_views: Literal[1, 2, 6] = 1
  # Share of outputs that are the targets, all of them.
  exact_match: ExactMatch = dataclasses.field(default_factory=ExactMatch)
  # BLEU, chrF and ROUGE of texts that answer inputs.
  texts: Texts = dataclasses.field(default_factory=Texts)
  # BLEU and CIDEr-D of text that tasks write.
  captions: Captions = dataclasses.field(default_factory=Captions)
  # Accuracy of an independent classifier on written media.
  judged_media: JudgedMedia = dataclasses.field(default_factory=JudgedMedia)
  # Recall of targets by their inputs, and the reverse.
  retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)
  # Nats of test sequences.
  likelihood: Likelihood = dataclasses.field(default_factory=Likelihood)
  # Prompts that are continued, to be read.
  samples: Samples = dataclasses.field(default_factory=Samples)
