"""A page of the media in a batch, as they are trained on."""

import numpy as np

from gemini_jax import batch as batch_lib
from gemini_jax import config as config_lib
from gemini_jax import run as run_lib
from gemini_jax.evaluate import gallery

# Media on a page.
_PAGE_SIZE = 40


def write(run: run_lib.Run, batch: batch_lib.Batch):
  """Writes samples/00000000-train.png: media of the first rows, with targets.

  Args:
    run: the run.
    batch: on the host.
  """
  items, captions = [], []
  for row in range(min(_PAGE_SIZE, len(batch.targets))):
    ids = batch.targets[row][batch.weights[row] > 0]
    ids = ids[ids < run.tokenizer.vocab_size]
    text = run.tokenizer.decode(ids[ids != run.tokenizer.eos_id].tolist())
    for sequence in filter(None, (batch.encoder, batch.decoder)):
      for kind, media in sequence.media.items():
        if kind in config_lib.NUMERIC:
          continue
        sizes = media.sizes[row]
        for values, size in zip(media.values[row], sizes, strict=True):
          if size.all():
            items.append(_crop(values, size))
            captions.append(text)
  if items:
    gallery.write(
      run.workdir / 'samples' / '00000000-train.png',
      items[:_PAGE_SIZE],
      captions[:_PAGE_SIZE],
      run.config.model.audio.sample_rate,
    )


def _crop(values: np.ndarray, size: np.ndarray) -> np.ndarray:
  """A medium without the padding beyond its size."""
  return values[tuple(map(slice, size))]
