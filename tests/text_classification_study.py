r"""Classes of texts beside TF-IDF with logistic regression, on one split.

  python tests/text_classification_study.py snippets FILE snippets.csv
  python tests/text_classification_study.py baseline [--data=snippets.csv] \
      [WORKDIR ...]

`snippets` makes a list for experiments/text_classification.py of VADER's scored
movie snippets: movieReviewSnippets_GroundTruth.txt of the vaderSentiment source
distribution, a number, a score from -4 to 4 and a text a line. The class is the
sign of the score. `baseline` fits scikit-learn's logistic regression to TF-IDF
of words and pairs of words on the training split, with the inverse penalty that
is best on the validation split, and prints its test accuracy and macro F1 above
those of runs, which must have had the same data.
"""

import argparse
import csv
import pathlib

import gate_study
from experiments import text_classification
from gemini_jax import config as config_lib
from gemini_jax.data import splits

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)


def write_snippets(source: pathlib.Path, target: pathlib.Path):
  """The list of snippets as CSV."""
  with source.open(encoding='utf-8') as lines, target.open('w') as file:
    rows = csv.writer(file)
    rows.writerow(('text', 'class'))
    for line in lines:
      _, score, text = line.rstrip('\n').split('\t', 2)
      if float(score):
        sign = 'positive' if float(score) > 0 else 'negative'
        rows.writerow((text, sign))


def examples(
  config: config_lib.Data, split: splits.Split
) -> tuple[list[str], list[str]]:
  """Texts and classes of a split."""
  records = [row for _, row in splits.spread_records(config, split, None)]
  return [row['text'] for row in records], [row['class'] for row in records]


def baseline(data: str) -> dict[str, float]:
  """Accuracy and macro F1 of TF-IDF and logistic regression."""
  from sklearn import feature_extraction, linear_model, metrics

  arg = f'data={data}' if data else ''
  config = config_lib.from_config_dict(text_classification.get_config(arg)).data
  texts, classes = zip(
    *(examples(config, split) for split in ('train', 'validation', 'test')),
    strict=True,
  )
  words = feature_extraction.text.TfidfVectorizer(
    ngram_range=(1, 2), sublinear_tf=True, min_df=2
  )
  x = [words.fit_transform(texts[0]), *map(words.transform, texts[1:])]
  fits = [
    linear_model.LogisticRegression(C=penalty, max_iter=200).fit(
      x[0], classes[0]
    )
    for penalty in PENALTIES
  ]
  best = max(fits, key=lambda fit: fit.score(x[1], classes[1]))
  predicted = best.predict(x[2])
  return {
    'accuracy': metrics.accuracy_score(classes[2], predicted),
    'macro_f1': metrics.f1_score(classes[2], predicted, average='macro'),
  }


def of_run(workdir: pathlib.Path) -> dict[str, float]:
  """The last test metrics of a run."""
  values = gate_study.newest(workdir)
  return {name: values[f'test/{name}'] for name in ('accuracy', 'macro_f1')}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('what', choices=('snippets', 'baseline'))
  parser.add_argument('paths', nargs='*', type=pathlib.Path)
  parser.add_argument('--data', default='')
  options = parser.parse_args()
  if options.what == 'snippets':
    write_snippets(*options.paths)
    return
  print('| | test accuracy | macro F1 |\n| --- | --- | --- |')
  row = lambda name, values: print(
    f'| {name} | {values["accuracy"]:.4f} | {values["macro_f1"]:.4f} |',
    flush=True,
  )
  row('TF-IDF, logistic regression', baseline(options.data))
  for workdir in options.paths:
    row(workdir.name, of_run(workdir))


if __name__ == '__main__':
  main()
