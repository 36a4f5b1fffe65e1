"""Evaluation over whole splits."""

from gemini_jax.config import schema


@schema.section('eval')
class Eval:
  """Evaluation over whole splits."""

  # Sequences in one batch; None: data.batch_size.
  batch_size: schema.Size | None = None
  # Batches at most during training; None: the whole split.
  max_batches: schema.Count | None = None
  # Prompts continued after training, to read.
  samples: tuple[str, ...] = ()
  # Held-out pairs whose targets are generated greedily after training and
  # compared with the true ones; 0: none.
  exact_match: schema.Natural = 0
  # Held-out texts whose pictures or sounds are written after training, put on
  # a page, and judged by a classifier that learns from real ones alone where
  # there are at most 100 different texts; 0: none.
  judged: schema.Natural = 0
  # Held-out examples of each task that writes text alone, which are written
  # greedily after training, put on a page and compared by BLEU and CIDEr-D;
  # 0: none.
  captions: schema.Natural = 0
  # Held-out examples of each task whose sides are to find each other, by
  # model.contrast_dim: recall at 1, 5 and 10; 0: none.
  retrieval: schema.Natural = 0
  # Test sequences, a row each (data.pack=False), whose nll is measured at the
  # end, and of a latent mi and active_units, by so many draws of z for each.
  latent_examples: schema.Natural = 1000
  importance_samples: schema.Size = 500
