"""Pictures of classifications: what is confused, and how calibrated it is.

C classes, K bins of confidence.
"""

from collections.abc import Sequence

import numpy as np

from gemini_jax.evaluate import classification_metrics, figures

# Classes whose names all fit beside the rows, and whose cells hold numbers.
_MAX_NAMES, _MAX_NUMBERS = 30, 20
# Pairs that are listed where names do not fit.
_NUM_PAIRS = 20
_NAME_LENGTH = 16
# Inches of a cell, and of what stands around them.
_CELL, _MARGIN = 0.36, 1.8


def confusion(names: Sequence[str], confusion_CC: np.ndarray) -> bytes | None:
  """A PNG of the shares of each class that are taken for each class.

  Of more than 30 classes the names are left out, and bars show the pairs that
  are confused most often.

  Args:
    names: of the classes.
    confusion_CC: int, examples by their class and by the predicted one.

  Returns:
    None where matplotlib is not installed.
  """
  num_classes = len(names)
  is_named = num_classes <= _MAX_NAMES
  side = _CELL * max(num_classes, 6) + _MARGIN if is_named else 6.5
  figure = figures.new(
    side if is_named else side + 5, side, layout='constrained'
  )
  if figure is None:
    return None
  support_C1 = confusion_CC.sum(axis=1, keepdims=True)
  share_CC = confusion_CC / np.maximum(support_C1, 1)
  axes, *others = np.atleast_1d(
    figure.subplots(1, 1 if is_named else 2, squeeze=True)
  )
  # The root makes rare confusions visible.
  axes.imshow(np.sqrt(share_CC), cmap='Blues', vmin=0, vmax=1)
  axes.set_xlabel('predicted')
  axes.set_ylabel('truth')
  if is_named:
    places, labels = range(num_classes), [shortened(name) for name in names]
    axes.set_xticks(places, labels, rotation=90, parse_math=False)
    axes.set_yticks(places, labels, parse_math=False)
  axes.tick_params(labelsize=7)
  if num_classes <= _MAX_NUMBERS:
    for i, j in zip(*np.nonzero(confusion_CC), strict=True):
      axes.text(
        *(j, i, f'{confusion_CC[i, j]}'),
        ha='center',
        va='center',
        fontsize=6,
        color='white' if share_CC[i, j] > 0.4 else 'black',
      )
  for axes in others:
    pairs = most_confused(confusion_CC, _NUM_PAIRS)
    axes.barh(range(len(pairs)), [confusion_CC[pair] for pair in pairs])
    axes.set_yticks(
      range(len(pairs)),
      [f'{shortened(names[i])} → {shortened(names[j])}' for i, j in pairs],
      parse_math=False,
    )
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel('examples')
    axes.set_title('truth → predicted, confused most often', fontsize=9)
  return figures.png(figure)


def most_confused(
  confusion_CC: np.ndarray, limit: int
) -> list[tuple[int, int]]:
  """Pairs (class, predicted class) with most errors, largest first."""
  errors_CC = confusion_CC - np.diag(np.diag(confusion_CC))
  order = np.argsort(-errors_CC, axis=None, kind='stable')[:limit]
  pairs = zip(*np.unravel_index(order, errors_CC.shape), strict=True)
  return [(int(i), int(j)) for i, j in pairs if errors_CC[i, j]]


def reliability(bins: classification_metrics.Bins) -> bytes | None:
  """A PNG of accuracy by confidence, above a histogram of confidences.

  None where matplotlib is not installed.
  """
  figure = figures.new(4.5, 5.5, layout='constrained')
  if figure is None:
    return None
  accuracy, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
  num_bins = len(bins.counts_K)
  middle_K = (np.arange(num_bins) + 0.5) / num_bins
  accuracy.bar(
    *(middle_K, bins.accuracy_K, 1 / num_bins),
    edgecolor='white',
    label='accuracy',
  )
  accuracy.plot([0, 1], [0, 1], 'k--', linewidth=1, label='calibrated')
  is_used_K = bins.counts_K > 0
  accuracy.plot(
    *(bins.confidence_K[is_used_K], bins.accuracy_K[is_used_K], 'C1.'),
    label='mean of a bin',
  )
  error = classification_metrics.calibration_error(bins)
  accuracy.set_title(f'expected calibration error {error:.4f}', fontsize=9)
  accuracy.set_ylabel('accuracy')
  accuracy.set_xlim(0, 1)
  accuracy.set_ylim(0, 1)
  accuracy.legend(fontsize=7, frameon=False, loc='upper left')
  histogram.bar(middle_K, bins.counts_K, 1 / num_bins, edgecolor='white')
  histogram.set_ylabel('examples')
  histogram.set_xlabel('confidence')
  for axes in (accuracy, histogram):
    axes.tick_params(labelsize=7)
  return figures.png(figure)


def shortened(name: str) -> str:
  """A name of at most 16 characters, in one line."""
  line = ' '.join(name.split())
  return line if len(line) <= _NAME_LENGTH else f'{line[: _NAME_LENGTH - 1]}…'
